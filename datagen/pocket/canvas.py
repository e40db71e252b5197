"""The picture while it is drawn: flat polygons in space, the nearest one wins."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int16, Num, UInt8

from datagen.pocket.camera import Camera
from datagen.pocket.materials import Material, paint


@dataclass(frozen=True, slots=True, kw_only=True)
class Light:
    """Sun (or moon) and sky light. Colours are RGB factors."""

    toward_sun: Float[np.ndarray, "3"]
    sun: Float[np.ndarray, "3"]
    ambient: Float[np.ndarray, "3"]
    glow: float
    """How strongly things that shine by themselves shine: 0 by day, 1 at night."""

    def on(self, normal: Float[np.ndarray, "3"]) -> Float32[np.ndarray, "3"]:
        """Light that a surface with this outward normal receives."""
        return (self.ambient + self.sun * max(0.0, float(normal @ self.toward_sun))).astype(np.float32)


class Canvas:
    """Colour, depth, direction and surface number per pixel."""

    def __init__(self, camera: Camera, light: Light, *, textured: bool) -> None:
        self.camera = camera
        self.light = light
        self.textured = textured
        """False draws every surface in its plain colour, as an old game does."""
        self.rays: Float32[np.ndarray, "height width 3"] = camera.rays()
        shape = (camera.height, camera.width)
        self.color: Float32[np.ndarray, "height width 3"] = np.zeros((*shape, 3), np.float32)
        self.glow: Float32[np.ndarray, "height width"] = np.zeros(shape, np.float32)
        self.depth: Float32[np.ndarray, "height width"] = np.full(shape, np.inf, np.float32)
        self.normal: Float32[np.ndarray, "height width 3"] = np.zeros((*shape, 3), np.float32)
        """Unit vectors in world axes, toward the camera's side; 0 in the sky."""
        self.surface: Int16[np.ndarray, "height width"] = np.zeros(shape, np.int16)

    def outline(
        self, vertices: Float[np.ndarray, "vertices 3"]
    ) -> tuple[slice, slice, UInt8[np.ndarray, "h w"]] | None:
        """The box of pixels that a polygon touches, and which of them lie inside; None when it is out of view."""
        outline = self.camera.project(vertices)
        if len(outline) < 3:
            return None
        limit = [self.camera.width, self.camera.height]
        low = np.clip(np.floor(outline.min(axis=0)), 0, limit).astype(int)
        high = np.clip(np.ceil(outline.max(axis=0)) + 1, 0, limit).astype(int)
        if (high <= low).any():
            return None
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        fixed_point = np.rint((np.clip(outline, -4000, 4000) - low - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(mask, [fixed_point], 1, shift=4)
        return slice(low[1], high[1]), slice(low[0], high[0]), mask

    def polygon(self, vertices: Float[np.ndarray, "vertices 3"], material: Material, surface: int) -> None:
        """Draw a planar polygon, seen alike from both sides."""
        # Newell's method: a normal that is right for any planar outline, convex or not.
        following = np.roll(vertices, -1, axis=0)
        normal = np.cross(vertices, following).sum(axis=0)
        length = np.linalg.norm(normal)
        if length < 1e-9:
            return
        normal = normal / length
        offset = float(normal @ (vertices[0] - self.camera.position))
        if offset > 0:  # turn the normal to the camera
            normal, offset = -normal, -offset
        found = self.outline(vertices)
        if found is None:
            return
        rows, columns, mask = found
        rays = self.rays[rows, columns]
        toward = rays @ normal.astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = np.float32(offset) / toward
        inside = (mask > 0) & (depth > 0) & (depth < self.depth[rows, columns])
        if inside.any():
            self._fill(rows, columns, inside, depth, vertices, normal, material, surface)

    def _fill(
        self,
        rows: slice,
        columns: slice,
        inside: Bool[np.ndarray, "h w"],
        depth: Float32[np.ndarray, "h w"],
        vertices: Float[np.ndarray, "vertices 3"],
        normal: Float[np.ndarray, "3"],
        material: Material,
        surface: int,
    ) -> None:
        shade = self.light.on(normal)
        if material.texture == "plain" or (not self.textured and material.texture in ("noise", "leaves", "brick")):
            color: Num[np.ndarray, ...] = np.asarray(material.color, np.float32) * shade
            emission: Num[np.ndarray, ...] | float = material.emission
        else:
            # Axes on the surface: along the ground and up it, so that windows stand upright.
            sideways = np.cross([0.0, 1.0, 0.0], normal)
            if np.linalg.norm(sideways) < 1e-3:
                sideways = np.array([1.0, 0.0, 0.0])
            sideways = sideways / np.linalg.norm(sideways)
            upward = np.cross(normal, sideways)
            reach = depth[inside][None]
            points = self.rays[rows, columns][inside][None] * reach[..., None]
            origin = vertices[0] - self.camera.position
            across = points @ sideways.astype(np.float32) - np.float32(origin @ sideways)
            along = points @ upward.astype(np.float32) - np.float32(origin @ upward)
            painted, glowing = paint(material, across, along)
            color, emission = painted[0] * shade, glowing[0]
        if material.opacity < 1:
            color = material.opacity * color + (1 - material.opacity) * self.color[rows, columns][inside]
        self.color[rows, columns][inside] = color
        self.glow[rows, columns][inside] = emission
        self.depth[rows, columns][inside] = depth[inside]
        self.normal[rows, columns][inside] = normal
        self.surface[rows, columns][inside] = surface

    def darken_ground(self, vertices: Float[np.ndarray, "vertices 3"], factor: float, ground: int) -> None:
        """A shadow on the ground: colour only; drawn before the objects, so whatever stands there covers it."""
        found = self.outline(vertices)
        if found is not None:
            rows, columns, mask = found
            shadowed = (mask > 0) & (self.surface[rows, columns] <= ground)
            self.color[rows, columns][shadowed] *= factor
