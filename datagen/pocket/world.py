"""The street world: one seed is one scene with its picture and the exact truth about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int16, Num, UInt8

from datagen.pocket.atmosphere import (
    Domain,
    add_air,
    add_precipitation,
    develop,
    draw_domain,
    draw_view_m,
    light_of,
    paint_sky,
)
from datagen.pocket.camera import Camera
from datagen.pocket.canvas import Canvas
from datagen.pocket.captions import Captions, describe
from datagen.pocket.ground import ROAD, SIDEWALK, SKY, TERRAIN, draw_ground
from datagen.pocket.layout import Layout, draw_layout, step_closer
from datagen.pocket.objects import PERSON, shadow
from decoders.errors import UserError
from decoders.labels import InstanceSet, LabelSet, Taxonomy, metric_depth, semantic_map, surface_normals
from decoders.resizing import inside

SIZE = 128
"""Height and width of a scene unless asked otherwise, in pixels."""
OVERSAMPLING = 2
VISIBLE_PIXELS = 16
"""An object or class that shows fewer pixels at 128 x 128 is neither counted nor captioned."""
LOST_IN_AIR = 2.3
"""Beyond this many times the view distance, 10 % of the contrast is left: what stands there is not seen."""

TAXONOMY = Taxonomy(
    names=(
        "sky", "road", "sidewalk", "terrain", "building", "vegetation",
        "pole", "traffic sign", "car", "bus", "bicycle", "person",
    ),
    is_thing=(False, False, False, False, False, False, False, True, True, True, True, True),
    colors=(
        (70, 130, 180), (128, 64, 128), (244, 35, 232), (152, 251, 152), (70, 70, 70), (107, 142, 35),
        (190, 190, 190), (220, 220, 0), (0, 0, 200), (0, 90, 100), (119, 11, 32), (220, 20, 60),
    ),
    skeleton=PERSON,
)  # fmt: skip

SEEDS: Mapping[str, range] = MappingProxyType(
    {
        "prior": range(1_000_000),
        "few_shot": range(1_000_000, 1_100_000),
        "judge": range(1_100_000, 1_200_000),
        "test": range(1_200_000, 1_300_000),
    }
)
"""Which scenes may be used for what: the model's training, fitting readers, the judge's training, measuring."""


CHANGES: tuple[str, ...] = ()
"""A word for each change of what is drawn of a seed, or said of it: what was made of scenes before is then stale."""


def seeds_of(split: str, *, first: int, count: int) -> range:
    """Scene seeds `first` .. `first + count - 1` of a split, numbered from 0.

    Raises:
        UserError: no such split, or the numbers leave it: scenes of two splits must never mix.
    """
    if split not in SEEDS:
        raise UserError(f"unknown split {split!r}; the pocket world has {', '.join(SEEDS)}")
    whole = SEEDS[split]
    if first < 0 or count < 0 or first + count > len(whole):
        raise UserError(
            f"scenes {first}..{first + count - 1} of split {split!r} do not exist; it holds 0..{len(whole) - 1}: "
            "choose a smaller seed or count"
        )
    return whole[first : first + count]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A picture of the world and what is true about it."""

    seed: int
    domain: Domain
    image: UInt8[np.ndarray, "height width 3"]
    semantic: UInt8[np.ndarray, "height width"]
    """1..12; every pixel is known."""
    depth: Float32[np.ndarray, "height width"]
    """Metres along the optical axis, inf in the sky."""
    normals: Float32[np.ndarray, "height width 3"]
    """Unit vectors: right, up, toward the camera; 0 in the sky."""
    instances: InstanceSet
    """The visible countable objects, front to back order of their drawing not implied."""
    visible: tuple[str, ...]
    """Names of the classes that can be seen, in the taxonomy's order."""
    captions: Captions

    @property
    def labels(self) -> LabelSet:
        return {
            "semantic": semantic_map(self.semantic),
            "depth": metric_depth(self.depth),
            "normals": surface_normals(self.normals),
            "instances": self.instances,
        }


