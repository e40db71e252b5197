"""The store: what a shard holds, how it is committed, and how it is read back.

A shard is a WebDataset tar (a sample's key is its name up to the first dot). It counts as finished once `<k>.done.json`
stands beside it, which is written after the tar and tells its size and sha256: a kill at any moment costs at most the
shard in hand.
"""

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedRandom, BufferedReader
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from datagen.files import decode_png, encode_png, json_bytes, write_json
from datagen.packing import pack_labels, unpack_labels
from datagen.records import Guide, Recipe, Sample, Verdict
from decoders.errors import UserError
from decoders.files import atomic_file, remove_stale
from decoders.labels import LabelSet

_RESERVED = frozenset({"image", "guide"})
_RESERVED_IN_GUIDE = frozenset({"image"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSample:
    """A sample as it comes back: maps in the steps of their storage, confidence in steps of 1/255."""

    recipe: Recipe
    image: UInt8[np.ndarray, "height width 3"]
    labels: LabelSet
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSummary:
    """What `<k>.done.json` says; cheap to read."""

    index: int
    sha256: str
    nbytes: int
    verdicts: dict[str, Verdict]
    """By sample id, in id order."""

    @property
    def accepted(self) -> tuple[str, ...]:
        return tuple(name for name, verdict in self.verdicts.items() if verdict.keep)

    @property
    def rejected(self) -> Counter[str]:
        """How many samples were rejected, by reason."""
        return Counter(verdict.reason for verdict in self.verdicts.values() if not verdict.keep)


class ShardStore:
    """The shards of one run, in `run/shards`. Opening it removes what killed writers left half-written."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "shards"
        remove_stale(self.folder)

    def summary(self, index: int) -> ShardSummary | None:
        """The mark of a shard; None unless it is finished, which takes a tar of the size that the mark says.

        Raises:
            UserError: the file system does not say.
        """
        try:
            summary = _mark_from_json(index, json.loads(self._mark(index).read_bytes()))
            return summary if self._tar(index).stat().st_size == summary.nbytes else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # no mark, no tar, or a mark that says nothing
            return None
        except OSError as error:  # which says nothing of the shard: what follows it must not be taken for missing
            raise UserError(
                f"cannot read {self._mark(index)} or its tar ({error.strerror}); nothing was changed: see to the file "
                "system, then run the same command again"
            ) from error

    def is_done(self, index: int) -> bool:
        """Whether the shard is marked finished and its tar has the size that the mark says."""
        return self.summary(index) is not None

    def done(self) -> list[ShardSummary]:
        """All finished shards, in order."""
        indices = sorted(int(path.name.split(".")[0]) for path in self.folder.glob("[0-9]*.done.json"))
        return [summary for index in indices if (summary := self.summary(index)) is not None]

    def contiguous(self) -> list[ShardSummary]:
        """The finished shards from 0 up to the first gap: what `accepted` draws from."""
        summaries: list[ShardSummary] = []
        for index in count():
            summary = self.summary(index)
            if summary is None:
                return summaries
            summaries.append(summary)
        raise AssertionError("count() ended")

    def write(self, index: int, samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> ShardSummary:
        """Commit a shard; equal samples and verdicts give equal bytes, and rejected samples stay in it.

        Raises:
            UserError: the disk is full or the folder cannot be written to; the shard then counts as unfinished.
            ValueError: ids do not rise, or a label does not fit its storage.
        """
        ids = [sample.recipe.id for sample in samples]
        if any(left >= right for left, right in pairwise(ids)) or any("." in name for name in ids):
            raise ValueError(f"sample ids must rise and hold no dot, found {ids}")
        with atomic_file(self._tar(index)) as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for sample, verdict in zip(samples, verdicts, strict=True):
                    for ending, content in _pack(sample, verdict).items():
                        member = tarfile.TarInfo(f"{sample.recipe.id}.{ending}")  # owner and time are 0 by default
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
            sha256, nbytes = _digest(file)
        summary = ShardSummary(
            index=index, sha256=sha256, nbytes=nbytes, verdicts=dict(zip(ids, verdicts, strict=True))
        )
        write_json(self._mark(index), _mark_to_json(summary))
        return summary

    def verify(self, summary: ShardSummary) -> None:
        """Compare the tar with its mark.

        Raises:
            UserError: they differ; its mark is taken away first, so that the next `datagen generate` remakes the shard.
        """
        with self._tar(summary.index).open("rb") as file:
            sha256, _ = _digest(file)
        if sha256 != summary.sha256:
            self._mark(summary.index).unlink(missing_ok=True)
            raise UserError(
                f"shard {self._tar(summary.index)} has sha256 {sha256}, expected {summary.sha256}: it was damaged "
                "after it was written. Run `datagen generate` with the same plan: it makes this shard again"
            )

    def read(self, index: int, *, only: frozenset[str] | None = None) -> Iterator[StoredSample]:
        """Every sample of a finished shard, rejected ones too, or `only` those ids; one in memory at a time.

        Raises:
            UserError: the shard is unfinished or its tar is damaged.
        """
        if not self.is_done(index):
            raise UserError(f"shard {self._tar(index)} is not finished; finish the run with `datagen generate` first")
        try:
            with tarfile.open(self._tar(index)) as tar:
                for name, files in _grouped(tar):
                    if only is None or name in only:
                        yield _unpack(files)
        except (tarfile.TarError, EOFError) as error:
            raise UserError(
                f"shard {self._tar(index)} is damaged ({error}); delete it and run `datagen generate` with the same "
                "plan to make it again"
            ) from error

    def accepted(self, target: int | None = None) -> Iterator[StoredSample]:
        """The first `target` (or all) accepted samples in id order, from shards that were compared with their sha256.

        Raises:
            UserError: before the first one, if there are fewer than `target`; else as `verify`.
        """
        summaries = self.contiguous()
        there = sum(len(summary.accepted) for summary in summaries)
        left = there if target is None else target
        if there < left:
            raise UserError(
                f"{self.folder} has {there} accepted samples in shards without a gap, expected {left}; run `datagen "
                "generate` with the same plan: it makes what is missing"
            )
        for summary in summaries:
            if not left:
                return
            chosen = summary.accepted[:left]
            self.verify(summary)
            yield from self.read(summary.index, only=frozenset(chosen))
            left -= len(chosen)

    def _tar(self, index: int) -> Path:
        return self.folder / f"{index:06d}.tar"

    def _mark(self, index: int) -> Path:
        return self.folder / f"{index:06d}.done.json"


def _pack(sample: Sample, verdict: Verdict) -> dict[str, bytes]:
    """A sample's files by name ending."""
    files, storages = pack_labels(sample.labels, taken=_RESERVED)
    recipe = sample.recipe
    about: dict[str, Any] = {
        "recipe": {
            "id": recipe.id,
            "prompt": recipe.prompt,
            "negative_prompt": recipe.negative_prompt,
            "seed": recipe.seed,
            "wanted": list(recipe.wanted),
            "listed": dict(recipe.listed),
            "attributes": dict(recipe.attributes),
        },
        "verdict": _verdict_to_json(verdict),
        "height": sample.image.shape[0],
        "width": sample.image.shape[1],
        "storages": storages,
    }
    if (guide := recipe.guide) is not None:
        guide_files, about["guide_storages"] = pack_labels(guide.labels, taken=_RESERVED_IN_GUIDE)
        about["guide_size"] = list(guide.size)
        if guide.image is not None:
            guide_files["image.png"] = encode_png(guide.image)
        files |= {f"guide.{ending}": content for ending, content in guide_files.items()}
    files["image.png"] = encode_png(sample.image)
    return {"json": json_bytes(about), **dict(sorted(files.items()))}


def _unpack(files: dict[str, bytes]) -> StoredSample:
    about = json.loads(files.pop("json"))
    image = decode_png(files.pop("image.png"))
    size = {"height": about["height"], "width": about["width"]}
    values: dict[str, Any] = {
        ending: json.loads(content) if ending.endswith(".json") else content for ending, content in files.items()
    }
    guide = None
    if "guide_storages" in about:
        parts = {ending.removeprefix("guide."): values.pop(ending) for ending in files if ending.startswith("guide.")}
        picture = parts.pop("image.png", None)
        height, width = about["guide_size"]
        guide = Guide(
            labels=unpack_labels(parts, about["guide_storages"], height=height, width=width),
            image=None if picture is None else decode_png(picture),
        )
    recipe: dict[str, Any] = about["recipe"]
    wanted = tuple(recipe.pop("wanted"))
    return StoredSample(
        recipe=Recipe(**recipe, wanted=wanted, guide=guide),
        image=image,
        labels=unpack_labels(values, about["storages"], **size),
        verdict=Verdict(**about["verdict"]),
    )


def _grouped(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(sample id, its files by name ending), in the order of the tar, one sample in memory at a time."""
    current: str | None = None
    files: dict[str, bytes] = {}
    for member in tar:
        name, _, ending = member.name.partition(".")
        if current is not None and name != current:
            yield current, files
            files = {}
        current = name
        content = tar.extractfile(member)
        assert content is not None, member.name  # `write` puts only plain files in
        files[ending] = content.read()
    if current is not None:
        yield current, files


def _digest(file: BufferedRandom | BufferedReader) -> tuple[str, int]:
    """(sha256, size in bytes) of an open file."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()


def _verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    scores = {name: float(score) for name, score in verdict.scores.items()}
    return {"keep": bool(verdict.keep), "reason": verdict.reason, "scores": scores}


def _mark_to_json(summary: ShardSummary) -> dict[str, Any]:
    return {
        "sha256": summary.sha256,
        "nbytes": summary.nbytes,
        "samples": [{"id": name, **_verdict_to_json(verdict)} for name, verdict in summary.verdicts.items()],
        "tally": {"accepted": len(summary.accepted), "rejected": dict(summary.rejected)},
    }


def _mark_from_json(index: int, data: Any) -> ShardSummary:
    verdicts = {
        entry["id"]: Verdict(keep=entry["keep"], reason=entry["reason"], scores=entry["scores"])
        for entry in data["samples"]
    }
    return ShardSummary(index=index, sha256=data["sha256"], nbytes=data["nbytes"], verdicts=verdicts)
