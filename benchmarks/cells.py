"""A benchmark is a list of cells; each is measured once and found again by the hash of all that decides it."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from datagen.files import json_bytes, read_json
from decoders.files import write_atomic

RESULTS = Path(__file__).parent / "results"

Cell = Mapping[str, Any]
"""What decides a measurement, as JSON values."""


def measure_all(name: str, cells: Iterable[Cell], measure: Callable[[Cell], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Measure what was not measured yet; every finished cell is kept at once in `results/<name>.json`.

    Returns:
        The cells asked for, each joined with what was measured.
    """
    file = RESULTS / f"{name}.json"
    known: dict[str, Any] = read_json(file) if file.exists() else {}
    joined: list[dict[str, Any]] = []
    for cell in cells:
        key = hashlib.sha256(json_bytes(cell)).hexdigest()[:16]
        if key not in known:
            print(f"{name}: {json.dumps(cell, sort_keys=True)}", flush=True)
            known[key] = {"cell": dict(cell), "measured": dict(measure(cell))}
            write_atomic(file, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())
        joined.append({**known[key]["cell"], **known[key]["measured"]})
    return joined
