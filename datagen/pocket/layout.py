"""Where things stand: a street is drawn at random, then filled from both kerbs outwards."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.random import Generator

from datagen.pocket import objects, scenery
from datagen.pocket.camera import Camera
from datagen.pocket.canvas import Canvas
from datagen.pocket.ground import Street
from datagen.pocket.materials import RGB
from datagen.pocket.objects import Pose

PAINTS: dict[str, RGB] = {
    "red": (0.62, 0.08, 0.08),
    "blue": (0.1, 0.2, 0.58),
    "green": (0.1, 0.38, 0.18),
    "yellow": (0.85, 0.68, 0.1),
    "white": (0.86, 0.86, 0.86),
    "grey": (0.45, 0.46, 0.48),
    "black": (0.06, 0.06, 0.07),
}
WALLS: tuple[RGB, ...] = (
    (0.55, 0.25, 0.18), (0.75, 0.68, 0.55), (0.82, 0.8, 0.76), (0.5, 0.5, 0.52), (0.4, 0.46, 0.55),
    (0.78, 0.55, 0.35), (0.62, 0.68, 0.55), (0.3, 0.27, 0.26), (0.85, 0.7, 0.45), (0.66, 0.42, 0.4),
)  # fmt: skip
ROOFS: tuple[RGB, ...] = ((0.5, 0.2, 0.13), (0.25, 0.24, 0.26), (0.38, 0.3, 0.24), (0.3, 0.38, 0.36))
LEAVES: tuple[RGB, ...] = (
    (0.13, 0.33, 0.1),
    (0.22, 0.4, 0.12),
    (0.1, 0.26, 0.15),
    (0.5, 0.38, 0.1),
    (0.55, 0.25, 0.1),
    (0.3, 0.34, 0.2),
)
TERRAINS: tuple[RGB, ...] = (
    (0.22, 0.38, 0.12),
    (0.35, 0.42, 0.16),
    (0.52, 0.45, 0.28),
    (0.42, 0.33, 0.22),
    (0.5, 0.48, 0.44),
)

_PERSON_M = 1.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One thing of the scene, ready to be drawn under a surface number of its own."""

    category: str
    color: str
    """Name of its paint, for captions; empty where nobody would say it."""
    pose: Pose
    draw: Callable[[Canvas, int], Float[np.ndarray, "points 3"] | None]
    """Draws it under a surface number; returns its keypoints in the world, where it has any."""
    shadow_m: tuple[float, float] = (0.0, 0.0)
    """Width and length of its shadow on the ground."""


@dataclass(slots=True, kw_only=True)
class Layout:
    """A street, a camera in it, and what stands there."""

    street: Street
    camera: Camera
    things: list[Placed] = field(default_factory=list[Placed])
    lamps: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])


def vary(rng: Generator, color: RGB, amount: float = 0.12) -> RGB:
    """The same paint on another day."""
    values = np.clip(np.array(color) * rng.uniform(1 - amount, 1 + amount) + rng.uniform(-0.3, 0.3, 3) * amount, 0, 1)
    return (float(values[0]), float(values[1]), float(values[2]))


def pick(rng: Generator, colors: tuple[RGB, ...], amount: float = 0.15) -> RGB:
    return vary(rng, colors[int(rng.integers(len(colors)))], amount)


