"""What this machine has to offer, and what is missing: the first thing to ask for when something does not work."""

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from decoders.files import cache_folder

GIB = 1 << 30
NEEDED_FREE_BYTES = 2 * GIB
"""What a feature cache at its default cap, a fitted reader and a demo run take together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report."""

    name: str
    value: str
    needed: bool = False
    """True for what datagen cannot work without and what is missing or wrong."""
    remedy: str = ""
    """What to do about it, or what to know; empty when all is well."""


def examine() -> Iterator[Finding]:
    """Look at packages, device, number formats, threads, disk and the embedded model, one after the other."""
    yield Finding(name="python", value=f"{platform.python_version()} ({platform.system()} {platform.machine()})")
    packages = list(_packages())
    yield from packages
    if not any(finding.needed for finding in packages):  # what follows computes with them
        yield from _device()
        yield from embedded_model()
    yield from _optional()
    yield from disk()
    yield from _accelerate()


def _packages() -> Iterator[Finding]:
    try:
        lines = requires("datagen") or []
    except PackageNotFoundError:
        yield Finding(name="datagen", value="not installed", needed=True, remedy="pip install --editable .")
        return
    yield Finding(name="datagen", value=version("datagen"))
    for requirement in map(Requirement, lines):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Finding(
                name=requirement.name,
                value="missing",
                needed=True,
                remedy=f"pip install '{requirement.name}{requirement.specifier}'",
            )
            continue
        if requirement.specifier.contains(found, prereleases=True):
            yield Finding(name=requirement.name, value=found)
        else:
            yield Finding(
                name=requirement.name,
                value=f"{found}, outside {requirement.specifier}",
                needed=True,
                remedy=f"pip install '{requirement.name}{requirement.specifier}'",
            )


def _device() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding(
                name=f"device cuda:{index}",
                value=f"{properties.name}, {properties.total_memory / GIB:.0f} GiB of memory",
            )
    else:
        yield Finding(
            name="device", value="cpu", remedy="no CUDA device: Stable Diffusion itself will take minutes a picture"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = os.environ.get("OMP_NUM_THREADS", "unset")
    yield Finding(
        name="threads",
        value=f"torch uses {torch.get_num_threads()} of {cores} cores, OMP_NUM_THREADS {limit}",
    )
    reference = _seconds("float32")
    for name in ("bfloat16", "float16"):
        try:
            speed = reference / _seconds(name)
        except RuntimeError as error:
            yield Finding(name=name, value=f"does not work: {error}", remedy="keep to `dtype: float32` in plans")
            continue
        yield Finding(
            name=name,
            value=f"{speed:.1f} x the speed of float32 in a matrix product",
            remedy="" if speed > 1 else "no gain on this device: keep to `dtype: float32` in plans",
        )


def _seconds(dtype_name: str) -> float:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    matrix = torch.ones(512, 512, device=device, dtype=getattr(torch, dtype_name))
    took: list[float] = []
    for _ in range(4):  # the first one pays for set-up
        start = time.perf_counter()
        (matrix @ matrix).sum().item()  # waits for the device
        took.append(time.perf_counter() - start)
    return min(took)


def embedded_folder() -> Path:
    """Where the shipped model lies, or would lie."""
    spec = find_spec("datagen")
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) / "pocket" / "weights" if locations else Path("datagen/pocket/weights")


def embedded_model() -> Iterator[Finding]:
    """Whether each weight file of the shipped model is there to its last byte."""
    folder = embedded_folder()
    if not (folder / "model_index.json").is_file():
        yield Finding(
            name="embedded model",
            value=f"absent from {folder}",
            needed=True,
            remedy="install datagen again: these files belong to the package",
        )
        return
    weights = sorted(folder.rglob("*.safetensors"))
    broken = [str(file.relative_to(folder)) for file in weights if not is_whole(file)]
    if broken or not weights:
        yield Finding(
            name="embedded model",
            value=f"incomplete: {', '.join(broken) or 'no weights'}",
            needed=True,
            remedy="fetch the files again; a clone without its large files holds text pointers in their place",
        )
        return
    from decoders.references import digest

    size = sum(file.stat().st_size for file in weights)
    yield Finding(name="embedded model", value=f"whole, {size / (1 << 20):.1f} MiB, sha256 {digest(folder)[:16]}")


def is_whole(file: Path) -> bool:
    """A safetensors file says in its header where its last byte is; a cut or replaced one differs."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= size - 8:
            return False
        try:
            header = json.loads(stream.read(length))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return size == 8 + length + max(ends, default=0)


def _optional() -> Iterator[Finding]:
    for module, extra, use in (
        ("segmentation_models_pytorch", "pocket", "the judge that measures the embedded model"),
        ("controlnet_aux", "annotators", "condition maps that need weights"),
    ):
        if find_spec(module) is None:
            yield Finding(name=module, value="absent (optional)", remedy=f"for {use}: pip install 'datagen[{extra}]'")
        else:
            yield Finding(name=module, value=version(module))
    if find_spec("controlnet_aux") is not None and find_spec("mediapipe") is not None:
        yield Finding(
            name="mediapipe",
            value=version("mediapipe"),
            remedy="controlnet_aux fails to import beside it: pip uninstall mediapipe",
        )


def disk() -> Iterator[Finding]:
    """Room where things are written."""
    for name, folder in (("cache", cache_folder()), ("here", Path.cwd())):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(existing).free
        writable = os.access(existing, os.W_OK)
        remedy = (
            "" if free >= NEEDED_FREE_BYTES else "little room: a feature cache alone may take 2 GiB; lower `cache_gb`"
        )
        if not writable:
            remedy = (
                "not writable: set XDG_CACHE_HOME to a folder of yours"
                if name == "cache"
                else "run from a folder of yours"
            )
        yield Finding(name=f"disk, {name}", value=f"{free / GIB:.1f} GiB free in {folder}", remedy=remedy)


def _accelerate() -> Iterator[Finding]:
    world = os.environ.get("WORLD_SIZE")
    yield Finding(
        name="processes",
        value=f"WORLD_SIZE={world}" if world else "one",
        remedy="two on a CPU: accelerate launch --multi_gpu --num_processes 2 -m datagen generate PLAN "
        "(without --multi_gpu accelerate starts one and says nothing)",
    )
