"""Pictures -> labels: readers of the inner activations of a frozen diffusion model."""
