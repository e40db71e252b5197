"""What does not move: houses, trees, lamp posts, signs."""

import numpy as np
from numpy.random import Generator

from datagen.pocket.canvas import Canvas
from datagen.pocket.materials import RGB, Material
from datagen.pocket.objects import Pose, box, disc

SIGN_SHAPES = {"round": (12, 0.0), "triangle": (3, np.pi / 2), "octagon": (8, np.pi / 8), "square": (4, np.pi / 4)}
SIGN_COLORS: tuple[RGB, ...] = (
    (0.75, 0.08, 0.1),
    (0.1, 0.25, 0.7),
    (0.9, 0.75, 0.1),
    (0.85, 0.85, 0.85),
    (0.1, 0.5, 0.25),
)


def building(
    canvas: Canvas,
    rng: Generator,
    pose: Pose,
    wall: RGB,
    roof: RGB,
    surface: int,
    *,
    width: float,
    depth: float,
    height: float,
) -> None:
    """A block with windows; low ones may carry a gable roof, tall ones a flat one."""
    storey = float(rng.uniform(2.6, 3.6))
    texture = "blinds" if height > 9 and rng.random() < 0.35 else "windows"
    glass = tuple(np.array([0.2, 0.24, 0.3]) * rng.uniform(0.5, 2.4))
    facade = Material(color=wall, texture=texture, scale=storey, strength=0.25, second=glass)
    box(canvas, pose, width=width, height=height, length=depth, material=facade, surface=surface)
    if rng.random() < 0.5:  # a ground floor of another colour: shops, plinths
        plinth = Material(
            color=tuple(np.clip(np.array(wall) * rng.uniform(0.4, 1.3), 0, 1)), texture="brick", scale=0.5
        )
        box(canvas, pose, width=width + 0.1, height=1.0, length=depth + 0.1, material=plinth, surface=surface)
    if height < 8 and rng.random() < 0.75:
        rise, w, d = float(rng.uniform(1.2, 3.2)), width / 2 + 0.3, depth / 2 + 0.3
        tiles = Material(color=roof, texture="brick", scale=0.35, strength=0.3, second=tuple(np.array(roof) * 0.6))
        front = Material(color=wall, texture="noise", scale=2.0, strength=0.15)
        for side in (-w, w):
            slope = np.array([[side, height, -d], [side, height, d], [0.0, height + rise, d], [0.0, height + rise, -d]])
            canvas.polygon(pose.place(slope), tiles, surface)
        for end in (-depth / 2, depth / 2):
            gable = np.array([[-width / 2, height, end], [width / 2, height, end], [0.0, height + rise, end]])
            canvas.polygon(pose.place(gable), front, surface)


