"""The embedded default: a small Stable-Diffusion-shaped model, the street world it learned, and its shipped weights."""
