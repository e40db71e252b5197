"""Domains: the look of the camera or renderer, the weather and the time of day."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from numpy.random import Generator

from datagen.pocket.canvas import Canvas, Light
from datagen.pocket.ground import draw_sky
from datagen.pocket.materials import RGB

LOOKS = ("game", "photo", "film", "dashcam")
"""Flat colours of a game; a good camera; an old warm film; a cheap greenish camera behind a wind-screen."""
WEATHERS = ("clear", "fog", "snow", "rain")
TIMES = ("day", "dusk", "night")
HELD_OUT_LOOK = "dashcam"
HELD_OUT_WEATHER = "rain"
"""Never shown to the pocket model or its readers: kept to measure generalisation."""

ZENITH: dict[str, RGB] = {"day": (0.28, 0.5, 0.85), "dusk": (0.3, 0.3, 0.52), "night": (0.03, 0.05, 0.13)}
HORIZON: dict[str, RGB] = {"day": (0.72, 0.82, 0.92), "dusk": (0.95, 0.58, 0.32), "night": (0.1, 0.12, 0.22)}
OVERCAST: dict[str, RGB] = {"day": (0.74, 0.76, 0.78), "dusk": (0.56, 0.48, 0.48), "night": (0.15, 0.16, 0.22)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """Three words that decide how one and the same street looks."""

    look: str
    weather: str
    time: str

    @property
    def held_out(self) -> bool:
        return self.look == HELD_OUT_LOOK or self.weather == HELD_OUT_WEATHER


def draw_domain(rng: Generator, *, held_out: bool) -> Domain:
    """A random domain; look and weather that are held out come only when asked for."""
    looks = LOOKS if held_out else tuple(look for look in LOOKS if look != HELD_OUT_LOOK)
    weathers = WEATHERS if held_out else tuple(weather for weather in WEATHERS if weather != HELD_OUT_WEATHER)
    return Domain(
        look=str(rng.choice(looks)),
        weather=str(rng.choice(weathers)),
        time=str(rng.choice(TIMES, p=[0.5, 0.25, 0.25])),
    )


def light_of(domain: Domain, rng: Generator) -> Light:
    """Sun and sky light; a covered sky takes the sun away."""
    around = rng.uniform(0, 2 * np.pi)
    climb = np.deg2rad(rng.uniform(25, 65) if domain.time == "day" else rng.uniform(6, 18))
    toward = np.array([np.cos(climb) * np.cos(around), np.sin(climb), np.cos(climb) * np.sin(around)])
    sun, ambient = {
        "day": (np.array([0.62, 0.58, 0.5]), np.array([0.55, 0.58, 0.62])),
        "dusk": (np.array([0.62, 0.36, 0.18]), np.array([0.4, 0.36, 0.42])),
        "night": (np.array([0.08, 0.09, 0.13]), np.array([0.27, 0.29, 0.4])),
    }[domain.time]
    if domain.weather != "clear":
        sun, ambient = 0.2 * sun, ambient * {"fog": 1.15, "snow": 1.1, "rain": 0.85}[domain.weather]
    return Light(
        toward_sun=toward, sun=sun, ambient=ambient, glow={"day": 0.0, "dusk": 0.45, "night": 1.0}[domain.time]
    )


def paint_sky(canvas: Canvas, domain: Domain, rng: Generator) -> None:
    tint = rng.uniform(0.88, 1.1)
    grey = OVERCAST[domain.time]
    zenith, horizon, clouds = ZENITH[domain.time], HORIZON[domain.time], float(rng.uniform(0.1, 0.7))
    if domain.weather != "clear":
        mix = 0.85
        zenith = _mix(zenith, grey, mix)
        horizon = _mix(horizon, grey, mix)
        clouds = float(rng.uniform(0.3, 0.8)) * (domain.weather != "fog")
    draw_sky(
        canvas,
        rng,
        zenith=_mix(zenith, zenith, tint, scale=tint),
        horizon=_mix(horizon, horizon, tint, scale=tint),
        clouds=clouds,
        cloud_color=_mix(grey, (1.0, 1.0, 1.0), 0.45 if domain.time == "day" else 0.05),
        stars=domain.time == "night" and domain.weather == "clear",
    )


def _mix(first: RGB, second: RGB, share: float, *, scale: float = 1.0) -> RGB:
    values = np.clip(((1 - share) * np.array(first) + share * np.array(second)) * scale, 0, 1)
    return (float(values[0]), float(values[1]), float(values[2]))


def draw_view_m(domain: Domain, rng: Generator) -> float:
    """Distance at which the air has taken 63 % of a thing's colour."""
    return {"clear": 600.0, "fog": float(rng.uniform(14, 36)), "snow": 90.0, "rain": 120.0}[domain.weather]


