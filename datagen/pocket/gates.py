"""What the pocket model must pass before it is shipped, measured: codec fidelity and obedience to the prompt."""

import re
import textwrap
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from datagen.pocket import judge, vae
from datagen.pocket.captions import PLURALS
from datagen.pocket.scene_cache import ScenePool
from datagen.pocket.world import TAXONOMY, VISIBLE_PIXELS

MIN_PSNR_DB = 27.0
MIN_PRESENT = 0.80
"""Share of the classes asked for that the judge must find."""
STEPS = 100
GUIDANCE = 5.0

SHEET_PROMPTS = (
    "a photo of a street in clear weather by day, two red cars, buildings",
    "a game render of a street in clear weather by day, one blue bus, vegetation",
    "a film photo of a street in snow at night, one person, one yellow car, buildings",
    "a photo of a street in fog by day, three people, traffic signs",
    "a photo of a street in clear weather at dusk, one black bicycle, a sidewalk",
    "a game render of a street in snow at night, two white cars, poles",
    "road, sky, building, car",
    "a film photo of vegetation",
)


def draw(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], *, seed: int, batch_size: int = 16
) -> UInt8[np.ndarray, "prompts height width 3"]:
    """One picture for each prompt, with `STEPS` steps and `GUIDANCE`; picture n depends on `seed` + n only."""
    parts: list[np.ndarray] = []
    for start in range(0, len(prompts), batch_size):
        texts = list(prompts[start : start + batch_size])
        noise = [torch.Generator().manual_seed(seed + start + index) for index in range(len(texts))]
        call = cast(Any, pipeline)
        found = call(texts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=noise, output_type="np")
        parts.append((found.images * 255).round().astype(np.uint8))
    return np.concatenate(parts)


def asked_for(prompt: str) -> tuple[str, ...]:
    """The classes that a prompt names, in the singular or the plural."""
    return tuple(
        name
        for name in TAXONOMY.names
        if re.search(rf"\b({name}|{PLURALS.get(name, name + 's')})\b", prompt, re.IGNORECASE)
    )


def present(network: nn.Module, images: UInt8[np.ndarray, "batch height width 3"]) -> list[set[str]]:
    """The classes that the judge finds on at least `VISIBLE_PIXELS` pixels: the world's own measure of visible."""
    return [
        {name for index, name in enumerate(TAXONOMY.names, start=1) if (found == index).sum() >= VISIBLE_PIXELS}
        for found in judge.segment(network, images)
    ]


def obedience(
    network: nn.Module, images: UInt8[np.ndarray, "batch height width 3"], prompts: Sequence[str]
) -> dict[str, float]:
    """Share of the classes asked for that are there: of each class, over all, and over pictures that have every one."""
    found, wanted = present(network, images), [asked_for(prompt) for prompt in prompts]
    pairs = [(name, name in seen) for seen, names in zip(found, wanted, strict=True) for name in names]
    table = {
        name: float(np.mean([there for other, there in pairs if other == name]))
        for name in TAXONOMY.names
        if any(other == name for other, _ in pairs)
    }
    complete = [set(names) <= seen for seen, names in zip(found, wanted, strict=True) if names]
    return table | {"overall": float(np.mean([there for _, there in pairs])), "complete": float(np.mean(complete))}


def measure(
    pipeline: StableDiffusionPipeline,
    network: nn.Module | None,
    scenes: ScenePool,
    *,
    prompts: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything the model card says in numbers, from unseen scenes.

    The ceiling of obedience is the judge's count on rendered pictures, that of the prior on these after the codec.

    Without a judge obedience is not measured, and its gate counts as not passed.
    """
    fidelity = vae.psnr_by_look(pipeline.vae, scenes)
    report: dict[str, Any] = {
        "psnr_db": fidelity,
        "scenes": len(scenes),
        "gates": {"psnr": fidelity["psnr"] >= MIN_PSNR_DB, "obedience": False},
    }
    if network is None:
        return report
    report |= {
        "judge_iou": judge.score(network, scenes),
        "prompts": min(prompts, len(scenes)),
        "steps": STEPS,
        "guidance": GUIDANCE,
    }
    through_codec = vae.reconstruct(pipeline.vae, scenes.images[:prompts])
    for form in ("sentence", "phrase"):
        texts = [str(note[form]) for note in scenes.notes[:prompts]]
        report[f"obedience_{form}"] = {
            "drawn": obedience(network, draw(pipeline, texts, seed=seed), texts),
            "codec": obedience(network, through_codec, texts),
            "ceiling": obedience(network, scenes.images[: len(texts)], texts),
        }
    shares = [report[f"obedience_{form}"]["drawn"]["overall"] for form in ("sentence", "phrase")]
    report["gates"]["obedience"] = min(shares) >= MIN_PRESENT
    return report


def contact_sheet(
    images: UInt8[np.ndarray, "batch height width 3"], texts: Sequence[str], *, columns: int = 4
) -> Image.Image:
    """Pictures side by side, each with its text below."""
    height, width = images.shape[1:3]
    font, line = ImageFont.load_default(size=10), 12
    wrapped = [textwrap.wrap(text, width // 6) for text in texts]
    step = height + line * (max(len(lines) for lines in wrapped) + 1)
    sheet = Image.new("RGB", (columns * (width + 4), -(-len(images) // columns) * step), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (image, lines) in enumerate(zip(images, wrapped, strict=True)):
        left, top = index % columns * (width + 4), index // columns * step
        sheet.paste(Image.fromarray(image), (left, top))
        pen.multiline_text((left, top + height + 2), "\n".join(lines), fill="black", font=font, spacing=2)
    return sheet
