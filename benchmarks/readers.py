"""What benchmarks fit side by side: our reader, the same on a random UNet, and networks that see the picture alone."""

import hashlib
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from diffusers import UNet2DConditionModel
from jaxtyping import UInt8
from torch import Tensor, nn

from benchmarks.cells import Cell
from datagen.datasets import AnnotatedImages
from datagen.model import Model
from decoders.cache import FitProgress
from decoders.checkpoint import Checkpoint, ModelReference, choose_device, load_checkpoint
from decoders.decoder import Standardise, Trunk, TrunkFeatures, resize
from decoders.features import FeatureBundle, FeatureSpec, Perceiver, to_pixels
from decoders.labels import Taxonomy
from decoders.manifest import FORMAT
from decoders.perceivers.unet import UnetPerceiver
from decoders.reader import Reader, fit_reader
from decoders.settings import DecoderSettings, FitSettings

RATES = {"reader": (4e-3,), "random UNet": (4e-3,), "U-Net": (3e-4, 1e-3, 3e-3)}
"""The reader's own default, as users fit it; the U-Net's best of three, inside which it lies on scenes that no cell
uses."""
OURS: dict[str, Any] = {"decoder": FORMAT}
"""Part of every cell that our decoder decides: what an earlier one gave is not taken for it."""
OBJECTS: dict[str, Any] = {"objects": "queries and parts, whole"}
"""Part of every cell in which our head finds objects, whatever it stands on: as OURS."""
NORMALS: dict[str, Any] = {"normals": "concentration from the angle"}
"""Part of every cell in which our head says normals, or other tasks beside it."""
MODEL = ModelReference(source="package://datagen.pocket/weights")


def model_digest() -> str:
    """Names the model in cells; no weight is loaded for it."""
    return Model(MODEL).base_digest[:16]


class PictureOnly:
    """A perceiver that perceives nothing: the baseline has the picture alone."""

    size_multiple = 32
    spec = FeatureSpec(model_digest="", strides=(), channels=(), attention_maps=(), settings={})

    def perceive(self, images: UInt8[np.ndarray, "batch height width 3"], *, look: int = 0) -> FeatureBundle:
        del look
        return FeatureBundle(image=to_pixels(images, choose_device(None)), levels=(), attention=())


class Remembering:
    """A perceiver that looks at the same batch once: the rates of a method fit on the same views."""

    def __init__(self, perceiver: Perceiver) -> None:
        self.perceiver = perceiver
        self.spec = perceiver.spec
        self.size_multiple = perceiver.size_multiple
        self.known: dict[bytes, FeatureBundle] | None = {}
        """None = remember no more, so that unseen pictures do not pile up in memory."""

    def perceive(self, images: UInt8[np.ndarray, "batch height width 3"], *, look: int = 0) -> FeatureBundle:
        if self.known is None:
            return self.perceiver.perceive(images, look=look)
        key = hashlib.sha256(look.to_bytes(2) + images.tobytes()).digest()
        if key not in self.known:  # in half precision, as the fit keeps them
            self.known[key] = self.perceiver.perceive(images, look=look).to(torch.float16)
        return self.known[key]


class UnetTrunk(Trunk):
    """segmentation-models-pytorch's U-Net without pretrained weights, in the place of our trunk."""

    def __init__(self, _spec: FeatureSpec, settings: DecoderSettings) -> None:
        nn.Module.__init__(self)
        self.standardise = nn.ModuleList()
        self.open_vocabulary = False
        channels = (256, 128, 64, 32, settings.fine_width)
        self.network = smp.Unet("resnet18", encoder_weights=None, decoder_channels=channels, classes=1)
        self.deep_channels = self.fine_channels = settings.fine_width

    def forward(self, bundle: FeatureBundle) -> TrunkFeatures:
        features = self.network.decoder(self.network.encoder(bundle.image))
        return TrunkFeatures(deep=features, fine=features)


class UnetWithMemory(UnetTrunk):
    """The same for tasks that ask the deep features: those of its decoder at an eighth of the size."""

    def __init__(self, spec: FeatureSpec, settings: DecoderSettings) -> None:
        super().__init__(spec, settings)
        self.widen = nn.Conv2d(128, settings.width, 1)
        self.deep_channels = settings.width

    def forward(self, bundle: FeatureBundle) -> TrunkFeatures:
        seen: list[Tensor] = []
        eighth: nn.Module = self.network.decoder.blocks[1]
        # For the length of the call: a hook that stays would be copied with the network, and still fill this list.
        hook = eighth.register_forward_hook(lambda *call: seen.append(call[2]))
        features = super().forward(bundle)
        hook.remove()
        return TrunkFeatures(deep=self.widen(seen[0]), fine=features.fine)


