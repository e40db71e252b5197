"""The pictures that a model is adapted to, from a folder or a dataset, and what each of them is called."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from datagen.datasets import AnnotatedImages, data_digest
from datagen.files import IMAGE_SUFFIXES, image_size, json_bytes, read_image
from decoders.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Pictures of any sizes, read when they are asked for."""

    load: Callable[[int], UInt8[np.ndarray, "height width 3"]]
    """Raises a UserError that names the picture if it cannot be read."""
    captions: tuple[str, ...]
    """One for each."""
    digest: str
    """sha256 over pictures and captions, whatever the folder is called."""

    def __len__(self) -> int:
        return len(self.captions)


def pictures_of_folder(folder: Path, *, caption: str = "", own_captions: bool = False) -> Pictures:
    """All pictures below a folder, hidden ones left out.

    Args:
        caption: of every picture.
        own_captions: each is called what the text file of its name beside it says instead.

    Raises:
        UserError: no folder, no picture in it, a file that is no picture, or a text file is missing.
    """
    if not folder.is_dir():
        raise UserError(f"images: folder {folder} not found; check the path")
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise UserError(f"images: {folder} holds no picture ({', '.join(sorted(IMAGE_SUFFIXES))}); check the path")
    captions = _texts_beside(files) if own_captions else (caption,) * len(files)
    total = hashlib.sha256(json_bytes(captions))
    for path in files:
        content = path.read_bytes()
        image_size(content, str(path))
        total.update(hashlib.sha256(content).digest())
    return Pictures(load=lambda index: read_image(files[index]), captions=captions, digest=total.hexdigest())


def pictures_of_dataset(data: AnnotatedImages, *, caption: str = "", own_captions: bool = False) -> Pictures:
    """The pictures of a dataset, their labels left aside; its own captions are those that it has a `caption` for.

    Raises:
        UserError: own captions are asked for, and the dataset has none.
    """
    captions = (caption,) * len(data)
    if own_captions:
        called = getattr(data, "caption", None)
        if called is None:
            raise UserError(
                f"captions: own found, but a {type(data).__name__} dataset has no captions; take `captions: one`, or "
                "name a folder under `images` with text files beside the pictures"
            )
        captions = tuple(called(name) for name in data.names)
    total = hashlib.sha256(json_bytes(captions))
    total.update(data_digest(data).encode())
    return Pictures(load=lambda index: data[index].image, captions=captions, digest=total.hexdigest())


def _texts_beside(files: Sequence[Path]) -> tuple[str, ...]:
    texts = [path.with_suffix(".txt") for path in files]
    if missing := [path for path in texts if not path.is_file()]:
        raise UserError(
            f"captions: {len(missing)} of {len(texts)} text files are missing, first {missing[0]}; write one for each "
            "picture (an empty one is the empty caption), or take `captions: one`"
        )
    try:
        return tuple(" ".join(path.read_text(encoding="utf-8").split()) for path in texts)
    except UnicodeDecodeError as error:
        raise UserError(f"captions: a text file below {texts[0].parent} is not UTF-8 ({error}); convert it") from error
