"""A pinhole camera over a flat world: x right, y up, z forward, in metres; the ground is y = 0."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

NEAR_M = 0.3
"""Nothing nearer than this is drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """Where the picture is taken from."""

    height: int
    """Picture height in pixels."""
    width: int
    focal_px: float
    x_m: float
    """Lateral position in the world; the camera stands at z = 0."""
    y_m: float
    yaw_rad: float
    """Positive looks to the right."""
    pitch_rad: float
    """Positive looks down."""

    @property
    def position(self) -> Float[np.ndarray, "3"]:
        return np.array([self.x_m, self.y_m, 0.0])

    @property
    def axes(self) -> Float[np.ndarray, "3 3"]:
        """Rows: the camera's right, up and forward as world directions."""
        forward = np.array(
            [
                np.sin(self.yaw_rad) * np.cos(self.pitch_rad),
                -np.sin(self.pitch_rad),
                np.cos(self.yaw_rad) * np.cos(self.pitch_rad),
            ]
        )
        right = np.array([np.cos(self.yaw_rad), 0.0, -np.sin(self.yaw_rad)])
        return np.stack([right, np.cross(forward, right), forward])

    def rays(self) -> Float32[np.ndarray, "height width 3"]:
        """World direction through each pixel centre, scaled so that a multiple t of it lies at depth t."""
        right, up, forward = self.axes
        across = (np.arange(self.width) + 0.5 - self.width / 2) / self.focal_px
        down = (np.arange(self.height) + 0.5 - self.height / 2) / self.focal_px
        return (forward + across[None, :, None] * right - down[:, None, None] * up).astype(np.float32)

    def project(self, points: Float[np.ndarray, "points 3"]) -> Float[np.ndarray, "visible 2"]:
        """The outline of a planar polygon in pixels (x, y), cut at the near plane; empty when it lies behind."""
        local = clip_near((points - self.position) @ self.axes.T)
        scale = self.focal_px / local[:, 2:]
        return local[:, :2] * scale * [1.0, -1.0] + [self.width / 2, self.height / 2]

    def project_points(self, points: Float[np.ndarray, "points 3"]) -> Float[np.ndarray, "points 2"]:
        """Single points in pixels (x, y); NaN for what is nearer than the near plane."""
        local = (points - self.position) @ self.axes.T
        distance = np.where(local[:, 2:] >= NEAR_M, local[:, 2:], np.nan)
        return local[:, :2] * self.focal_px / distance * [1.0, -1.0] + [self.width / 2, self.height / 2]


def clip_near(local: Float[np.ndarray, "points 3"]) -> Float[np.ndarray, "visible 3"]:
    """Sutherland-Hodgman against one plane: the part of a polygon in front of the camera, in camera coordinates."""
    if local[:, 2].min() >= NEAR_M:
        return local
    kept: list[Float[np.ndarray, 3]] = []
    for start, end in zip(local, np.roll(local, -1, axis=0), strict=True):
        if start[2] >= NEAR_M:
            kept.append(start)
        if (start[2] >= NEAR_M) != (end[2] >= NEAR_M):
            share = (NEAR_M - start[2]) / (end[2] - start[2])
            kept.append(start + share * (end - start))
    return np.array(kept).reshape(-1, 3)