def render_scene(
    seed: int,
    *,
    domain: Domain | None = None,
    held_out: bool = False,
    close_up: bool = False,
    height: int = SIZE,
    width: int = SIZE,
) -> Scene:
    """Draw the scene of a seed. The same seed stands for the same street in every domain.

    Args:
        domain: look, weather and time; drawn from the seed when left out.
        held_out: whether a drawn domain may be the look or weather that the model never saw.
        close_up: the same street through a longer lens, with somebody large in the picture.
    """
    chosen = draw_domain(np.random.default_rng([seed, 0]), held_out=held_out) if domain is None else domain
    layout = draw_layout(np.random.default_rng([seed, 1]), height=OVERSAMPLING * height, width=OVERSAMPLING * width)
    if close_up:
        step_closer(np.random.default_rng([seed, 4]), layout)
    rng = np.random.default_rng([seed, 2])
    canvas, keypoints = _draw(layout, chosen, rng)
    view_m = draw_view_m(chosen, rng)
    light = add_precipitation(add_air(canvas, chosen, view_m), chosen, rng)
    small = cv2.resize(light, (width, height), interpolation=cv2.INTER_AREA)
    image = develop(small.astype(np.float32), chosen, rng)

    surface, depth, normals = _shrink(canvas.surface, canvas.depth, canvas.normal)
    categories = np.array(
        [0, SKY, ROAD, SIDEWALK, TERRAIN, *(1 + TAXONOMY.names.index(thing.category) for thing in layout.things)],
        np.uint8,
    )
    semantic = categories[surface]
    threshold = VISIBLE_PIXELS * height * width / SIZE**2
    clear = (semantic == SKY) | (depth < LOST_IN_AIR * view_m)
    counts = np.bincount(semantic[clear], minlength=len(TAXONOMY) + 1)
    visible = tuple(name for index, name in enumerate(TAXONOMY.names, start=1) if counts[index] >= threshold)
    sizes = np.bincount(surface[clear], minlength=len(categories))
    seen = [number for number in range(TERRAIN + 1, len(categories)) if sizes[number] >= threshold]
    countable = [number for number in seen if TAXONOMY.is_thing[categories[number] - 1]]
    objects = [
        (layout.things[number - TERRAIN - 1].category, layout.things[number - TERRAIN - 1].color)
        for number in countable
    ]
    return Scene(
        seed=seed,
        domain=chosen,
        image=image,
        semantic=semantic,
        depth=depth,
        normals=_camera_view(normals, layout.camera),
        instances=_instances(surface, countable, categories, keypoints),
        visible=visible,
        captions=describe(np.random.default_rng([seed, 3]), chosen, visible, objects),
    )


def _draw(
    layout: Layout, domain: Domain, rng: np.random.Generator
) -> tuple[Canvas, dict[int, Float[np.ndarray, "points 2"]]]:
    """The picture, and where the keypoints of some surfaces lie in it (x, y), be they seen or not."""
    canvas = Canvas(layout.camera, light_of(domain, rng), textured=domain.look != "game")
    keypoints: dict[int, Float[np.ndarray, "points 2"]] = {}
    snow = float(rng.uniform(0.75, 1.0)) if domain.weather == "snow" else 0.0
    draw_ground(canvas, layout.street, layout.lamps, wet=domain.weather == "rain", snow=snow)
    paint_sky(canvas, domain, rng)
    for thing in layout.things:
        width, length = thing.shadow_m
        if width:
            shadow(canvas, thing.pose, width=width, length=length, ground=TERRAIN)
    # Near things first: what they cover is then skipped early. The depth test makes the order irrelevant, but for
    # see-through wheels, which need what is behind them drawn before.
    order = sorted(
        range(len(layout.things)),
        key=lambda index: (layout.things[index].category == "bicycle", layout.things[index].pose.z_m),
    )
    for index in order:
        points = layout.things[index].draw(canvas, TERRAIN + 1 + index)
        if points is not None:
            keypoints[TERRAIN + 1 + index] = layout.camera.project_points(points)
    return canvas, keypoints