def crown(rng: Generator, shape: str, *, radius: float, base: float, height: float, points: int = 22) -> np.ndarray:
    """The ragged outline of a tree or bush in its front plane."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    ragged = 1 + rng.uniform(-0.16, 0.1, points)
    x, y = np.cos(angle) * ragged, np.sin(angle) * ragged
    if shape == "cone":
        x = x * (1 - y) * 0.62
    elif shape == "bush":
        y = np.maximum(y, -0.5)
    return np.stack([radius * x, base + height * (y + 1) / 2, np.zeros(points)], axis=1)


def tree(canvas: Canvas, rng: Generator, pose: Pose, leaves: RGB, surface: int) -> None:
    """Trunk and crown; some cone-shaped, some poplars. The trunk belongs to the vegetation."""
    shape = str(rng.choice(["round", "round", "cone", "poplar"]))
    height, radius = float(rng.uniform(3.5, 8)), float(rng.uniform(1.2, 2.6))
    if shape == "poplar":
        height, radius = height + 2, radius * 0.5
    base = float(rng.uniform(0.5, 2.2))
    bark = Material(color=tuple(np.array([0.3, 0.22, 0.15]) * rng.uniform(0.6, 1.5)), texture="noise", scale=0.5)
    trunk = np.array([[-0.16, 0, 0], [0.16, 0, 0], [0.1, base + 1.0, 0], [-0.1, base + 1.0, 0]])
    canvas.polygon(pose.place(trunk), bark, surface)
    for layer in range(3):  # three blots give the crown some relief
        tint = np.clip(np.array(leaves) * (0.75 + 0.22 * layer), 0, 1)
        material = Material(color=tuple(tint), texture="leaves", scale=0.9, strength=0.3)
        shrink = 1 - 0.22 * layer
        blot = crown(
            rng, shape, radius=radius * shrink, base=base + 0.15 * layer * height, height=(height - base) * shrink
        )
        blot += [rng.uniform(-0.25, 0.25) * radius * (layer > 0), 0.0, -0.15 * layer]
        canvas.polygon(pose.place(blot), material, surface)


def bush(canvas: Canvas, rng: Generator, pose: Pose, leaves: RGB, surface: int) -> None:
    """A bush, or a stretch of clipped hedge."""
    material = Material(color=leaves, texture="leaves", scale=0.7, strength=0.3)
    if rng.random() < 0.5:
        box(
            canvas,
            pose,
            width=0.8,
            height=float(rng.uniform(0.7, 1.5)),
            length=float(rng.uniform(3, 7)),
            material=material,
            surface=surface,
        )
    else:
        canvas.polygon(
            pose.place(crown(rng, "bush", radius=float(rng.uniform(0.7, 1.5)), base=-0.4, height=2.2)),
            material,
            surface,
        )


def pole(canvas: Canvas, rng: Generator, pose: Pose, surface: int, *, height: float, arm: float = 0.0) -> None:
    """A post as wide as a hand is long; `arm` > 0 makes it a street lamp reaching over the road."""
    metal = Material(color=tuple(np.array([0.36, 0.37, 0.38]) * rng.uniform(0.4, 1.9)))
    thick = float(rng.uniform(0.09, 0.15))
    shaft = np.array([[-thick, 0, 0], [thick, 0, 0], [thick * 0.8, height, 0], [-thick * 0.8, height, 0]])
    canvas.polygon(pose.place(shaft), metal, surface)
    if arm:
        beam = np.array([[0, height - 0.1, 0], [arm, height + 0.2, 0], [arm, height + 0.36, 0], [0, height + 0.12, 0]])
        canvas.polygon(pose.place(beam), metal, surface)
        lamp = np.array([[-0.35, 0.05, -0.02], [0.3, 0.05, -0.02], [0.3, 0.28, -0.02], [-0.35, 0.28, -0.02]])
        lamp += [arm, height, 0]
        canvas.polygon(pose.place(lamp), Material(color=(0.85, 0.82, 0.7), emission=1.2), surface)


def sign(canvas: Canvas, rng: Generator, pose: Pose, surface: int, *, height: float) -> None:
    """A board in front of its pole, one of four shapes, with a bar or a rim; or a traffic light."""
    if rng.random() < 0.3:
        case = np.array([[-0.24, 0, -0.05], [0.24, 0, -0.05], [0.24, 1.15, -0.05], [-0.24, 1.15, -0.05]])
        case += [0, height - 0.9, 0]
        canvas.polygon(pose.place(case), Material(color=(0.06, 0.07, 0.06)), surface)
        lit = int(rng.integers(3))
        for index, color in enumerate(((0.1, 0.85, 0.35), (0.95, 0.7, 0.1), (0.95, 0.12, 0.08))):
            bright = 1.0 if index == lit else 0.18
            lens = disc((0.0, height - 0.7 + 0.37 * index, -0.08), 0.16, plane="front", points=10)
            lamp = Material(color=tuple(np.array(color) * bright), emission=0.9 * (index == lit))
            canvas.polygon(pose.place(lens), lamp, surface)
        return
    points, turn = SIGN_SHAPES[str(rng.choice(list(SIGN_SHAPES)))]
    radius = float(rng.uniform(0.38, 0.55))
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False) + turn
    board = np.stack([radius * np.cos(angle), height + radius * np.sin(angle), np.full(points, -0.06)], axis=1)
    first, second = rng.permutation(len(SIGN_COLORS))[:2]
    canvas.polygon(pose.place(board), Material(color=SIGN_COLORS[first]), surface)
    middle = np.array([0.0, height, -0.08])
    inner = (board - middle) * [0.62, 0.62 if rng.random() < 0.6 else 0.22, 0] + middle
    canvas.polygon(pose.place(inner), Material(color=SIGN_COLORS[second]), surface)
