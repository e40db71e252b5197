"""The fitted numbers of a reader: read from safetensors only, since unpickling a file runs the code in it."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from decoders.errors import UserError
from decoders.manifest import MANIFEST_FILE, WEIGHTS_FILE, ReaderManifest

_PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
"""A zip, which torch.save writes, and a bare pickle."""


def read_weights(folder: Path, manifest: ReaderManifest) -> Mapping[str, Tensor]:
    """The decoder's tensors, checked against the manifest.

    Raises:
        UserError: the file is missing, damaged, a pickle, or belongs to another reader.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix in _PICKLE_SUFFIXES)
        if pickles:
            raise _pickled(folder / pickles[0], folder)
        raise UserError(
            f"{folder} is not a whole reader: {WEIGHTS_FILE} is missing; restore it from a copy, or fit the reader "
            "again"
        )
    data = path.read_bytes()
    if sha256(data).hexdigest() != manifest.weights_sha256:
        if data.startswith(_PICKLE_STARTS) and data[8:9] != b"{":  # there a safetensors header begins
            raise _pickled(path, folder)
        raise UserError(
            f"{path} is not the file that {MANIFEST_FILE} beside it names: found sha256 "
            f"{sha256(data).hexdigest()[:12]}, expected {manifest.weights_sha256[:12]}; it is damaged or of another "
            "reader: restore both from a copy, or fit again"
        )
    try:
        return load(data)
    except SafetensorError as error:
        raise UserError(
            f"{path} is no safetensors file ({error}); restore it from a copy, or fit the reader again"
        ) from error


def load_into(decoder: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Fill a decoder.

    Raises:
        UserError: names or shapes differ from what this version builds from the manifest.
    """
    try:
        decoder.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise UserError(
            f"the weights of {folder} do not fit the decoder that its {MANIFEST_FILE} describes:\n{error}\n"
            "the manifest was edited or another version wrote it; fit the reader again"
        ) from error


def _pickled(path: Path, folder: Path) -> UserError:
    goal = folder / WEIGHTS_FILE
    return UserError(
        f"{path} is a pickle, and unpickling a file can run any code; expected safetensors. If you trust where it "
        f'came from, convert it with: python -c "import torch, safetensors.torch as s; s.save_file(torch.load('
        f"'{path}', weights_only=True), '{goal}')\" and put the new file's sha256 into {MANIFEST_FILE}"
    )
