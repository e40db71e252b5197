"""The ground and the sky: everything that fills the picture before the first object stands in it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32
from numpy.random import Generator

from datagen.pocket.canvas import Canvas
from datagen.pocket.materials import RGB, sample_noise

SKY, ROAD, SIDEWALK, TERRAIN = 1, 2, 3, 4
"""Surface numbers of what has no objects; they equal the semantic ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Street:
    """A road that bends like a parabola, with a pavement on either side."""

    half_width_m: float
    sidewalks_m: tuple[float, float]
    """Width on the left and on the right; 0 = none."""
    bend_per_m: float
    """Curvature: the centre line lies at x = bend z^2 / 2."""
    road: RGB
    sidewalk: RGB
    terrain: RGB
    marking: RGB
    markings: str
    """dashed, double or none."""
    crossing_z_m: float
    """Distance of a zebra crossing; negative = none."""

    def center(self, z_m: Float[np.ndarray, "*shape"] | float) -> Float[np.ndarray, "*shape"] | float:
        return 0.5 * self.bend_per_m * z_m * z_m

    def heading(self, z_m: float) -> float:
        """Direction of the road at a distance, in radians."""
        return float(np.arctan(self.bend_per_m * z_m))


def draw_ground(canvas: Canvas, street: Street, lamps: list[tuple[float, float]], *, wet: bool, snow: float) -> None:
    """Road, pavements and terrain on y = 0. `lamps` are (x, z) of street lamps, which light the ground at night."""
    rays, camera = canvas.rays, canvas.camera
    below = rays[..., 1] < -1e-4
    depth = np.where(below, -camera.y_m / np.where(below, rays[..., 1], -1.0), np.inf).astype(np.float32)
    below &= depth < 400
    reach = np.where(below, depth, 0.0).astype(np.float32)
    x, z = camera.x_m + reach * rays[..., 0], reach * rays[..., 2]
    aside = (x - street.center(z)).astype(np.float32)
    left, right = (street.half_width_m + width for width in street.sidewalks_m)
    surface = np.full(x.shape, TERRAIN, np.int16)
    surface[(aside > -left) & (aside < right)] = SIDEWALK
    surface[np.abs(aside) < street.half_width_m] = ROAD
    surface[~below] = SKY

    palette = np.zeros((5, 3), np.float32)
    palette[ROAD], palette[SIDEWALK], palette[TERRAIN] = street.road, street.sidewalk, street.terrain
    color = palette[surface]
    if canvas.textured:
        near = np.exp(-reach / 30)
        fine = sample_noise(x, z, cell_m=0.05, octave=1) * near
        coarse = sample_noise(x, z, cell_m=0.25, octave=3)
        rough = np.choose(surface, [0.0, 0.0, 0.06, 0.05, 0.16]).astype(np.float32)
        color *= (1 + rough * (0.7 * fine + 0.7 * coarse))[..., None]
        slabs = ((x - np.floor(x)) < 0.07) | ((z / 1.2 - np.floor(z / 1.2)) < 0.06)
        color[(surface == SIDEWALK) & slabs & (reach < 18)] *= 0.82
    kerb = (np.abs(np.abs(aside) - street.half_width_m) < 0.12) & (reach < 60)
    color[kerb & (surface != TERRAIN)] *= 0.7
    paint = np.abs(np.abs(aside) - (street.half_width_m - 0.25)) < 0.07
    if street.markings == "dashed":
        paint |= (np.abs(aside) < 0.09) & (z / 6 - np.floor(z / 6) < 0.5)
    elif street.markings == "double":
        paint |= np.abs(np.abs(aside) - 0.16) < 0.07
    else:
        paint[:] = False
    if street.crossing_z_m > 0:
        stripe = (aside / 1.0 - np.floor(aside / 1.0)) < 0.5
        paint |= (np.abs(z - street.crossing_z_m) < 1.5) & stripe
    color[paint & (surface == ROAD)] = street.marking
    if snow > 0:
        drift = sample_noise(x, z, cell_m=0.3, octave=3)
        ruts = np.where(surface == ROAD, np.abs(np.abs(aside) - 0.45 * street.half_width_m) < 0.9, False)
        cover = np.clip(snow * np.where(surface == ROAD, 0.62, 1.0) + 0.2 * drift - 0.55 * ruts, 0, 0.93)
        color = color * (1 - cover[..., None]) + np.float32(0.9) * cover[..., None]
    light = np.broadcast_to(canvas.light.on(np.array([0.0, 1.0, 0.0])), color.shape).copy()
    if canvas.light.glow > 0:
        for lamp_x, lamp_z in lamps:
            pool = np.exp(-((x - lamp_x) ** 2 + (z - lamp_z) ** 2) / 14.0)
            light += canvas.light.glow * 0.5 * pool[..., None] * np.array([1.0, 0.85, 0.55], np.float32)
    color = color * light
    if wet:  # a wet road is darker and mirrors the sky where one looks along it
        mirror = np.clip(0.5 * np.exp(-camera.y_m / np.maximum(reach, 1.0) * 6), 0, 0.5) * (surface == ROAD)
        color = 0.75 * color + mirror[..., None] * 0.4 * canvas.light.ambient.astype(np.float32)
    canvas.color[below] = color[below]
    canvas.surface[:] = surface
    canvas.depth[below] = depth[below]
    canvas.normal[below] = (0.0, 1.0, 0.0)


def draw_sky(
    canvas: Canvas, rng: Generator, *, zenith: RGB, horizon: RGB, clouds: float, cloud_color: RGB, stars: bool
) -> None:
    """A gradient with clouds. `clouds` 0..1 is the covered share."""
    rays = canvas.rays
    sky = canvas.surface == SKY
    height = np.clip(rays[..., 1] / np.sqrt(rays[..., 0] ** 2 + rays[..., 2] ** 2), 0, 1)
    blend = np.power(height, 0.6)[..., None].astype(np.float32)
    color = (1 - blend) * np.asarray(horizon, np.float32) + blend * np.asarray(zenith, np.float32)
    offset = rng.uniform(0, 256, 2)
    if clouds > 0:
        stretch = 1.0 / (height + 0.12)
        u, v = rays[..., 0] * stretch * 8 + offset[0], stretch * 8 + offset[1]
        field = sample_noise(u.astype(np.float32), v.astype(np.float32), cell_m=0.3, octave=4)
        field = field + 0.4 * sample_noise(u.astype(np.float32), v.astype(np.float32), cell_m=0.3, octave=2)
        threshold = 1.6 - 3.0 * clouds
        cover: Float32[np.ndarray, "h w"] = np.clip((field - threshold) * 0.8, 0, 0.9).astype(np.float32)
        if not canvas.textured:
            cover = np.where(cover > 0.3, np.float32(0.85), np.float32(0))
        color = color * (1 - cover[..., None]) + cover[..., None] * np.asarray(cloud_color, np.float32)
    canvas.color[sky] = color[sky]
    if stars:
        points = rng.random(canvas.surface.shape) > 0.998
        canvas.color[sky & points] += 0.5
