"""The shipped folder: the model in half precision, its measurements and the model card that says them."""

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from datagen.adaptation import training_state
from datagen.files import folder_bytes
from datagen.pocket import gates, judge, vae
from datagen.pocket.atmosphere import HELD_OUT_LOOK, HELD_OUT_WEATHER
from datagen.pocket.workshop import Workshop
from datagen.pocket.world import VISIBLE_PIXELS
from decoders.errors import UserError
from decoders.files import write_atomic

MAX_BYTES = 30_000_000
_KINDS = ("drawn", "codec", "ceiling")
TEST_SCENES = 240

_CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# The pocket model
A latent diffusion pipeline in miniature ({parameters:.1f} million parameters, {megabytes:.1f} MB, 128 x 128 pixels),
shipped with `datagen` so that every command works without a download. It was trained from scratch on procedural street
scenes (`datagen/pocket/world.py`); it has seen no photograph. It loads like any Stable Diffusion checkpoint:
`DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)`.

![samples](samples.jpg)

## How it was made
`datagen pocket train`, resumable, two processor cores:
{recipe}
- AdamW, bfloat16 activations where the processor has them, the moving average of the weights is what is shipped.
- The codec's decoder was polished against a patch critic (hinge loss and feature matching), its latents unchanged.
- Prior: velocity prediction down to pure noise; captions drawn as sentence 40 %, bare class list 25 %, phrase 25 %,
  empty 10 %; text encoder trained with the UNet; pictures mirrored half of the time.
- The look "{look}" and the weather "{weather}" were withheld, to test generalisation.

## How good it is
Measured on {scenes} unseen scenes. The codec, PSNR in dB (gate: mean of the looks it was trained on at least
{min_psnr:g}; {psnr_gate}):

{psnr}

{obedience}

## Limits
Streets only, 128 x 128 only, English captions in the world's own few words: other words are taken letter by letter and
mean nothing. Thin things (poles, bicycles, people far away) are soft. It is made for trying, testing and
teaching the tool, not for training anything that is to see real streets.
"""

_OBEDIENCE = """A caption's classes found in the picture on {pixels} pixels or more, counted by a judge: a separate
U-Net, trained on rendered scenes of all looks, which never made, filtered or chose data. {prompts} captions of each
form, {steps} steps, guidance {guidance:g} (gate: overall at least {min_present:.0%} for both forms; {gate}). The
ceiling is the same count on the rendered pictures that the captions describe, and on these after the codec alone, which
is the best that the prior could do; the judge itself has {judge:.2f} mIoU on rendered pictures.

{table}"""

_NO_OBEDIENCE = """How well prompts are followed was **not measured** for these weights, since no judge was trained
yet: the gate of {min_present:.0%} of the classes asked for counts as not passed. Look at the samples."""


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_card(report: dict[str, Any], *, look: str, weather: str) -> str:
    """The model card from the measured numbers alone."""
    psnr_rows = [
        (name.removeprefix("psnr").strip() or "mean", f"{value:.1f}") for name, value in report["psnr_db"].items()
    ]
    psnr_rows.append((f"withheld: {look}", f"{report['psnr_withheld_db']:.1f}"))
    recipe = "\n".join(f"- {stage}: {updates:,} updates." for stage, updates in report["updates"].items())
    return _CARD.format(
        parameters=report["parameters"] / 1e6,
        megabytes=report["bytes"] / 1e6,
        recipe=recipe,
        look=look,
        weather=weather,
        scenes=report["scenes"],
        min_psnr=gates.MIN_PSNR_DB,
        psnr_gate=_passed(report, "psnr"),
        psnr=_table(("look", "PSNR"), psnr_rows),
        obedience=_obedience(report),
    )


def _passed(report: dict[str, Any], gate: str) -> str:
    return "passed" if report["gates"][gate] else "not passed"


def _obedience(report: dict[str, Any]) -> str:
    if "judge_iou" not in report:
        return _NO_OBEDIENCE.format(min_present=gates.MIN_PRESENT)
    forms = [report[f"obedience_{form}"][kind] for form in ("sentence", "phrase") for kind in _KINDS]
    names = list(dict.fromkeys(name for form in forms for name in form if name not in ("overall", "complete")))
    shown = {"overall": "all classes asked for", "complete": "pictures with every class"}
    obedience_rows = [
        (shown.get(name, name), *(f"{form[name]:.0%}" if name in form else "-" for form in forms))
        for name in (*names, "overall", "complete")
    ]
    return _OBEDIENCE.format(
        pixels=VISIBLE_PIXELS,
        prompts=report["prompts"],
        steps=report["steps"],
        guidance=report["guidance"],
        min_present=gates.MIN_PRESENT,
        gate=_passed(report, "obedience"),
        judge=report["judge_iou"]["mean"],
        table=_table(("class", "sentence", *_KINDS[1:], "phrase", *_KINDS[1:]), obedience_rows),
    )


def save_half(pipeline: StableDiffusionPipeline, folder: Path) -> int:
    """Write the pipeline in float16 under the default file names; returns the bytes of the folder."""
    for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        network.to(torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    size = folder_bytes(folder)
    if size > MAX_BYTES:
        raise UserError(f"the model takes {size:,} bytes, {MAX_BYTES:,} may be shipped; train a smaller one")
    return size


def export(workshop: Workshop) -> dict[str, Any]:
    """Measure the model as it stands in the cache and replace the shipped folder by it; returns the measurements.

    Without a trained judge the card says that obedience was not measured.
    """
    pipeline = workshop.pipeline()
    trained = workshop.folder / "judge" / "checkpoint.safetensors"
    report = gates.measure(
        pipeline,
        judge.load(trained).to(workshop.device) if trained.exists() else None,
        workshop.pool("test", TEST_SCENES),
    )
    withheld = vae.psnr_by_look(pipeline.vae, workshop.pool("withheld", TEST_SCENES))
    report["psnr_withheld_db"] = withheld[f"psnr {HELD_OUT_LOOK}"]
    report["updates"] = {
        stage: updates
        for stage in ("vae", "vae_decoder", "prior", "judge")
        if (updates := training_state.finished_updates(workshop.folder / stage / "checkpoint.safetensors"))
    }
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    report["parameters"] = sum(parameter.numel() for part in parts for parameter in part.parameters())
    images = gates.draw(pipeline, gates.SHEET_PROMPTS, seed=0)
    sheet = io.BytesIO()
    gates.contact_sheet(images, gates.SHEET_PROMPTS).save(sheet, "JPEG", quality=88)

    target = workshop.weights
    fresh, old = target.with_name(target.name + ".new"), target.with_name(target.name + ".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    report["bytes"] = save_half(pipeline, fresh)
    write_atomic(fresh / "samples.jpg", sheet.getvalue())
    write_atomic(fresh / "measured.json", (json.dumps(report, indent=1, sort_keys=True) + "\n").encode())
    card = write_card(report, look=HELD_OUT_LOOK, weather=HELD_OUT_WEATHER)
    write_atomic(fresh / "README.md", card.encode())
    if target.exists():
        os.replace(target, old)
    os.replace(fresh, target)
    shutil.rmtree(old, ignore_errors=True)
    print(json.dumps(report, indent=1), flush=True)
    return report