def add_air(canvas: Canvas, domain: Domain, view_m: float) -> Float32[np.ndarray, "height width 3"]:
    """The drawn colours seen through the air: haze or fog by distance, and the shine of lamps."""
    shine = canvas.glow[..., None] * canvas.light.glow * np.array([1.0, 0.86, 0.55], np.float32)
    color = canvas.color + shine
    veil = np.asarray(OVERCAST[domain.time] if domain.weather != "clear" else HORIZON[domain.time], np.float32)
    clear = np.exp(-np.where(np.isfinite(canvas.depth), canvas.depth, 130.0) / view_m)[..., None].astype(np.float32)
    if domain.weather == "clear" or domain.weather == "rain":
        clear[canvas.surface == 1] = 1.0
    color = color * clear + veil * (1 - clear)
    if canvas.light.glow > 0:  # a halo around what shines
        color = color + 0.5 * cv2.GaussianBlur(shine, (0, 0), 5.0 if domain.weather != "fog" else 9.0)
    return color.astype(np.float32)


def add_precipitation(
    color: Float32[np.ndarray, "height width 3"], domain: Domain, rng: Generator
) -> Float32[np.ndarray, "height width 3"]:
    """Falling snow or rain in front of everything, as strokes on the drawing surface."""
    if domain.weather not in ("snow", "rain"):
        return color
    height, width = color.shape[:2]
    veil = np.zeros((height, width), np.float32)
    count = int(height * width * (0.0022 if domain.weather == "snow" else 0.0012))
    for x, y, size in zip(rng.uniform(0, width, count), rng.uniform(0, height, count), rng.random(count), strict=True):
        if domain.weather == "snow":
            cv2.circle(veil, (int(x), int(y)), 1 + int(2.2 * size**3), 0.5 + 0.5 * float(size), -1, cv2.LINE_AA)
        else:
            end = (int(x + 3 * size), int(y + 8 + 14 * size))
            cv2.line(veil, (int(x), int(y)), end, 0.16 + 0.22 * float(size), 1, cv2.LINE_AA)
    tone = np.float32({"day": 0.95, "dusk": 0.8, "night": 0.55}[domain.time])
    return color * (1 - veil[..., None]) + tone * veil[..., None]


def develop(
    color: Float32[np.ndarray, "height width 3"], domain: Domain, rng: Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """Light -> stored picture: exposure, tone curve, tint, softness and grain of the look."""
    height, width = color.shape[:2]
    exposure = float(rng.uniform(0.9, 1.12)) * (1.5 if domain.time == "night" else 1.0)
    color = color * exposure
    down, across = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    vignette = (1 - 0.35 * (down**2 + across**2) ** 1.2 / 2)[..., None].astype(np.float32)
    grain = rng.standard_normal((height, width, 1)).astype(np.float32)
    if domain.look == "game":
        grey = color.mean(axis=2, keepdims=True)
        color = grey + (color - grey) * 1.35
    elif domain.look == "photo":
        white = rng.uniform(0.95, 1.05, 3).astype(np.float32)
        color = color * white
        color = np.where(color < 0.5, 2 * color**2 * 0.35 + 0.65 * color, color)
        color = color + 0.005 * grain
    elif domain.look == "film":
        grey = color.mean(axis=2, keepdims=True)
        color = grey + (color - grey) * 0.72
        color = 0.09 + color * np.array([1.12, 1.0, 0.78], np.float32) * vignette
        color = cv2.GaussianBlur(color, (0, 0), 0.45) + 0.009 * grain
    else:
        soft = cv2.GaussianBlur(color, (0, 0), 0.8)
        color = soft + 0.7 * (soft - cv2.GaussianBlur(soft, (0, 0), 1.6))
        grey = color.mean(axis=2, keepdims=True)
        color = (grey + (color - grey) * 0.6) * np.array([0.88, 1.0, 0.97], np.float32)
        color = (color - 0.04) * 1.15 + 0.007 * grain
    return np.rint(np.clip(color, 0, 1) * 255).astype(np.uint8)
