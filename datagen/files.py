"""Pictures and JSON in files: the same bytes every time, and read with errors that name the file."""

import io
import json
import struct
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8, UInt16
from PIL import Image, ImageOps

from decoders.errors import UserError
from decoders.files import write_atomic

PNG_LEVEL = 3
"""zlib level: a third of level 6's time for about 5 % more bytes."""
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff"})
"""What counts as a picture when a folder is listed, in lower case."""
UNREAD_SUFFIXES = frozenset(
    {".avif", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".pgm", ".ppm", ".psd", ".svg", ".tga"}
    | {".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"}
)
"""Of pictures that are not read, raw ones of cameras among them, in lower case."""
LABEL_SUFFIXES = IMAGE_SUFFIXES | {".npy"}
"""What counts as a file of labels or depths."""
_LOSSLESS = ("PNG", "TIFF", "BMP")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises for a file that is no picture, or only half of one."""
_ROTATED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


def json_bytes(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8; NaN and infinity, for which JSON has no word, raise ValueError."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode()


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json_bytes(value) + b"\n")


def require_outside(to: Path, pictures: Path) -> None:
    """Refuse to write where what is written would be taken for one of the pictures later.

    Raises:
        UserError: `to` is the folder of pictures, or within it.
    """
    inner, outer = to.resolve(), pictures.resolve()
    if inner == outer or outer in inner.parents:
        raise UserError(f"{to} lies within the folder of pictures {pictures}; choose a folder outside of it")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"file not found: {path}; check the path") from None
    except PermissionError:
        raise _no_permission(path) from None
    except (OSError, ValueError) as error:  # a JSONDecodeError and a UnicodeDecodeError are ValueErrors
        raise UserError(f"{path} cannot be read as JSON ({error}); make it again or restore it from a copy") from error


Pixels = UInt8[np.ndarray, "height width 3"] | UInt8[np.ndarray, "height width"] | UInt16[np.ndarray, "height width"]
"""What a PNG of ours holds: RGB, 8-bit grey or 16-bit grey."""


def encode_png(pixels: Pixels) -> bytes:
    """Fixed settings: equal pixels give equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def decode_png(data: bytes) -> Pixels:
    """The pixels that `encode_png` was given."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return np.array(image)


def read_image(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """A picture as a viewer shows it: EXIF orientation applied, grey and palette turned to RGB, alpha dropped.

    Raises:
        UserError: the file is missing, cut short or no picture.
    """
    with _pillow(path, "picture") as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to white
            grey = (np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        if upright.mode == "F":
            raise UserError(f"picture {path} holds floating-point numbers without a range; convert it to 8-bit PNG")
        return np.array(upright.convert("RGB"))


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """(height, width) that `read_image` would give for a picture file's content, from its header alone.

    Raises:
        UserError: this is no picture; the text calls it `name`.
    """
    with _pillow(Path(name), "picture", io.BytesIO(data)) as image:
        width, height = image.size
        rotated = image.format != "TIFF" and image.getexif().get(0x0112) in _ROTATED  # Pillow turns those itself
        return (width, height) if rotated else (height, width)


def read_label_png(path: Path) -> UInt8[np.ndarray, "height width"] | UInt16[np.ndarray, "height width"]:
    """Label ids as the file holds them: palette files give the index and never the colour, 16-bit grey stays 16-bit.

    Raises:
        UserError: the file is missing, cut short, of colours or floating-point numbers instead of ids, or of a format
            that blends ids.
    """
    with _pillow(path, "label file") as image:
        if image.format not in _LOSSLESS:
            raise UserError(
                f"label file {path} is {image.format}, expected a lossless format ({', '.join(_LOSSLESS)}); "
                "lossy compression mixes ids: write the labels as PNG"
            )
        if image.mode == "F":
            raise UserError(
                f"label file {path} is a picture of floating-point numbers, expected whole ones; write these numbers "
                "as an NPY array (numpy.save), or whole steps of them as a 16-bit PNG"
            )
        values: np.ndarray = np.array(image)
        if values.ndim != 2 or image.mode in ("LA", "PA"):
            raise UserError(
                f"label file {path} holds colours (mode {image.mode}), expected one id per pixel (grey or palette); "
                "turn each colour into its label id and write a grey PNG"
            )
        if image.mode == "L" and image.format == "PNG":
            values = values // _grey_stretch(path)
    if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise UserError(f"label file {path} holds ids {values.min()}..{values.max()}, expected 0..65535; renumber them")
    return values.astype(np.uint8 if values.dtype.itemsize == 1 else np.uint16)


def read_label_file(path: Path, *, floats: bool = False) -> Shaped[np.ndarray, "height width"]:
    """Label ids of a picture file (`read_label_png`) or of an NPY array.

    Args:
        floats: the array may hold any real numbers, such as metres; those of a picture file stay whole.

    Raises:
        UserError: as `read_label_png`; an array of another shape or type, or of Python objects.
    """
    if path.suffix.lower() != ".npy":
        return read_label_png(path)
    try:
        array = np.load(path, allow_pickle=False)  # pickles run code
    except FileNotFoundError:
        raise UserError(f"label file not found: {path}; check the path") from None
    except PermissionError:
        raise _no_permission(path) from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"label file {path} cannot be read ({error}); it is damaged, no NPY file or a pickle: write it with "
            "numpy.save as a plain array"
        ) from error
    whole = np.issubdtype(array.dtype, np.integer)
    if array.ndim != 2 or not (whole or (floats and np.issubdtype(array.dtype, np.floating))):
        raise UserError(
            f"label file {path} holds an array of shape {array.shape} and type {array.dtype}, expected (height, width) "
            f"of {'numbers' if floats else 'whole numbers'}; convert it"
        )
    if whole and (array.min(initial=0) < 0 or array.max(initial=0) > np.iinfo(np.uint16).max):
        raise UserError(f"label file {path} holds ids {array.min()}..{array.max()}, expected 0..65535; renumber them")
    return array.astype(np.uint16) if whole else array.astype(np.float32)


def _grey_stretch(path: Path) -> int:
    """Pillow stretches 2-bit and 4-bit grey to 0..255: the factor by which it did."""
    with path.open("rb") as file:
        bit_depth = file.read(25)[24]
    return {2: 85, 4: 17}.get(bit_depth, 1)


@contextmanager
def _pillow(path: Path, what: str, content: io.BytesIO | None = None) -> Generator[Image.Image, None, None]:
    try:
        with Image.open(content or path) as image:
            yield image
    except FileNotFoundError:
        raise UserError(f"{what} not found: {path}; check the path") from None
    except PermissionError:
        raise _no_permission(path) from None
    except _BROKEN as error:
        raise UserError(
            f"{what} {path} cannot be read ({error}); the file is damaged or of another type: replace or remove it"
        ) from error


def _no_permission(path: Path) -> UserError:
    return UserError(f"no permission to read {path}; give yourself the right to (chmod +r), or ask its owner")


def require_png(to: Path) -> None:
    """Refuse a name that promises another format than the PNG which is written.

    Raises:
        UserError: the name does not end in .png.
    """
    if to.suffix.lower() != ".png":
        raise UserError(f"{to} will be a PNG picture, expected a name that ends in .png; give that with --to")


def folder_bytes(folder: Path) -> int:
    """Of all files in it and below."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