def draw_layout(rng: Generator, *, height: int, width: int) -> Layout:
    """A random street for a picture of this size in pixels."""
    bend = 0.0 if rng.random() < 0.35 else float(rng.uniform(-0.011, 0.011))
    grey = float(rng.uniform(0.16, 0.42))
    street = Street(
        half_width_m=float(rng.choice([3.0, 3.6, 4.5, 6.0])),
        sidewalks_m=tuple(0.0 if rng.random() < 0.15 else float(rng.uniform(1.6, 3.6)) for _ in range(2)),  # pyright: ignore[reportArgumentType]
        bend_per_m=bend,
        road=vary(rng, (grey, grey * 0.99, grey * rng.uniform(0.9, 1.08)), 0.1),
        sidewalk=pick(rng, ((0.55, 0.54, 0.52), (0.66, 0.6, 0.5), (0.5, 0.36, 0.3), (0.4, 0.4, 0.42))),
        terrain=pick(rng, TERRAINS),
        marking=vary(rng, (0.8, 0.8, 0.76) if rng.random() < 0.75 else (0.8, 0.62, 0.12)),
        markings=str(rng.choice(["dashed", "dashed", "double", "none"])),
        crossing_z_m=float(rng.uniform(6, 18)) if rng.random() < 0.25 else -1.0,
    )
    side = 1.0 if rng.random() < 0.8 else -1.0
    on_sidewalk = rng.random() < 0.2 and street.sidewalks_m[int(side > 0)] > 0
    lane = street.half_width_m + 1.0 if on_sidewalk else street.half_width_m * rng.uniform(0.1, 0.75)
    field_of_view = np.deg2rad(rng.uniform(48, 66))
    camera = Camera(
        height=height,
        width=width,
        focal_px=float(max(height, width) / 2 / np.tan(field_of_view / 2)),
        x_m=float(side * lane),
        y_m=float(rng.uniform(1.3, 2.1) if rng.random() < 0.75 else rng.uniform(2.1, 4.5)),
        yaw_rad=float(np.deg2rad(np.clip(rng.normal(-4 * side, 7), -14, 14))),
        pitch_rad=float(np.deg2rad(rng.uniform(-1, 9))),
    )
    layout = Layout(street=street, camera=camera)
    for sign in (-1.0, 1.0):
        _fill_side(rng, layout, sign)
    _fill_road(rng, layout)
    return layout


def step_closer(rng: Generator, layout: Layout) -> None:
    """Zoom in on somebody, who is put on the street if nobody is there."""
    people = [thing for thing in layout.things if thing.category == "person"]
    if not people:
        z = float(rng.uniform(5, 10))
        aside = float(rng.uniform(-1, 1)) * layout.street.half_width_m
        _add_person(rng, layout, float(layout.street.center(z)) + aside, z)
        people = layout.things[-1:]
    pose, camera = people[int(rng.integers(len(people)))].pose, layout.camera
    dx, distance = pose.x_m - camera.x_m, float(np.hypot(pose.x_m - camera.x_m, pose.z_m))
    tall = float(rng.uniform(0.4, 0.75)) * min(camera.height, camera.width)
    layout.camera = replace(
        camera,
        focal_px=max(camera.focal_px, tall * distance / _PERSON_M),
        yaw_rad=float(np.arctan2(dx, pose.z_m) + rng.uniform(-0.5, 0.5) * _PERSON_M / distance),
        pitch_rad=float(np.arctan2(camera.y_m - 0.5 * _PERSON_M, distance) + rng.uniform(-0.1, 0.1) / distance),
    )


def _facing(camera: Camera, x: float, z: float) -> Pose:
    return Pose(x_m=x, z_m=z, heading_rad=float(np.arctan2(x - camera.x_m, z)))


def _along(street: Street, aside: float, z: float, *, turned: float = 0.0) -> Pose:
    return Pose(x_m=float(street.center(z)) + aside, z_m=z, heading_rad=street.heading(z) + turned)


def _fill_side(rng: Generator, layout: Layout, sign: float) -> None:
    """Houses, trees, posts and people from one kerb outwards; `sign` -1 is the left side."""
    street = layout.street
    sidewalk = street.sidewalks_m[0 if sign < 0 else 1]
    kerb = street.half_width_m
    character = str(rng.choice(["city", "suburb", "park"], p=[0.45, 0.35, 0.2]))
    leaves = pick(rng, LEAVES)
    setback = {"city": rng.uniform(0, 1.5), "suburb": rng.uniform(2.5, 7), "park": 12.0}[character]
    _add_buildings(rng, layout, character, edge=kerb + sidewalk + setback, sign=sign)
    _add_greenery(rng, layout, character, leaves, edge=kerb + sidewalk, setback=setback, sign=sign)
    _add_posts(rng, layout, kerb=kerb, sign=sign)
    _add_walkers(rng, layout, kerb=kerb, walkway=max(sidewalk, 1.4), sign=sign)


