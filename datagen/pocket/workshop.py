"""The stages that make the pocket model: what one makes, the next finds in the user's cache folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from datagen.adaptation import loop, training_state
from datagen.files import read_json, write_json
from datagen.pocket import gates, judge, prior, scene_cache, text, vae, world
from datagen.pocket.captions import LOOK_WORDS, NUMBERS, PLURALS, TIME_WORDS, WEATHER_WORDS
from decoders.errors import UserError
from decoders.fit_state import under

WEIGHTS = Path(__file__).parent / "weights"
"""The shipped model; written by the stage `export` only."""

UNSEEN = 64
"""Scenes of the test seeds that a probe looks at while a codec trains."""


class Workshop:
    """The stages, with the settings that they share."""

    def __init__(
        self,
        *,
        folder: Path,
        weights: Path = WEIGHTS,
        scenes: int = 12_000,
        judge_scenes: int = 5_000,
        workers: int = 2,
        updates: dict[str, int] | None = None,
    ) -> None:
        self.folder = folder
        self.weights = weights
        self.scenes = scenes
        self.judge_scenes = judge_scenes
        self.workers = workers
        self.updates = {"vae": 6_000, "vae_decoder": 6_000, "prior": 20_000, "judge": 3_000} | (updates or {})
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def render_scenes(self) -> None:
        for role, count in (("prior", self.scenes), ("test", UNSEEN), ("judge", self.judge_scenes)):
            scene_cache.render(role, count, folder=self.folder, workers=self.workers)

    def pool(self, role: str, count: int) -> scene_cache.ScenePool:
        scene_cache.render(role, count, folder=self.folder, workers=self.workers)
        return scene_cache.load(role, count, folder=self.folder)

    def _shipped(self) -> StableDiffusionPipeline | None:
        """The exported model in float32, for a warm start; None when there is none yet."""
        if not (self.weights / "model_index.json").exists():
            return None
        return cast(StableDiffusionPipeline, DiffusionPipeline.from_pretrained(self.weights, dtype=torch.float32))

    def train_vae(self) -> AutoencoderKL:
        shipped, model = self._shipped(), vae.build()
        if shipped is not None:
            model.load_state_dict(shipped.vae.state_dict())
        return self._fit_vae(vae.train, model, "vae", peak_rate=1e-3)

    def train_vae_decoder(self) -> AutoencoderKL:
        """Polish the decoder of the codec that stands now, its latents unchanged."""
        model = self._codec()
        self._check_origin("vae_decoder", {"codec": vae.encoder_digest(model)})
        return self._fit_vae(vae.polish, model, "vae_decoder", peak_rate=5e-4)

    def _placed(self, model: AutoencoderKL) -> AutoencoderKL:
        return cast(AutoencoderKL, cast(nn.Module, model).to(self.device))

    def _fit_vae(
        self, fit: Callable[..., AutoencoderKL], model: AutoencoderKL, stage: str, *, peak_rate: float
    ) -> AutoencoderKL:
        return fit(
            self._placed(model),
            self.pool("prior", self.scenes),
            self.pool("test", UNSEEN),
            folder=self.folder / stage,
            schedule=loop.Schedule(updates=self.updates[stage], peak_rate=peak_rate),
        )

    def _codec(self) -> AutoencoderKL:
        """The averaged codec of the stage `vae`, else the shipped one."""
        path = self.folder / "vae" / "checkpoint.safetensors"
        model = vae.build()  # never the loaded object itself: its config would carry this machine's path into an export
        if path.exists():
            model.load_state_dict(training_state.averaged_weights(path))
            return self._placed(model.eval().requires_grad_(False))
        shipped = self._shipped()
        if shipped is None:
            raise UserError(
                f"no trained codec, neither {path} nor {self.weights}; run `datagen pocket train --stages vae` first"
            )
        model.load_state_dict(shipped.vae.state_dict())
        return self._placed(model.eval().requires_grad_(False))

    def codec(self) -> AutoencoderKL:
        """The codec with the scaling factor of its latents, its decoder polished if that was done later."""
        model = self._codec()
        polish = self.folder / "vae_decoder"
        path = polish / "checkpoint.safetensors"
        if path.exists() and read_json(polish / "origin.json")["codec"] == vae.encoder_digest(model):
            trained = under("codec.", training_state.averaged_weights(path))
            model.load_state_dict(model.state_dict() | trained)  # of the encoder, which was frozen, nothing is stored
        return model

    def encode_scenes(self) -> Tensor:
        """Latents of all scenes, unscaled, made once per codec and world."""
        model = self._codec()
        name = f"{vae.encoder_digest(model)}_{scene_cache.world_digest()}_{self.scenes}.safetensors"
        path = self.folder / "latents" / name
        return vae.encode_all(model, self.pool("prior", self.scenes).images, path=path)

    def _tokenizer(self, captions: Sequence[str]) -> CLIPTokenizer:
        """The shipped one where there is one (warm weights know its ids), else grown from the captions."""
        home = self.folder / "prior" / "tokenizer"
        if not home.exists():
            shipped = self._shipped()
            found = text.build_tokenizer(captions) if shipped is None else shipped.tokenizer
            found.save_pretrained(home)
        return CLIPTokenizer.from_pretrained(home)

    def _check_origin(self, stage: str, found: dict[str, Any]) -> dict[str, Any]:
        """Note what a stage was begun on, and refuse to go on with anything else."""
        path = self.folder / stage / "origin.json"
        if not path.exists():
            write_json(path, found)
        begun: dict[str, Any] = read_json(path)
        for key in ("codec", "world"):
            if begun.get(key) != found.get(key):
                raise UserError(
                    f"the {stage} in {path.parent} was begun on {key} {begun[key]}, now there is {found[key]}; "
                    f"move that folder away to begin anew, or bring the old {key} back"
                )
        return begun

    def train_prior(self) -> prior.Prior:
        latents = self.encode_scenes()
        origin = self._check_origin(
            "prior",
            {
                "codec": vae.encoder_digest(self._codec()),
                "world": scene_cache.world_digest(),
                "scaling_factor": 1 / float(latents.float().std()),
            },
        )
        notes = self.pool("prior", self.scenes).notes
        captions = [[note[form] for form in scene_cache.CAPTION_FORMS] for note in notes]
        flat = [caption for forms in captions for caption in forms]
        spoken = [*LOOK_WORDS.values(), *WEATHER_WORDS.values(), *TIME_WORDS.values(), *NUMBERS, *PLURALS.values()]
        tokenizer = self._tokenizer([*flat, *world.TAXONOMY.names, *world.TAXONOMY.phrases, *spoken])
        tokens = text.tokenize(tokenizer, flat).view(len(notes), len(scene_cache.CAPTION_FORMS), text.MAX_LENGTH)
        return prior.train(
            self._new_prior(tokenizer).to(self.device),
            latents * origin["scaling_factor"],
            tokens,
            text.tokenize(tokenizer, [""])[0],
            folder=self.folder / "prior",
            # At the full rate the loss stands still after some 2,500 updates; what is gained is gained while it falls.
            schedule=loop.Schedule(
                updates=self.updates["prior"], peak_rate=1e-3, decay_share=0.7, average_decay=0.9995
            ),
            probe=lambda average, step: self._preview(self._pipeline(average, tokenizer), step),
        )

    def _preview(self, pipeline: StableDiffusionPipeline, step: int) -> dict[str, float]:
        """Leave a contact sheet beside the checkpoint: the loss hardly says what a look does."""
        images = gates.draw(pipeline, gates.SHEET_PROMPTS, seed=0)
        gates.contact_sheet(images, gates.SHEET_PROMPTS).save(self.folder / "prior" / f"preview_{step:06d}.png")
        return {"mean brightness": float(images.mean()), "spread": float(images.std())}

    def _new_prior(self, tokenizer: CLIPTokenizer) -> prior.Prior:
        shipped, networks = self._shipped(), prior.Prior(text.build_encoder(tokenizer), prior.build_unet())
        if shipped is not None:
            networks.text_encoder.load_state_dict(shipped.text_encoder.state_dict())
            networks.unet.load_state_dict(shipped.unet.state_dict())
        return networks

    def pipeline(self) -> StableDiffusionPipeline:
        """The model as it stands in the cache: averaged weights, float32."""
        home = self.folder / "prior"
        if not (home / "checkpoint.safetensors").exists():
            raise UserError(f"no trained prior in {home}; run `datagen pocket train --stages prior` first")
        tokenizer = CLIPTokenizer.from_pretrained(home / "tokenizer")
        networks = prior.Prior(text.build_encoder(tokenizer), prior.build_unet())
        networks.load_state_dict(training_state.averaged_weights(home / "checkpoint.safetensors"))
        return self._pipeline(networks.to(self.device).eval(), tokenizer)

    def _pipeline(self, networks: prior.Prior, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
        codec = self.codec()
        origin = read_json(self.folder / "prior" / "origin.json")
        codec.register_to_config(scaling_factor=origin["scaling_factor"])
        return prior.assemble(networks, codec, tokenizer)

    def train_judge(self, folder: Path | None = None) -> nn.Module:
        """`folder`: of its checkpoint; the workshop's own judge when None."""
        return judge.train(
            judge.build().to(self.device),
            self.pool("judge", self.judge_scenes),
            folder=folder or self.folder / "judge",
            schedule=judge.schedule_of(self.updates["judge"]),
        )
