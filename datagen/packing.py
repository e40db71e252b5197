"""Labels as files: which bytes a label becomes, and the label that those bytes stand for."""

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from jaxtyping import Shaped

from datagen.files import decode_png, encode_png, json_bytes
from datagen.instances import from_entries, to_entries
from decoders.labels import CONFIDENCE_STORAGE, DenseMap, InstanceSet, Label, LabelSet, Storage

INVALID = 0
"""The whole number that says 'no truth here', in every map of every file."""
_TASK_NAME = re.compile(r"[a-z][a-z0-9_]*")


def check_task_name(name: str, *, taken: frozenset[str]) -> None:
    """Refuse a task that cannot name files and arrays.

    Raises:
        ValueError: the name cannot be part of a file name, or means something else there.
    """
    if not _TASK_NAME.fullmatch(name) or name in taken:
        raise ValueError(
            f"task name {name!r} cannot name files; use small letters, digits and _, other than {sorted(taken)}"
        )


def pack_map(label: DenseMap) -> Shaped[np.ndarray, "height width *channels"]:
    """The map's whole numbers, 0 where it is not valid; no channel axis where there is one channel.

    Raises:
        ValueError: a value does not fit, or a PNG has no place for that many channels.
    """
    channels = label.values.shape[2]
    if channels != 1 and (channels, label.storage.dtype) != (3, "uint8"):
        raise ValueError(
            f"a map of {channels} channels of {label.storage.dtype} does not fit a PNG; one channel of uint8 or uint16 "
            "does, and three of uint8"
        )
    zero = np.float32((1 - label.storage.offset) * label.storage.quantum)  # a stand-in that every storage can hold
    steps = label.storage.pack(np.where(label.valid[..., None], label.values, zero))
    if np.any(label.valid & (steps == INVALID).all(axis=2)):
        raise ValueError(
            f"valid pixels of {label.storage.unit} round to {INVALID}, which means 'not valid' in a file; mark them "
            "invalid or choose a smaller quantum"
        )
    steps[~label.valid] = INVALID
    return steps[..., 0] if channels == 1 else steps


def unpack_map(
    steps: Shaped[np.ndarray, "height width *channels"],
    storage: Storage,
    confidence: Shaped[np.ndarray, "height width"] | None = None,
) -> DenseMap:
    """The map that the whole numbers stand for; `confidence` in 0..255, 1 everywhere when left out."""
    steps = steps[..., None] if steps.ndim == 2 else steps
    valid = (steps != INVALID).any(axis=2)
    return DenseMap(
        values=np.where(valid[..., None], storage.unpack(steps), np.float32(0)),
        valid=valid,
        confidence=np.ones(valid.shape, np.float32) if confidence is None else confidence.astype(np.float32) / 255,
        storage=storage,
    )


def confidence_name(task: str) -> str:
    """What the confidence of a map is called where it is a map of its own."""
    return f"{task}_confidence"


def confidence_maps(labels: LabelSet) -> dict[str, DenseMap]:
    """The confidences of the maps in `labels` as maps; none of given truth, which is sure everywhere."""
    return {
        confidence_name(task): DenseMap(
            values=label.confidence[..., None],
            valid=np.ones(label.valid.shape, bool),
            confidence=np.ones(label.valid.shape, np.float32),
            storage=CONFIDENCE_STORAGE,
        )
        for task, label in labels.items()
        if isinstance(label, DenseMap) and (label.confidence < 1).any()
    }


def pack_labels(labels: LabelSet, *, taken: frozenset[str]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Files by name ending, in order, and the storage of each map as a JSON value, with its count of repairs.

    A map X becomes `X.png` and `X.confidence.png` (8 bits), a set of objects X becomes `X.json`.
    """
    files: dict[str, bytes] = {}
    storages: dict[str, Any] = {}
    for name in sorted(labels):
        check_task_name(name, taken=taken)
        label = labels[name]
        if isinstance(label, InstanceSet):
            files[f"{name}.json"] = json_bytes(to_entries(label))
            continue
        files[f"{name}.png"] = encode_png(pack_map(label))
        files[f"{name}.confidence.png"] = encode_png(_pack_confidence(label))
        storages[name] = asdict(label.storage) | ({"repairs": label.repairs} if label.repairs else {})
    return files, storages


def unpack_labels(
    files: Mapping[str, Any], storages: Mapping[str, Any], *, height: int, width: int
) -> dict[str, Label]:
    """The inverse of `pack_labels`; `files` holds a decoded JSON value per set of objects and bytes per PNG."""
    labels: dict[str, Label] = {}
    for ending, content in sorted(files.items()):
        name, _, kind = ending.partition(".")
        if kind == "json":
            labels[name] = from_entries(content, height=height, width=width)
        elif kind == "png":
            confidence = decode_png(files[f"{name}.confidence.png"])
            storage = dict(storages[name])
            repairs = storage.pop("repairs", 0)
            label = unpack_map(decode_png(content), Storage(**storage), confidence)
            labels[name] = replace(label, repairs=repairs)
    return labels


def _pack_confidence(label: DenseMap) -> Shaped[np.ndarray, "height width"]:
    return Storage(unit="confidence", quantum=1 / 255, dtype="uint8").pack(label.confidence)