def _shrink(
    surface: Int16[np.ndarray, "tall wide"],
    depth: Float32[np.ndarray, "tall wide"],
    normal: Float32[np.ndarray, "tall wide 3"],
) -> tuple[
    Int16[np.ndarray, "height width"], Float32[np.ndarray, "height width"], Float32[np.ndarray, "height width 3"]
]:
    """Four samples -> one pixel: the surface most of them show, mean depth and summed normal of just these samples."""
    samples, distances = _blocks(surface), _blocks(np.where(np.isfinite(depth), depth, 0.0))
    votes = (samples[..., :, None] == samples[..., None, :]).sum(axis=-1)
    winner = np.take_along_axis(samples, votes.argmax(axis=-1)[..., None], axis=-1)
    agree: Bool[np.ndarray, "height width 4"] = samples == winner
    mean = np.where(agree, distances, 0.0).sum(axis=-1) / agree.sum(axis=-1)
    directions = np.stack([np.where(agree, _blocks(axis), 0.0).sum(axis=-1) for axis in np.moveaxis(normal, -1, 0)], -1)
    return (
        winner[..., 0],
        np.where(winner[..., 0] == SKY, np.inf, mean).astype(np.float32),
        directions.astype(np.float32),
    )


def _camera_view(
    directions: Float32[np.ndarray, "height width 3"], camera: Camera
) -> Float32[np.ndarray, "height width 3"]:
    """World directions of any length as unit vectors in camera axes: right, up, toward the camera."""
    turned = directions @ (camera.axes * [[1.0], [1.0], [-1.0]]).T
    length = np.linalg.norm(turned, axis=-1, keepdims=True)
    return np.divide(turned, length, out=np.zeros_like(turned), where=length > 1e-6).astype(np.float32)


def _blocks(plane: Num[np.ndarray, "tall wide"]) -> Num[np.ndarray, "height width samples"]:
    """The samples of each pixel side by side."""
    height, width = plane.shape[0] // OVERSAMPLING, plane.shape[1] // OVERSAMPLING
    blocks = plane.reshape(height, OVERSAMPLING, width, OVERSAMPLING).transpose(0, 2, 1, 3)
    return blocks.reshape(height, width, OVERSAMPLING**2)


def _instances(
    surface: Int16[np.ndarray, "height width"],
    numbers: list[int],
    categories: UInt8[np.ndarray, " surfaces"],
    keypoints: Mapping[int, Float[np.ndarray, "points 2"]],
) -> InstanceSet:
    count = len(numbers)
    points = np.zeros((count, len(PERSON.points), 3), np.float32)
    for index, number in enumerate(numbers):
        if number in keypoints:
            points[index] = _visibility(keypoints[number] / OVERSAMPLING - 0.5, surface == number)
    return InstanceSet(
        masks=surface[None] == np.array(numbers, np.int16).reshape(count, 1, 1),
        category_ids=categories[numbers].astype(np.int64),
        scores=np.ones(count, np.float32),
        is_crowd=np.zeros(count, np.bool_),
        keypoints_px=points,
    )


def _visibility(
    places: Float[np.ndarray, "points 2"], mask: Bool[np.ndarray, "height width"]
) -> Float32[np.ndarray, "points 3"]:
    """Places (x, y) with COCO's visibility: 2 on the object's own pixels or beside one, 1 elsewhere in the picture."""
    points = np.zeros((len(places), 3), np.float32)
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    for index in np.flatnonzero(inside(places, (mask.shape[0], mask.shape[1]))):
        x, y = places[index]
        points[index] = x, y, 2 if grown[round(y), round(x)] else 1
    return points
