"""Which model a plan names, where its files lie, and what identifies them; imports neither torch nor diffusers."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from decoders.errors import UserError
from decoders.files import cache_folder, write_atomic

Precision = Literal["auto", "float32", "float16", "bfloat16"]

_PACKAGE = "package://"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
_TOKENIZERS = ("tokenizer", "tokenizer_2")
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(?P<fp16>\.fp16)?(?:-\d+-of-\d+)?\.safetensors")
_PICKLES = {".bin", ".ckpt", ".pt", ".pth"}
_DOWNLOADS = (
    "model_index.json",
    "*/*.json",
    "*/*.txt",
    "*/model*.safetensors",
    "*/diffusion_pytorch_model*.safetensors",
)
_NO_DOWNLOADS = ("safety_checker/*", "image_encoder/*", "vae_1_0/*", "*.non_ema*")
_HALF_WEIGHTS = "*.fp16*"
_HISTORY = {"architectures", "dtype", "torch_dtype", "transformers_version"}
"""Keys of a config.json that tell which program wrote it, not what the model is; so do those that begin with `_`."""


@dataclass(frozen=True, slots=True)
class LoraReference:
    """A LoRA file in safetensors, and how strongly it acts."""

    source: str
    """A local file, or `package://some.package/path/file.safetensors`."""
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise UserError(f"LoRA {self.source}: weight {self.weight} found, expected a finite number; 1.0 is usual")


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A Stable Diffusion checkpoint (1.x, 2.x, XL) in diffusers format."""

    source: str
    """A local folder, a hub id `owner/name` with a pinned revision, or `package://some.package/folder`."""
    revision: str | None = None
    """Commit of the hub repository, 40 hex digits; a branch or tag can move and is refused."""
    loras: tuple[LoraReference, ...] = ()
    dtype: Precision = "auto"
    """`auto` is float32 on CPU and float16 on a GPU."""

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Precision):
            raise UserError(f"model dtype {self.dtype!r} found, expected one of {', '.join(get_args(Precision))}")


def locate_model(reference: ModelReference) -> Path:
    """The checked folder of a checkpoint; a hub id is downloaded (safetensors only) unless it is in the hub's cache.

    Weights in half precision are downloaded only where there are no others.

    Raises:
        UserError: nothing there, no revision pinned, no diffusers folder, an unsupported kind, or pickle weights.
    """
    source = reference.source
    but = (*_NO_DOWNLOADS, _HALF_WEIGHTS)
    folder = locate(source, reference.revision, what="model", files=_DOWNLOADS, but=but)
    if folder.is_dir() and not all(_weight_files(part, None) for part in _network_folders(folder)):
        folder = locate(source, reference.revision, what="model", files=_DOWNLOADS, but=_NO_DOWNLOADS)
    if folder.is_file():
        raise UserError(
            f"model {source} is one file; expected a folder in diffusers format. Convert it (loading a .ckpt runs code "
            'of its author):\n  python -c "from diffusers import DiffusionPipeline, StableDiffusionPipeline as P; '
            f"P.from_single_file('{folder}').save_pretrained('{folder.with_suffix('')}')\"\n"
            "(StableDiffusionXLPipeline for XL)"
        )
    _check_layout(folder)
    return folder


def locate(source: str, revision: str | None, *, what: str, files: Sequence[str], but: Sequence[str] = ()) -> Path:
    """Where a local folder, `package://` data or a hub repository lies; of the last, `files` are downloaded if needed.

    Args:
        what: what it should be, for messages.
        files: patterns of names in the repository.
        but: patterns of those among them that are left there.

    Raises:
        UserError: nothing there, no revision pinned, or no way to the hub.
    """
    if source.startswith(_PACKAGE):
        return _packaged(source)
    path = Path(source).expanduser()
    return path if path.exists() else _download(source, revision, what, files, but)


def locate_lora(lora: LoraReference) -> Path:
    """The file of a LoRA; pickle files are refused."""
    file = _packaged(lora.source) if lora.source.startswith(_PACKAGE) else Path(lora.source).expanduser()
    if not file.is_file():
        raise UserError(f"LoRA {lora.source}: found no such file, expected a .safetensors file; download it first")
    if file.suffix != ".safetensors":
        raise UserError(
            f"LoRA {lora.source}: found a {file.suffix or 'nameless'} file, expected .safetensors, since a pickle runs "
            'code of its author. Convert it:\n  python -c "import torch; from safetensors.torch import save_file; '
            f"save_file(torch.load('{file}', weights_only=True), '{file.with_suffix('.safetensors')}')\""
        )
    return file


def components(folder: Path) -> Mapping[str, Any]:
    """The folder's `model_index.json`: pipeline class under `_class_name`, (library, class) under each component."""
    try:
        return json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"model {folder}: found no readable model_index.json ({error}); expected a folder in diffusers format, as "
            "`pipeline.save_pretrained(folder)` writes it"
        ) from error


def weight_variant(folder: Path) -> str | None:
    """`fp16` where some network lies there only as `*.fp16.safetensors`; else None, for the default file names."""
    plain = (_weight_files(part, None) for part in _network_folders(folder))
    return None if all(plain) else "fp16"