class LinearTrunk(Trunk):
    """Nothing but the features themselves, standardised, on the finest grid: what task heads read off is linear."""

    def __init__(self, spec: FeatureSpec, settings: DecoderSettings) -> None:
        nn.Module.__init__(self)
        self.open_vocabulary = False
        inputs = [features + maps for features, maps in zip(spec.channels, spec.attention_maps, strict=True)]
        self.standardise = nn.ModuleList(Standardise(channels) for channels in inputs)
        self.deep_channels = sum(inputs)
        self.fine_channels = settings.fine_width

    def forward(self, bundle: FeatureBundle) -> TrunkFeatures:
        grid = bundle.levels[-1].shape[-2:]
        levels = [
            resize(standardise(level), grid)
            for standardise, level in zip(self.standardise, self._inputs(bundle), strict=True)
        ]
        batch, _, height, width = bundle.image.shape
        return TrunkFeatures(
            deep=torch.cat(levels, dim=1), fine=bundle.image.new_zeros(batch, self.fine_channels, height, width)
        )


class Timed:
    """Listens to a fit: seconds of its updates, without those in which held-out pictures are read."""

    def __init__(self) -> None:
        self.evaluated_s: list[float] = []
        """From the start of the fit, views included, to each evaluation."""
        self.views_s = 0.0
        """Until all views were perceived."""
        self._started: float | None = None
        self._before = 0.0
        self._updates: list[float] = []

    def __call__(self, progress: FitProgress) -> None:
        now = time.perf_counter()
        if self._started is None:  # told before the first view is perceived, when the model is loaded
            self._started = self._before = now
        if progress.stage == "fit":
            if progress.message:
                self.evaluated_s.append(now - self._started)
            else:
                self._updates.append(now - self._before)
        else:
            self.views_s = now - self._started
        self._before = now

    @property
    def update_s(self) -> float:
        return statistics.median(self._updates)


def random_unet(checkpoint: Checkpoint, seed: int) -> Checkpoint:
    """The same model with every weight of its UNet drawn anew, as diffusers initialises it."""
    torch.manual_seed(seed)
    fresh: Any = UNet2DConditionModel.from_config(checkpoint.unet.config)
    checkpoint.unet.load_state_dict(fresh.state_dict())
    return checkpoint


def perceiver_of(method: str, phrases: Sequence[str], seed: int, **reading: Any) -> Perceiver:
    """What a method sees of a picture; `reading` are choices of `UnetPerceiver`, where a UNet is read."""
    if method == "U-Net":
        return PictureOnly()
    checkpoint = load_checkpoint(MODEL)
    if method == "random UNet":
        checkpoint = random_unet(checkpoint, seed)
    return UnetPerceiver(checkpoint, phrases=phrases, **reading)


def fit_best(
    cell: Cell,
    pictures: AnnotatedImages,
    tasks: Mapping[str, Mapping[str, Any]],
    settings: dict[str, Any],
    *,
    taxonomy: Taxonomy | None = None,
) -> tuple[Reader, float]:
    """The fit with the best held-out merit over the method's learning rates.

    Args:
        cell: says the method, the seed, the rates and, for a UNet that is not read by default, the reading.
        taxonomy: the pictures' own, or that with other phrases.
    """
    method, seed = cell["method"], cell["seed"]
    taxonomy = taxonomy or pictures.taxonomy
    perceiver = Remembering(perceiver_of(method, taxonomy.phrases, seed, **cell.get("reading", {})))
    best: tuple[float, Reader, float] | None = None
    for rate in cell["rates"]:
        reader = fit_reader(
            perceiver,
            pictures,
            taxonomy,
            tasks=tasks,
            settings=FitSettings(seed=seed, learning_rate=rate, **settings),
            trunk=UnetTrunk if method == "U-Net" else Trunk,
        )
        merit = max(point["merit"] for point in reader.manifest.report["points"])
        print(f"  {method} rate {rate:g}: held out {merit:.3f}", flush=True)
        if best is None or merit > best[0]:
            best = (merit, reader, rate)
    assert best is not None
    perceiver.known = None
    return best[1], best[2]