def _add_buildings(rng: Generator, layout: Layout, character: str, *, edge: float, sign: float) -> None:
    z = float(rng.uniform(-6, 4))
    while z < 95 and character != "park":
        frontage, depth = float(rng.uniform(6, 16)), float(rng.uniform(7, 12))
        tall = float(rng.uniform(6, 20)) if character == "city" else float(rng.uniform(3.2, 7))
        paints = (pick(rng, WALLS), pick(rng, ROOFS))
        pose = _along(layout.street, sign * (edge + depth / 2), z + frontage / 2)
        house = _thing(rng, "building", "", pose, scenery.building, *paints, width=depth, depth=frontage, height=tall)
        if z + frontage > 3:
            layout.things.append(house)
        gaps, often = [0.0, 0.6, 3.0, 9.0], [0.4, 0.2, 0.2, 0.2]
        z += frontage + float(rng.choice(gaps, p=often) if character == "city" else rng.uniform(2, 12))


def _add_greenery(
    rng: Generator, layout: Layout, character: str, leaves: RGB, *, edge: float, setback: float, sign: float
) -> None:
    street, things = layout.street, layout.things
    green = {"city": 0.35, "suburb": 0.9, "park": 1.0}[character]
    spacing = {"city": 11.0, "suburb": 9.0, "park": 5.0}[character]
    for stand in np.arange(rng.uniform(4, 9), 75, spacing):
        if rng.random() < green:
            beyond = rng.uniform(0.3, 1.2) if character == "city" else rng.uniform(0.5, max(1.5, setback))
            low = rng.random() < 0.25
            x = float(street.center(stand)) + sign * (edge + beyond)
            pose = _facing(layout.camera, x, float(stand + rng.uniform(-2, 2)))
            shape, tint = (scenery.bush if low else scenery.tree), vary(rng, leaves, 0.15)
            things.append(_thing(rng, "vegetation", "", pose, shape, tint, shadow_m=(2.4, 1.6)))
    if character == "park" or rng.random() < 0.2:  # a wood on the horizon
        for stand in np.arange(-30, 60, 7.0):
            pose = Pose(x_m=float(sign * (abs(stand) + edge + 6)), z_m=float(85 + rng.uniform(-6, 6)))
            things.append(_thing(rng, "vegetation", "", pose, scenery.tree, vary(rng, leaves, 0.2)))


def _add_posts(rng: Generator, layout: Layout, *, kerb: float, sign: float) -> None:
    """Street lamps or bare posts at even distances, and traffic signs on posts of their own."""
    street, camera, things = layout.street, layout.camera, layout.things
    if rng.random() < 0.55:
        gap, tall = float(rng.uniform(11, 20)), float(rng.uniform(4.2, 6.5))
        lamp = rng.random() < 0.7
        for stand in np.arange(rng.uniform(5, 12), 48, gap):
            x = float(street.center(stand)) + sign * (kerb + 0.45)
            pose, arm = _facing(camera, x, float(stand)), (-sign * 1.5 if lamp else 0.0)
            things.append(_thing(rng, "pole", "", pose, scenery.pole, height=tall, arm=arm))
            if lamp:
                layout.lamps.append((x + arm, float(stand)))
    for _ in range(int(rng.choice([0, 1, 2], p=[0.4, 0.4, 0.2]))):
        stand, tall = float(rng.uniform(4.5, 16)), float(rng.uniform(2.1, 2.9))
        pose = _facing(camera, float(street.center(stand)) + sign * (kerb + 0.6), stand)
        things.append(_thing(rng, "pole", "", pose, scenery.pole, height=tall))
        things.append(_thing(rng, "traffic sign", "", pose, scenery.sign, height=tall))


def _add_walkers(rng: Generator, layout: Layout, *, kerb: float, walkway: float, sign: float) -> None:
    """People on the pavement, and perhaps a parked bicycle."""
    street = layout.street
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.35, 0.3, 0.2, 0.15]))):
        stand = float(rng.uniform(4, 15))
        aside = sign * (kerb + rng.uniform(0.3, walkway))
        _add_person(rng, layout, float(street.center(stand)) + aside, stand)
    if rng.random() < 0.3:
        stand = float(rng.uniform(4.5, 13))
        turned = float(rng.uniform(0.9, 2.2))
        pose = _along(street, sign * (kerb + rng.uniform(0.5, walkway)), stand, turned=turned)
        layout.things.append(_painted(rng, "bicycle", pose, objects.bicycle, shadow_m=(0.6, 1.6)))


