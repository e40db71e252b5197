"""DatasetDM's recipe, rebuilt from a description of its facts (arXiv 2308.06160) to measure our reader against.

What makes it that recipe: all block outputs of the UNet from two passes (without and with a prompt, stacked on the
channels), the attention of every head to every token of the prompt as channels, almost no noise, levels upsampled
before they are projected, a query decoder of ten layers of which the last alone is supervised, a picture an update, and
a pass of the model at each update, Adam at 1e-4, classes below 5,000 of 512 x 512 pixels never said. In its favour: our
augmented views, the step that is best on held-out pictures (it takes the last), our matching over all pixels in the
place of 12,544 drawn ones, objects that are told apart where they overlap, and classes also measured without that
threshold, under which small ones cannot be found at all. Against it: nothing that we know of, but 2,000 updates of one
picture, as it has them, are 2,000 views, where our readers see 4,800.
"""

import time
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from datagen.datasets import AnnotatedImages
from decoders.augmentation import Augmentation, make_view
from decoders.cache import learnable
from decoders.checkpoint import Checkpoint
from decoders.decoder import Trunk, resize
from decoders.features import FeatureBundle, to_pixels
from decoders.labels import AnnotatedImage, DenseMap, Label, Taxonomy, semantic_map
from decoders.phrases import ReadingContext
from decoders.queries import sine_positions
from decoders.resizing import Size
from decoders.tasks import Score
from decoders.tasks.instances import Instances, Objects
from decoders.tasks.semantic import SemanticScore
from decoders.training import split
from decoders.unet_pass import read_unet

WIDTH, LAYERS, HEADS, STAGES = 256, 10, 8, 4


