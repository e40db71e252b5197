"""Small pictures with exact truth: a striped ground, a dotted disc, a plain sky; depth falls towards the lower edge."""

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float32

from decoders.labels import (
    AnnotatedImage,
    InstanceSet,
    Skeleton,
    Taxonomy,
    metric_depth,
    semantic_map,
    surface_normals,
)

TAXONOMY = Taxonomy(
    names=("sky", "ground", "ball"),
    is_thing=(False, False, True),
    colors=((0, 0, 255), (0, 255, 0), (255, 0, 0)),
    skeleton=Skeleton(class_name="ball", points=("centre", "left_end", "right_end"), bones=((1, 2),)),
)


def toy_picture(seed: int, height: int = 48, width: int = 64) -> AnnotatedImage:
    stream = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    horizon = height * stream.uniform(0.3, 0.5)
    ids = np.where(y < horizon, 1, 2).astype(np.uint8)
    meters = np.where(y < horizon, np.inf, 1.5 * height / (y - horizon + 1)).astype(np.float32)
    radius = height * stream.uniform(0.15, 0.25)
    center = (horizon + height * 0.25, width * stream.uniform(0.25, 0.75))
    ball = (y - center[0]) ** 2 + (x - center[1]) ** 2 < radius**2
    ids[ball], meters[ball] = 3, 3.0
    facing = np.select([(ids == 2)[..., None], (ids == 3)[..., None]], [(0.0, 1.0, 0.0), (0.0, 0.0, 1.0)], 0.0)
    paint = np.stack([90 + 0 * x, 110 + 40 * (x % 4 < 2), 100 + 60 * ((x + y) % 6 < 3)])[
        ids - 1, y.astype(int), x.astype(int)
    ]
    image = paint[..., None] + stream.normal(0, 8, (height, width, 3)) + stream.uniform(-20, 20, 3)
    return AnnotatedImage(
        name=f"toy{seed}",
        image=image.clip(0, 255).astype(np.uint8),
        labels={
            "semantic": semantic_map(ids),
            "depth": metric_depth(meters),
            "instances": replace(truth_of(ball), keypoints_px=_points(center, radius, width)),
            "normals": surface_normals(facing.astype(np.float32)),
        },
    )


def _points(center: tuple[float, float], radius: float, width: int) -> Float32[np.ndarray, "1 3 3"]:
    """Centre and both ends of the horizontal diameter, where they lie in the picture."""
    places = [(center[1] + shift, center[0]) for shift in (0.0, -radius, radius)]
    return np.array([[(x, y, 2) if 0 <= x <= width - 1 else (0, 0, 0) for x, y in places]], np.float32)


def truth_of(*masks: Bool[np.ndarray, "height width"]) -> InstanceSet:
    """Each mask a ball."""
    return InstanceSet(
        masks=np.stack(masks),
        category_ids=np.full(len(masks), 3, np.int64),
        scores=np.ones(len(masks), np.float32),
        is_crowd=np.zeros(len(masks), bool),
    )


def toy_pictures(count: int, first: int = 0, height: int = 48, width: int = 64) -> list[AnnotatedImage]:
    return [toy_picture(first + index, height, width) for index in range(count)]
