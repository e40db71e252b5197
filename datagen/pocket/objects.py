"""Things that move, built of flat polygons; several variants of each, so that no outline gives a class away."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.random import Generator

from datagen.pocket.canvas import Canvas
from datagen.pocket.materials import RGB, Material
from decoders.labels import Skeleton

PERSON = Skeleton(
    class_name="person",
    points=(
        "head", "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
        "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
    ),
    bones=((1, 2), (1, 3), (3, 5), (2, 4), (4, 6), (1, 7), (2, 8), (7, 8), (7, 9), (9, 11), (8, 10), (10, 12)),
)  # fmt: skip
"""People look at the camera: their left is on the right of the picture."""

GLASS: RGB = (0.16, 0.2, 0.25)
TYRE = Material(color=(0.05, 0.05, 0.055))

# Side views of cars as (metres forward, metres up), seen from the left.
CAR_PROFILES: dict[str, Sequence[tuple[float, float]]] = {
    "sedan": [
        (-2.2, 0.3), (2.2, 0.3), (2.25, 0.75), (1.3, 0.95), (0.6, 1.42), (-0.9, 1.44), (-1.6, 1.0), (-2.25, 0.95),
    ],
    "hatchback": [(-1.8, 0.3), (1.9, 0.3), (1.95, 0.8), (1.1, 1.0), (0.5, 1.5), (-1.4, 1.52), (-1.85, 1.0)],
    "suv": [(-2.2, 0.4), (2.2, 0.4), (2.25, 1.0), (1.2, 1.15), (0.7, 1.78), (-2.0, 1.8), (-2.25, 1.1)],
    "van": [(-2.4, 0.35), (2.3, 0.35), (2.4, 0.9), (1.9, 1.2), (1.2, 2.1), (-2.35, 2.15), (-2.45, 0.9)],
    "pickup": [
        (-2.5, 0.45), (2.4, 0.45), (2.45, 1.0), (1.3, 1.1), (0.8, 1.7), (-0.4, 1.72), (-0.5, 1.1), (-2.5, 1.1),
    ],
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """Where a thing stands on the ground and which way it faces."""

    x_m: float
    z_m: float
    heading_rad: float = 0.0
    """0 faces along z, away from the camera; positive turns right."""

    def place(self, points: Float[np.ndarray, "points 3"]) -> Float[np.ndarray, "points 3"]:
        """Own frame (right, up, forward) -> world."""
        sine, cosine = np.sin(self.heading_rad), np.cos(self.heading_rad)
        turn = np.array([[cosine, 0.0, -sine], [0.0, 1.0, 0.0], [sine, 0.0, cosine]])
        return points @ turn + [self.x_m, 0.0, self.z_m]


def disc(center: Sequence[float], radius: float, *, plane: str, points: int = 14) -> Float[np.ndarray, "points 3"]:
    """A regular polygon; plane "side" lies in (up, forward), "front" in (right, up)."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    first, second = radius * np.cos(angle), radius * np.sin(angle)
    zero = np.zeros(points)
    columns = (zero, first, second) if plane == "side" else (first, second, zero)
    return np.stack(columns, axis=1) + np.asarray(center)


def box(
    canvas: Canvas,
    pose: Pose,
    *,
    width: float,
    height: float,
    length: float,
    material: Material,
    surface: int,
    base: float = 0.0,
) -> None:
    """An upright box standing on its footprint's centre."""
    w, d, y0, y1 = width / 2, length / 2, base, base + height
    corners = [(-w, -d), (w, -d), (w, d), (-w, d)]
    for (xa, za), (xb, zb) in zip(corners, [*corners[1:], corners[0]], strict=True):
        wall = np.array([[xa, y0, za], [xa, y1, za], [xb, y1, zb], [xb, y0, zb]])
        canvas.polygon(pose.place(wall), material, surface)
    top = np.array([[x, y1, z] for x, z in corners])
    canvas.polygon(pose.place(top), Material(color=material.color), surface)


def shadow(canvas: Canvas, pose: Pose, *, width: float, length: float, ground: int) -> None:
    """Dark ground under a thing."""
    angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    outline = np.stack([width / 2 * np.cos(angle), np.full(16, 0.0), length / 2 * np.sin(angle)], axis=1)
    canvas.darken_ground(pose.place(outline), 0.55, ground)


