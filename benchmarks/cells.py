"""A benchmark is a list of cells; each is measured once and found again by the hash of all that decides it."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from datagen.files import json_bytes, read_json
from datagen.model import hardware
from decoders.checkpoint import choose_device
from decoders.files import write_atomic

RESULTS = Path(__file__).parent / "results"

Cell = Mapping[str, Any]
"""What decides a measurement, as JSON values."""


def measure_all(
    name: str, cells: Iterable[Cell], measure: Callable[[Cell], Mapping[str, Any]], *, workers: int = 1
) -> list[dict[str, Any]]:
    """Measure what was not measured yet; every finished cell is kept at once in `results/<name>.json`.

    Args:
        measure: a function of a module, as other processes run it.
        workers: processes that measure side by side, each with its share of the CPU's threads; small models lose less
            to waiting in one thread each than in one process with all of them. 1 = this process.

    Returns:
        The cells asked for, each joined with what was measured and on which `hardware`.
    """
    known = read_results(name)
    wanted = {key_of(cell): cell for cell in cells}
    missing = {key: cell for key, cell in wanted.items() if key not in known}
    for key, measured in _measured(measure, missing, workers):
        known |= read_results(name)  # what another process measured meanwhile
        known[key] = {"cell": dict(wanted[key]), "measured": measured | {"hardware": this_hardware()}}
        write_results(name, known)
        print(f"{name}: measured {json.dumps(wanted[key], sort_keys=True)}", flush=True)
    return [{**known[key]["cell"], **known[key]["measured"]} for key in wanted]


def key_of(cell: Cell) -> str:
    """Stands for all that decides a measurement."""
    return hashlib.sha256(json_bytes(cell)).hexdigest()[:16]


def read_results(name: str) -> dict[str, Any]:
    """What `results/<name>.json` holds; nothing where there is none."""
    file = RESULTS / f"{name}.json"
    return read_json(file) if file.exists() else {}


def write_results(name: str, found: Mapping[str, Any]) -> None:
    write_atomic(RESULTS / f"{name}.json", (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())


def this_hardware() -> str:
    """What computes, and in which number format frozen models are."""
    return hardware(str(choose_device(None)), "auto")


def _measured(
    measure: Callable[[Cell], Mapping[str, Any]], cells: Mapping[str, Cell], workers: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each cell's key with what was measured, as soon as it is known."""
    if workers == 1:
        yield from ((key, dict(measure(cell))) for key, cell in cells.items())
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin, initargs=(threads,)) as pool:
        running = {pool.submit(measure, cell): key for key, cell in cells.items()}
        for done in as_completed(running):
            yield running[done], dict(done.result())


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