def _fill_road(rng: Generator, layout: Layout) -> None:
    """Parked and driving cars, buses, riders and people who cross."""
    street, camera = layout.street, layout.camera
    taken: list[tuple[float, float, float]] = []

    def free(x: float, z: float, reach: float) -> bool:
        inside = abs(x - camera.x_m) < 1.6 and z < 5.5
        return not inside and all(abs(x - ox) > 2.1 or abs(z - oz) > reach + half for ox, oz, half in taken)

    wanted = int(rng.choice([0, 1, 2, 3, 4, 6], p=[0.08, 0.2, 0.24, 0.22, 0.16, 0.1]))
    for _ in range(wanted):
        large = rng.random() < 0.2
        z = float(rng.uniform(6, 28) if not large else rng.uniform(9, 30))
        side = float(rng.choice([-1.0, 1.0]))
        parked = rng.random() < 0.55 and street.half_width_m > 3.2
        aside = side * (street.half_width_m - 1.1 if parked else 0.48 * street.half_width_m)
        reach = 6.5 if large else 2.8
        pose = _along(street, aside, z, turned=(0.0 if side > 0 else np.pi) + float(rng.normal(0, 0.04)))
        if rng.random() < 0.08:  # somebody turns
            pose = _along(street, aside, z, turned=float(rng.uniform(0, 2 * np.pi)))
        if not free(pose.x_m, z, reach):
            continue
        taken.append((pose.x_m, z, reach))
        kind, shape = ("bus", objects.bus) if large else ("car", objects.car)
        layout.things.append(_painted(rng, kind, pose, shape, shadow_m=(3.0, 12.0) if large else (2.3, 5.2)))
    if rng.random() < 0.28:  # a rider
        z, aside = float(rng.uniform(5, 15)), float(rng.uniform(-0.8, 0.8) * street.half_width_m)
        pose = _along(street, aside, z, turned=float(rng.choice([0.5, 1.2, 1.6, 2.4, -0.7, -1.5])))
        if free(pose.x_m, z, 1.5):
            taken.append((pose.x_m, z, 1.2))
            layout.things.append(_painted(rng, "bicycle", pose, objects.bicycle, shadow_m=(0.6, 1.6)))
            _add_person(rng, layout, pose.x_m, z, seat_m=0.5)
    if rng.random() < 0.22:
        z = street.crossing_z_m if street.crossing_z_m > 0 else float(rng.uniform(6, 16))
        for _ in range(int(rng.integers(1, 3))):
            _add_person(
                rng,
                layout,
                float(street.center(z) + rng.uniform(-0.9, 0.9) * street.half_width_m),
                z + float(rng.uniform(-0.8, 0.8)),
            )


def _thing(rng: Generator, category: str, color: str, pose: Pose, shape: Callable[..., Any], *paints: RGB,
           shadow_m: tuple[float, float] = (0.0, 0.0), **settings: float) -> Placed:  # fmt: skip
    child = rng.spawn(1)[0]

    def draw(canvas: Canvas, surface: int) -> Float[np.ndarray, "points 3"] | None:
        return shape(canvas, child, pose, *paints, surface, **settings)

    return Placed(category=category, color=color, pose=pose, draw=draw, shadow_m=shadow_m)


def _painted(
    rng: Generator, category: str, pose: Pose, shape: Callable[..., None], *, shadow_m: tuple[float, float]
) -> Placed:
    name = str(rng.choice(list(PAINTS)))
    return _thing(rng, category, name, pose, shape, vary(rng, PAINTS[name]), shadow_m=shadow_m)


def _add_person(rng: Generator, layout: Layout, x: float, z: float, *, seat_m: float = 0.0) -> None:
    clothes = [vary(rng, PAINTS[str(rng.choice(list(PAINTS)))], 0.25) for _ in range(2)]
    pose = _facing(layout.camera, x, z)
    layout.things.append(_thing(rng, "person", "", pose, objects.person, *clothes, shadow_m=(0.7, 0.5), seat_m=seat_m))