def vehicle(
    canvas: Canvas,
    pose: Pose,
    profile: Sequence[tuple[float, float]],
    *,
    width: float,
    color: RGB,
    surface: int,
    wheel_m: float,
    window_band: tuple[float, float] | None = None,
) -> None:
    """A profile pulled to a width. Slanted upper strips are glass; `window_band` adds a row of side windows (a bus)."""
    outline = np.array(profile)
    top, half = outline[:, 1].max(), width / 2
    paintwork = Material(color=color, texture="noise", scale=3.0, strength=0.05)
    glass = Material(color=GLASS)
    for (za, ya), (zb, yb) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        steep = abs(yb - ya) > 0.25 and max(ya, yb) > 0.8 * top and abs(zb - za) < 1.2
        strip = np.array([[-half, ya, za], [half, ya, za], [half, yb, zb], [-half, yb, zb]])
        canvas.polygon(pose.place(strip), glass if steep and top < 2.5 else paintwork, surface)
    for side in (-half, half):
        flank = np.stack([np.full(len(outline), side), outline[:, 1], outline[:, 0]], axis=1)
        canvas.polygon(pose.place(flank), paintwork, surface)
        outward = side * 1.01
        if window_band is None:
            cabin = outline[outline[:, 1] > 0.62 * top]
            pane = np.stack(
                [
                    np.full(len(cabin), outward),
                    0.06 * top + 0.88 * cabin[:, 1],
                    0.86 * cabin[:, 0] + 0.14 * cabin[:, 0].mean(),
                ],
                axis=1,
            )
            if len(pane) > 2:
                canvas.polygon(pose.place(pane), glass, surface)
        else:
            low, high = window_band
            for start in np.arange(outline[:, 0].min() + 0.4, outline[:, 0].max() - 1.4, 1.5):
                pane = np.array(
                    [
                        [outward, low, start],
                        [outward, low, start + 1.2],
                        [outward, high, start + 1.2],
                        [outward, high, start],
                    ]
                )
                canvas.polygon(pose.place(pane), Material(color=GLASS, emission=0.35), surface)
        for axle in (0.62 * outline[:, 0].min(), 0.62 * outline[:, 0].max()):
            canvas.polygon(pose.place(disc((outward * 1.01, wheel_m, axle), wheel_m, plane="side")), TYRE, surface)
            hub = disc((outward * 1.03, wheel_m, axle), 0.5 * wheel_m, plane="side", points=8)
            canvas.polygon(pose.place(hub), Material(color=(0.5, 0.5, 0.52)), surface)
    lights = ((outline[:, 0].max() + 0.03, (1.0, 0.95, 0.8)), (outline[:, 0].min() - 0.05, (0.75, 0.05, 0.05)))
    for end, lamp in lights:
        for side in (-0.36 * width, 0.36 * width):
            square = np.array([[-0.16, 0.62, 0], [0.16, 0.62, 0], [0.16, 0.85, 0], [-0.16, 0.85, 0]])
            square += [side, 0.05, end]
            canvas.polygon(pose.place(square), Material(color=lamp, emission=0.9), surface)
    if window_band is not None:  # the wind-screen of a bus
        for end in (outline[:, 0].max() + 0.03, outline[:, 0].min() - 0.03):
            pane = np.array([[-0.42, 0, 0], [0.42, 0, 0], [0.42, 1, 0], [-0.42, 1, 0]]) * [width, 1.2, 1]
            pane += [0, window_band[0], end]
            canvas.polygon(pose.place(pane), Material(color=GLASS, emission=0.25), surface)


def car(canvas: Canvas, rng: Generator, pose: Pose, color: RGB, surface: int) -> None:
    profile = CAR_PROFILES[str(rng.choice(list(CAR_PROFILES)))]
    vehicle(canvas, pose, profile, width=float(rng.uniform(1.7, 1.95)), color=color, surface=surface, wheel_m=0.34)


def bus(canvas: Canvas, rng: Generator, pose: Pose, color: RGB, surface: int) -> None:
    half, height = float(rng.uniform(4.2, 5.8)), float(rng.uniform(2.8, 3.4))
    profile = [(-half, 0.4), (half, 0.4), (half + 0.1, 1.3), (half - 0.15, height), (-half, height)]
    vehicle(
        canvas, pose, profile, width=2.5, color=color, surface=surface, wheel_m=0.48, window_band=(1.35, height - 0.55)
    )