def digest(folder: Path, loras: Sequence[LoraReference] = ()) -> str:
    """Identity of a checkpoint: sha256 over UNet, VAE, text encoders, tokenizers, and LoRA files with their weights.

    A folder has no revision, so its contents speak for it. A file is hashed once: the result is kept in the user's
    cache folder under the file's path, size and mtime.
    """
    total = hashlib.sha256()
    variant = weight_variant(folder)
    for part in _network_folders(folder):
        config = json.loads((part / "config.json").read_text(encoding="utf-8"))
        kept = {key: value for key, value in config.items() if not key.startswith("_") and key not in _HISTORY}
        total.update(f"{part.name} {json.dumps(kept, sort_keys=True)}\n".encode())
        for file in _weight_files(part, variant):
            total.update(f"{part.name} {file_digest(file)}\n".encode())
    for file in (file for name in _TOKENIZERS for file in sorted((folder / name).glob("*")) if file.is_file()):
        total.update(f"{file.parent.name}/{file.name} {file_digest(file)}\n".encode())
    for lora in loras:
        total.update(f"lora {lora.weight!r} {file_digest(locate_lora(lora))}\n".encode())
    return total.hexdigest()


def _packaged(source: str) -> Path:
    package, _, inside = source.removeprefix(_PACKAGE).partition("/")
    try:
        path = Path(str(resources.files(package))) / inside
    except (ModuleNotFoundError, ValueError) as error:
        raise UserError(f"{source}: found no Python package {package!r}; install it, or correct the name") from error
    if not path.exists():
        raise UserError(
            f"{source}: package {package!r} holds no {inside!r}; expected its data there, so correct the path or "
            "reinstall the package with its data files"
        )
    return path


def _download(source: str, revision: str | None, what: str, files: Sequence[str], but: Sequence[str]) -> Path:
    if not _HUB_ID.fullmatch(source):
        raise UserError(
            f"{what} {source}: found no such folder; expected a folder in diffusers format, a hub id owner/name with a "
            "pinned revision, or package://some.package/folder"
        )
    if revision is None or not _COMMIT.fullmatch(revision):
        found = "no folder of this name" + ("" if revision is None else f", and the revision {revision!r}")
        raise UserError(
            f"{what} {source}: found {found}; as a hub id it needs a pinned commit of 40 hex digits, which "
            f"https://huggingface.co/{source}/commits/main lists: set `revision:` to it"
        )
    from huggingface_hub import snapshot_download  # only here: it costs a second and most plans never need it

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(files), ignore_patterns=list(but)))
    except (OSError, ValueError) as error:  # every failure of the hub's client is one of these: offline, 404, no access
        raise UserError(
            f"{what} {source} at {revision[:12]} is not in the hub's cache and cannot be downloaded "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); go online once (and unset HF_HUB_OFFLINE), "
            "or copy the folder here and name it in `source:`"
        ) from error


def _check_layout(folder: Path) -> None:
    """Refuse what cannot be read or would run foreign code, before anything is loaded."""
    index = components(folder)
    if _entry(index, "unet")[1] != "UNet2DConditionModel":
        found = [name for name in index if not name.startswith("_")]
        raise UserError(
            f"model {folder}: a {index.get('_class_name')} of {found} found, expected one with a UNet2DConditionModel: "
            "Stable Diffusion 1.x, 2.x or XL"
        )
    for name in (*_NETWORKS, *_TOKENIZERS, "scheduler"):
        library = _entry(index, name)[0]
        if library not in ("diffusers", "transformers", None):
            raise UserError(
                f"model {folder}: {name} comes with code of its own ({library}), which is never run; expected classes "
                "of diffusers and transformers, so take another checkpoint"
            )
    for part in _network_folders(folder):
        if not (part / "config.json").is_file():
            raise UserError(f"model {folder}: {part.name} holds no config.json; copy or download the folder again")
        if _weight_files(part, "fp16"):
            continue
        pickles = sorted(file.name for file in part.glob("*") if file.suffix in _PICKLES)
        if pickles:
            raise UserError(
                f"model {folder}: {part.name} holds {pickles[0]}, a pickle that can run code; expected safetensors. If "
                'you trust its author, convert it:\n  python -c "from diffusers import DiffusionPipeline as P; '
                f"P.from_pretrained('{folder}', use_safetensors=False).save_pretrained('{folder}-safetensors')\""
            )
        raise UserError(f"model {folder}: {part.name} holds no .safetensors weights; copy or download the folder again")


def _network_folders(folder: Path) -> Iterator[Path]:
    index = components(folder)
    return (folder / name for name in _NETWORKS if _entry(index, name)[0])


def _entry(index: Mapping[str, Any], name: str) -> tuple[str | None, str | None]:
    """Library and class of a component, None for one that the pipeline does without."""
    library, kind = index.get(name) or (None, None)
    return library, kind


def _weight_files(folder: Path, variant: str | None) -> list[Path]:
    """As diffusers chooses: files of the variant where there are any, else those under default names."""
    found = [(file, match) for file in sorted(folder.glob("*")) if (match := _WEIGHTS.fullmatch(file.name))]
    special = [file for file, match in found if match["fp16"]]
    return special if variant and special else [file for file, match in found if not match["fp16"]]


def file_digest(file: Path) -> str:
    """sha256 of a file, kept in the user's cache folder under its path, size and mtime."""
    state = file.stat()
    key = hashlib.sha256(f"{file.resolve()}\n{state.st_size}\n{state.st_mtime_ns}".encode()).hexdigest()
    note = cache_folder() / "digests" / key
    if note.is_file() and len(known := note.read_text(encoding="ascii")) == 64:
        return known
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    with suppress(OSError, UserError):  # a home that cannot be written costs time, no more
        write_atomic(note, found.encode())
    return found
