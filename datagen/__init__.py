"""Wishes -> pictures -> dataset: the factory around a diffusion model and a reader."""
