"""Features of vision models, which drew none of the pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from decoders.checkpoint import choose_device
from decoders.errors import UserError
from decoders.labels import AnnotatedImage

_UNUSED = "pooler"
"""Part of the names of weights that a checkpoint may lack, as nothing here is read from them."""


class VisionEmbedder:
    """The mean over all places of the last layer of a frozen model of transformers (DINOv2, ViT, CLIP's vision part).

    It is shown pictures as its own image processor scales and crops them.
    """

    def __init__(self, folder: Path, device: str | None = None) -> None:
        """
        Raises:
            UserError: the folder lacks weights in safetensors, some of them, or the settings of its image processor.
        """
        from transformers import AutoImageProcessor, AutoModel

        processors: Any = AutoImageProcessor
        models: Any = AutoModel
        try:
            self._processor = processors.from_pretrained(folder, local_files_only=True)
            model, told = models.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(
                f"vision model {folder} could not be loaded ({type(error).__name__}: {error}), expected config.json, "
                "preprocessor_config.json and model.safetensors of a model that transformers knows; save it with "
                "`save_pretrained`, and its image processor too"
            ) from error
        if missing := sorted(name for name in told["missing_keys"] if _UNUSED not in name):
            raise UserError(
                f"vision model {folder} lacks {len(missing)} weights, first {missing[0]}, which would be random; save "
                "it again whole"
            )
        self._device = choose_device(device)
        self._network = getattr(model, "vision_model", model).eval().requires_grad_(False).to(self._device)

    @torch.no_grad()
    def embed(self, picture: AnnotatedImage) -> Float32[np.ndarray, " channels"]:
        shown = self._processor(images=picture.image, return_tensors="pt")["pixel_values"].to(self._device)
        hidden: torch.Tensor = self._network(pixel_values=shown).last_hidden_state[0]
        # Places by channels of a transformer, channels by rows and columns of a convolutional one.
        return (hidden.mean(0) if hidden.ndim == 2 else hidden.mean((1, 2))).cpu().numpy()