class EveryBlock:
    """A perceiver: the output of every block and every head's attention to every token of one prompt."""

    def __init__(self, checkpoint: Checkpoint, prompt: str) -> None:
        self.checkpoint = checkpoint
        self.layers = tuple(_block_outputs(checkpoint.unet))
        encoded: tuple[Any, ...] = checkpoint.pipeline.encode_prompt(
            prompt=[prompt, ""], device=checkpoint.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        self.prompt, self.empty = encoded[0][:1], encoded[0][1:]

    @torch.no_grad()
    def perceive(self, images: UInt8[np.ndarray, "batch height width 3"]) -> FeatureBundle:
        pixels = to_pixels(images, self.checkpoint.device)
        with self.checkpoint.bare():
            latents = self.checkpoint.encode(pixels).to(self.checkpoint.dtype)  # noise of timestep 0 is next to none
            size = (int(pixels.shape[2]), int(pixels.shape[3]))
            without, _ = self._pass(latents, self.empty, size, classes=0)
            levels, attention = self._pass(latents, self.prompt, size, classes=self.prompt.shape[1])
        return FeatureBundle(
            image=pixels,
            levels=tuple(torch.cat(pair, dim=1) for pair in zip(without, levels, strict=True)),
            attention=tuple(maps / self.prompt.shape[1] for maps in attention),
        ).to(torch.float32)

    def _pass(
        self, latents: Tensor, tokens: Tensor, size: Size, *, classes: int
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        return read_unet(
            self.checkpoint.unet,
            latents,
            ReadingContext(tokens=tokens, pooled=None),
            timestep=0,
            layers=self.layers,
            classes=classes,
            reduction="heads",
            image_size=size,
        )


def _block_outputs(unet: nn.Module) -> list[str]:
    """conv_in, the transformers (or the residual blocks, where a block has none) and the resizers of every block."""
    found = ["conv_in", "mid_block"]
    for group in ("down_blocks", "up_blocks"):
        for name, block in unet.get_submodule(group).named_children():
            parts: Any = block
            kind = "attentions" if getattr(parts, "attentions", None) else "resnets"
            found += [f"{group}.{name}.{kind}.{index}" for index in range(len(getattr(parts, kind)))]
            found += [
                f"{group}.{name}.{kind}.0" for kind in ("downsamplers", "upsamplers") if getattr(parts, kind, None)
            ]
    return found


class _Block(nn.Module):
    """norm, ReLU, convolution, twice; a batch of one makes the norm one over the picture."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.InstanceNorm2d(before, eps=1e-4),
            nn.ReLU(),
            spectral_norm(nn.Conv2d(before, after, 3, padding=1)),
            nn.InstanceNorm2d(after, eps=1e-4),
            nn.ReLU(),
            spectral_norm(nn.Conv2d(after, after, 3, padding=1)),
        )
        self.short = spectral_norm(nn.Conv2d(before, after, 1))

    def forward(self, x: Float[Tensor, "batch before rows columns"]) -> Float[Tensor, "batch after rows columns"]:
        return self.short(x) + self.body(x)


class PixelDecoder(nn.Module):
    """Coarse levels upsampled, projected and joined with the finer ones; `wide` where nothing is reduced (depth)."""

    def __init__(self, channels: Sequence[int], *, wide: bool = False) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(count, WIDTH, 1, bias=False) for count in channels)
        widths = [WIDTH * (number + 1 if wide else 1) for number in range(len(channels))]
        self.join = nn.ModuleList(_Block(before + WIDTH, after) for before, after in pairwise(widths))
        self.channels = widths[-1]

    def forward(self, bundle: FeatureBundle) -> list[Float[Tensor, "batch _ _ _"]]:
        """All stages, coarse -> fine, the last on the finest grid."""
        grids = [level.shape[-2:] for level in bundle.levels]
        inputs = [torch.cat(pair, dim=1) for pair in zip(bundle.levels, bundle.attention, strict=True)]
        stages: list[Tensor] = []
        for number, (features, project) in enumerate(zip(inputs, self.project, strict=True)):
            finer = grids[min(number + 1, len(grids) - 1)]
            level = project(resize(features, finer))
            if stages:
                level = self.join[number - 1](torch.cat([resize(stages[-1], finer), level], dim=1))
            stages.append(level)
        return stages


class _QueryLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward; norms come last."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.talk = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.think = nn.Sequential(nn.Linear(WIDTH, 2048), nn.ReLU(), nn.Linear(2048, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))

    def forward(self, x: Tensor, places: Tensor, keys: Tensor, memory: Tensor, hidden: Tensor) -> Tensor:
        x = self.norms[0](x + self.look(x + places, keys, memory, attn_mask=hidden, need_weights=False)[0])
        x = self.norms[1](x + self.talk(x + places, x + places, x, need_weights=False)[0])
        return self.norms[2](x + self.think(x))


class QueryDecoder(nn.Module):
    """Ten layers of queries over the stages of the pixel decoder in turn."""

    def __init__(self, queries: int, classes: int) -> None:
        super().__init__()
        self.contents = nn.Parameter(torch.randn(queries, WIDTH))
        self.places = nn.Parameter(torch.randn(queries, WIDTH))
        self.levels = nn.Parameter(torch.randn(STAGES, WIDTH))
        self.layers = nn.ModuleList(_QueryLayer() for _ in range(LAYERS))
        self.classify = nn.Linear(WIDTH, classes + 1)
        self.embed = nn.Sequential(
            *(layer for _ in range(3) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())), nn.Linear(WIDTH, WIDTH)
        )

    def forward(self, stages: Sequence[Float[Tensor, "batch width _ _"]], pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits and mask embeddings of the last layer."""
        batch = len(pixels)
        x, places = (part.expand(batch, -1, -1) for part in (self.contents, self.places))
        for number, layer in enumerate(self.layers):
            stage = stages[number % len(stages)]
            logits = torch.einsum("bqw,bwyx->bqyx", self.embed(x), resize(pixels, stage.shape[-2:]))
            hidden = logits.detach().flatten(2) < 0
            hidden &= ~hidden.all(dim=2, keepdim=True)
            memory = stage.flatten(2).transpose(1, 2) + self.levels[number % len(stages)]
            keys = memory + sine_positions(stage).flatten(2).transpose(1, 2)
            x = layer(x, places, keys, memory, hidden.repeat_interleave(HEADS, dim=0))
        return self.classify(x), self.embed(x)


class RecipeNetwork(nn.Module):
    """Pixel and query decoder: what the recipe fits for classes or objects."""

    def __init__(self, channels: Sequence[int], *, queries: int, classes: int) -> None:
        super().__init__()
        self.pixels = PixelDecoder(channels)
        self.queries = QueryDecoder(queries, classes)

    def forward(self, bundle: FeatureBundle) -> Objects:
        stages = self.pixels(bundle)
        rows, columns = stages[-1].shape[-2:]
        pixels = resize(stages[-1], (rows * 5 // 2, columns * 5 // 2))  # 64 x 64 cells become 160 x 160
        classes, embeddings = self.queries(stages, pixels)
        height, width = bundle.image.shape[-2:]
        nothing = pixels.new_zeros(len(pixels), 1, height, width)
        embeddings = functional.pad(embeddings, (0, 1))
        return Objects(
            classes=classes[:, None], embeddings=embeddings[:, None], deep=pixels, fine=nothing, seen=nothing[:, :0]
        )


class RecipeDepth(nn.Module):
    """Its depth head: two convolutions at the size of the picture, the first of them 1024 wide at four levels."""

    def __init__(self, channels: Sequence[int], *, farthest_m: float = 80.0) -> None:
        super().__init__()
        self.pixels = PixelDecoder(channels, wide=True)
        width = self.pixels.channels
        self.head = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 1, 3, padding=1))
        self.farthest_m = farthest_m

    def forward(self, bundle: FeatureBundle) -> Float[Tensor, "batch 1 height width"]:
        size = bundle.image.shape[-2:]
        return self.head(resize(self.pixels(bundle)[-1], size)).sigmoid() * self.farthest_m


class ClassRegions(Instances):
    """Semantic classes as the recipe says them: a query for the whole region of each class."""

    learns_from = "semantic"
    smallest_share = 5000 / 512**2
    """Of a picture, that a class must cover to be said at all."""

    def __init__(self, trunk: Trunk, taxonomy: Taxonomy, *, queries: int, minimum_score: float) -> None:
        everything = replace(taxonomy, is_thing=(True,) * len(taxonomy))
        super().__init__(trunk, everything, queries=queries, parts=False, minimum_score=minimum_score)

    def target(self, label: Label) -> UInt8[Tensor, "2 height width"]:
        assert isinstance(label, DenseMap)
        ids = np.where(label.valid, label.values[..., 0], 0).astype(np.uint8)
        return torch.from_numpy(np.stack([np.where(ids > 0, ids, 255), np.maximum(ids, 1) - 1]).astype(np.uint8))

    @torch.no_grad()
    def read(self, output: Objects, size: Size) -> list[Label]:
        found: list[Label] = []
        logits = torch.einsum("bqw,bwyx->bqyx", output.embeddings[:, -1, :, :-1], output.deep)
        for classes, masks in zip(output.classes[:, -1].softmax(-1), logits, strict=True):
            said = torch.einsum("qc,qyx->cyx", classes[:, :-1], resize(masks[None], size)[0].sigmoid())
            area = (said * (said > 0.5)).sum((1, 2))
            said[1:][area[1:] < self.smallest_share * size[0] * size[1]] = 0
            found.append(semantic_map(said.argmax(0).add(1).byte().cpu().numpy()))
        return found

    def score(self) -> Score:
        return SemanticScore(self.taxonomy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """How good a fit was after how long, on the pictures held out."""

    seconds: list[float]
    merits: list[float]


class Recipe:
    """One task of the recipe: a network, its loss, and updates of one picture each that run the model."""

    def __init__(self, perceiver: EveryBlock, task: Instances, *, seed: int) -> None:
        self.device = perceiver.checkpoint.device
        self.perceiver, self.task = perceiver, cast(Instances, cast(nn.Module, task).to(self.device))
        self.label = task.learns_from or "instances"
        torch.manual_seed(seed)
        network = RecipeNetwork(_channels(perceiver), queries=len(task.contents), classes=len(task.things))
        self.network = network.to(self.device)
        self.seed = seed

    def fit(self, pictures: AnnotatedImages, *, updates: int, evaluations: int = 8) -> Curve:
        """As many updates as asked for, of which the best is kept; held-out pictures are read beside the clock."""
        name = self.label
        learned, held = split(len(pictures), holdout=0.2, seed=self.seed)
        loaded = [learnable(picture, {name: self.task}) for picture in pictures]
        stream = np.random.default_rng(self.seed)
        optimiser = torch.optim.Adam(self.network.parameters(), lr=1e-4)
        curve = Curve(seconds=[], merits=[])
        best = self.network.state_dict()
        spent, started = 0.0, time.perf_counter()
        for step in range(1, updates + 1):
            picture = loaded[int(stream.choice(learned))]
            view = make_view(
                picture, view=step, size=picture.image.shape[:2], augmentation=Augmentation(), seed=(self.seed, step)
            )
            output = self.network(self.perceiver.perceive(view.image[None]))
            loss = self.task.loss(output, self.task.target(view.labels[name])[None].to(self.device))
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            if step % max(1, updates // evaluations) == 0:
                spent += time.perf_counter() - started
                curve.seconds.append(spent)
                curve.merits.append(self.score([loaded[index] for index in held]).merit or 0.0)
                if curve.merits[-1] >= max(curve.merits):
                    best = deepcopy(self.network.state_dict())
                started = time.perf_counter()
        self.network.load_state_dict(best)
        return curve

    @torch.no_grad()
    def score(self, pictures: Iterable[AnnotatedImage]) -> Score:
        name = self.label
        score = self.task.score()
        for picture in pictures:
            output = self.network(self.perceiver.perceive(picture.image[None]))
            score.add(self.task.read(output, picture.image.shape[:2])[0], picture.labels[name])
        return score


def depth_updates(perceiver: EveryBlock, pictures: Sequence[AnnotatedImage]) -> float:
    """Seconds of an update of the recipe's depth head, in the mean over one update for each picture."""
    device = perceiver.checkpoint.device
    network = RecipeDepth(_channels(perceiver)).to(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
    started = time.perf_counter()
    for picture in pictures:
        truth = picture.labels["depth"]
        assert isinstance(truth, DenseMap)
        meters = torch.from_numpy(truth.values[None, ..., 0]).to(device)
        valid = torch.from_numpy(truth.valid[None]).to(device)
        found = network(perceiver.perceive(picture.image[None]))[:, 0]
        error = meters[valid].log() - found[valid].clamp_min(1e-3).log()
        loss = (error.square().mean() - 0.5 * error.mean().square()).sqrt()
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
    return (time.perf_counter() - started) / len(pictures)


def _channels(perceiver: EveryBlock) -> list[int]:
    """Features and attention of each level, coarse -> fine."""
    bundle = perceiver.perceive(np.zeros((1, 64, 64, 3), np.uint8))
    return [level.shape[1] + maps.shape[1] for level, maps in zip(bundle.levels, bundle.attention, strict=True)]