def person(
    canvas: Canvas, rng: Generator, pose: Pose, top: RGB, legs: RGB, surface: int, *, seat_m: float = 0.0
) -> Float[np.ndarray, "points 3"]:
    """A standing or walking figure turned to the camera; `seat_m` lifts a rider onto a bicycle.

    Returns the points of `PERSON` in the world.
    """
    height = float(rng.choice([1.2, 1.6, 1.7, 1.8])) if seat_m == 0 else 1.65
    skin = Material(color=tuple(np.clip(np.array([0.82, 0.62, 0.5]) * rng.uniform(0.4, 1.1), 0, 1)))
    shirt, cloth = Material(color=top, texture="noise", scale=0.6, strength=0.1), Material(color=legs)
    hip, neck = 0.48 * height + seat_m, 0.84 * height + seat_m
    if seat_m:
        hip, neck = 0.95, 0.95 + 0.36 * height
    stride, girth = float(rng.uniform(0.02, 0.22)), float(rng.uniform(0.2, 0.27))
    figures: list[tuple[list[tuple[float, float]], Material]] = []
    foot, ankle = 0.35 if seat_m else 0.0, stride
    if rng.random() < 0.25 and not seat_m:  # a skirt or a long coat
        ankle = 0.05
        figures.append(([(-0.3, 0.25), (0.3, 0.25), (girth, hip + 0.1), (-girth, hip + 0.1)], cloth))
        figures.append(([(-0.1, 0.0), (0.1, 0.0), (0.1, 0.3), (-0.1, 0.3)], skin))
    else:
        for side in (-1, 1):
            leg = [
                (side * stride - 0.08, foot),
                (side * stride + 0.09, foot),
                (0.17 * (side + 0.2), hip),
                (0.17 * (side - 0.9), hip),
            ]
            figures.append((leg, cloth))
    figures.append(([(-0.18, hip - 0.05), (0.18, hip - 0.05), (girth, neck), (-girth, neck)], shirt))
    reach = float(rng.uniform(0.05, 0.22))
    for side in (-1, 1):
        arm = [
            (side * girth, neck),
            (side * (girth - 0.08), neck - 0.1),
            (side * (girth + reach - 0.06), hip),
            (side * (girth + reach + 0.05), hip),
        ]
        figures.append((arm, shirt))
    for layer, (outline, material) in enumerate(figures):
        flat = np.array([[x, y, -0.01 * layer] for x, y in outline])
        canvas.polygon(pose.place(flat), material, surface)
    head = disc((0.0, neck + 0.13, -0.07), 0.125, plane="front", points=12)
    canvas.polygon(pose.place(head), skin, surface)
    hair = disc((0.0, neck + 0.2, -0.08), 0.11, plane="front", points=12)
    canvas.polygon(
        pose.place(hair), Material(color=tuple(np.array([0.25, 0.16, 0.1]) * rng.uniform(0.2, 2.2))), surface
    )
    joints: list[tuple[float, float]] = []
    pairs = (
        ((girth - 0.04, neck - 0.05), (girth + 0.5 * reach - 0.02, 0.5 * (neck + hip)), (girth + reach, hip + 0.03)),
        ((0.11, hip), (0.5 * (0.11 + ankle), 0.5 * (hip + foot)), (ankle, foot + 0.05)),
    )
    for limb in pairs:  # from the body outwards, left before right
        joints += [(side * x, y) for x, y in limb for side in (1, -1)]
    return pose.place(np.array([(x, y, -0.07) for x, y in ((0.0, neck + 0.13), *joints)]))


def bicycle(canvas: Canvas, rng: Generator, pose: Pose, color: RGB, surface: int) -> None:
    """Seen from its own side; the label covers the wheels whole, as annotators draw it."""
    radius = float(rng.uniform(0.31, 0.36))
    frame = Material(color=color)
    for axle in (-0.52, 0.52):
        spokes = Material(color=(0.25, 0.25, 0.26), opacity=0.35)
        canvas.polygon(pose.place(disc((0.0, radius, axle), radius, plane="side")), TYRE, surface)
        canvas.polygon(pose.place(disc((-0.01, radius, axle), 0.75 * radius, plane="side")), spokes, surface)
        canvas.polygon(pose.place(disc((0.01, radius, axle), 0.75 * radius, plane="side")), spokes, surface)
    bars = [
        ((-0.52, radius), (-0.15, 0.85)),
        ((-0.15, 0.85), (0.4, 0.85)),
        ((0.4, 0.95), (0.52, radius)),
        ((-0.05, 0.3), (0.4, 0.8)),
        ((-0.05, 0.3), (-0.2, 0.95)),
        ((-0.5, radius), (-0.05, 0.3)),
    ]
    for (za, ya), (zb, yb) in bars:
        normal = np.array([-(yb - ya), zb - za]) / np.hypot(zb - za, yb - ya) * 0.045
        for side in (-0.02, 0.02):
            tube = [
                [side, ya + normal[1], za + normal[0]],
                [side, yb + normal[1], zb + normal[0]],
                [side, yb - normal[1], zb - normal[0]],
                [side, ya - normal[1], za - normal[0]],
            ]
            canvas.polygon(pose.place(np.array(tube)), frame, surface)
    saddle = np.array([[0.0, 0.95, -0.35], [0.0, 1.0, -0.05], [0.0, 0.9, -0.05]])
    canvas.polygon(pose.place(saddle), TYRE, surface)
    handle = np.array([[0.0, 0.92, 0.3], [0.0, 1.05, 0.5], [0.0, 0.98, 0.5]])
    canvas.polygon(pose.place(handle), TYRE, surface)
