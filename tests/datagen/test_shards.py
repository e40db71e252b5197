import errno
import io
import json
import os
import socket
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from datagen.records import Guide, Recipe, Sample, Verdict
from datagen.shards import ShardStore
from decoders.errors import UserError
from decoders.labels import DenseMap, InstanceSet, LabelSet, Storage
from tests.datagen.made_up import failing, image, labels, sample, tree

KEPT = Verdict(keep=True, scores={"confidence": 0.75})
BAD = Verdict(keep=False, reason="no car", scores={"confidence": 0.25})


def _fill(store: ShardStore, index: int, verdicts: Sequence[Verdict] = (KEPT, BAD, KEPT)) -> list[Sample]:
    samples = [sample(index * len(verdicts) + step) for step in range(len(verdicts))]
    store.write(index, samples, verdicts)
    return samples


def _assert_equal(found: LabelSet, given: LabelSet) -> None:
    assert found.keys() == given.keys()
    for task, label in given.items():
        back = found[task]
        if isinstance(label, InstanceSet):
            assert isinstance(back, InstanceSet)
            np.testing.assert_array_equal(back.masks, label.masks)
            np.testing.assert_array_equal(back.category_ids, label.category_ids)
            np.testing.assert_allclose(back.scores, label.scores, atol=1e-6)
            np.testing.assert_array_equal(back.is_crowd, label.is_crowd)
            continue
        assert isinstance(back, DenseMap)
        assert (back.storage, back.repairs) == (label.storage, label.repairs)
        np.testing.assert_array_equal(back.valid, label.valid)
        quantum = label.storage.quantum
        np.testing.assert_allclose(back.values[back.valid], label.values[label.valid], atol=quantum / 2 + 1e-5)
        assert not back.values[~back.valid].any()
        np.testing.assert_allclose(back.confidence, label.confidence, atol=0.5 / 255 + 1e-6)


def test_everything_comes_back(tmp_path: Path):
    store = ShardStore(tmp_path / "läufe 1")
    samples = _fill(store, 0)
    stored = list(store.read(0))
    assert [found.verdict for found in stored] == [KEPT, BAD, KEPT]
    for found, given in zip(stored, samples, strict=True):
        assert found.recipe == given.recipe
        np.testing.assert_array_equal(found.image, given.image)
        _assert_equal(found.labels, given.labels)


def test_a_guide_comes_back(tmp_path: Path):
    store = ShardStore(tmp_path)
    for index, picture in enumerate((None, image(5, 8, 9))):
        guide = Guide(labels=labels(1, 8, 9), image=picture)
        recipe = Recipe(id=f"{index:08d}", prompt="a", seed=1, guide=guide, attributes={"weather": "snow"})
        store.write(index, [Sample(recipe=recipe, image=image(1), labels=labels(2))], [KEPT])
        back = next(iter(store.read(index)))
        assert back.recipe.guide is not None
        assert back.recipe.attributes == {"weather": "snow"}
        _assert_equal(back.recipe.guide.labels, guide.labels)
        _assert_equal(back.labels, labels(2))
        assert (back.recipe.guide.image is None) == (picture is None)
        if picture is not None:
            np.testing.assert_array_equal(back.recipe.guide.image, picture)


def test_maps_of_three_channels_and_offsets_come_back(tmp_path: Path):
    generator = np.random.default_rng(0)
    valid = generator.random((6, 5)) < 0.8
    whole = np.ones((6, 5), np.float32)
    normals = generator.uniform(-0.9, 1, (6, 5, 3)).astype(np.float32)
    shift = generator.integers(-900, 900, (6, 5, 1)).astype(np.float32)
    given = {
        "normals": DenseMap(
            values=normals,
            valid=valid,
            confidence=whole,
            storage=Storage(unit="", quantum=1 / 127, offset=128, dtype="uint8"),
        ),
        "flow_x": DenseMap(
            values=shift, valid=valid, confidence=whole, storage=Storage(unit="px", quantum=1.0, offset=1000)
        ),
    }
    store = ShardStore(tmp_path)
    recipe = Recipe(id="00000000", prompt="", seed=0)
    store.write(0, [Sample(recipe=recipe, image=image(0, 6, 5), labels=given)], [KEPT])
    _assert_equal(next(iter(store.read(0))).labels, given)


def test_labels_that_a_file_cannot_hold_are_refused(tmp_path: Path):
    store = ShardStore(tmp_path)
    recipe = Recipe(id="00000000", prompt="", seed=0)
    ones, everywhere = np.ones((4, 4), np.float32), np.ones((4, 4), bool)

    def write(values: np.ndarray, storage: Storage, task: str = "depth") -> None:
        label = DenseMap(values=values, valid=everywhere, confidence=ones, storage=storage)
        store.write(0, [Sample(recipe=recipe, image=image(0, 4, 4), labels={task: label})], [KEPT])

    meters = Storage(unit="m", quantum=0.1)
    with pytest.raises(ValueError, match="round to 0, which means 'not valid'"):
        write(ones[..., None] * 0.01, meters)
    with pytest.raises(ValueError, match="do not fit uint16"):
        write(ones[..., None] * np.float32(np.nan), meters)
    with pytest.raises(ValueError, match="3 channels of uint16 does not fit a PNG"):
        write(np.ones((4, 4, 3), np.float32), meters)
    for task in ("image", "Depth", "a.b", "guide"):
        with pytest.raises(ValueError, match="cannot name files"):
            write(ones[..., None], meters, task)
    assert tree(tmp_path) == {}


def test_the_tar_is_a_webdataset_of_fixed_bytes(tmp_path: Path):
    first, second = ShardStore(tmp_path / "a"), ShardStore(tmp_path / "b")
    _fill(first, 0)
    _fill(second, 0)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    with tarfile.open(first.folder / "000000.tar") as tar:
        members = tar.getmembers()
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}
    assert [member.name for member in members][:8] == [
        "00000000.json",
        "00000000.depth.confidence.png",
        "00000000.depth.png",
        "00000000.image.png",
        "00000000.instances.json",
        "00000000.semantic.confidence.png",
        "00000000.semantic.png",
        "00000001.json",
    ]


def test_the_mark_tells_ids_verdicts_and_tally(tmp_path: Path):
    store = ShardStore(tmp_path)
    _fill(store, 2)
    mark = json.loads((store.folder / "000002.done.json").read_text())
    assert mark["tally"] == {"accepted": 2, "rejected": {"no car": 1}}
    assert mark["samples"][1] == {"id": "00000007", "keep": False, "reason": "no car", "scores": {"confidence": 0.25}}
    (summary,) = store.done()
    assert summary.index == 2
    assert summary.accepted == ("00000006", "00000008")
    assert summary.rejected == {"no car": 1}
    assert summary.verdicts["00000007"] == BAD


def test_accepted_are_the_first_in_id_order_up_to_a_gap(tmp_path: Path):
    store = ShardStore(tmp_path)
    for index in (3, 1, 0):
        _fill(store, index)

    def ids(target: int | None) -> list[str]:
        return [found.recipe.id for found in store.accepted(target)]

    assert ids(None) == ["00000000", "00000002", "00000003", "00000005"]
    assert ids(3) == ["00000000", "00000002", "00000003"]
    with pytest.raises(UserError, match="has 4 accepted samples in shards without a gap, expected 5"):
        next(store.accepted(5))
    assert ids(0) == []
    assert [summary.index for summary in store.contiguous()] == [0, 1]
    _fill(store, 2)
    assert ids(None)[-2:] == ["00000009", "00000011"]


def test_an_empty_store_has_nothing(tmp_path: Path):
    store = ShardStore(tmp_path / "none")
    assert not store.is_done(0)
    assert store.done() == store.contiguous() == list(store.accepted()) == []
    with pytest.raises(UserError, match=r"000000\.tar is not finished"):
        next(iter(store.read(0)))


@pytest.mark.parametrize("damage", ["no tar", "cut tar", "no mark", "empty mark", "mark of another kind"])
def test_a_damaged_shard_counts_as_unfinished_and_is_remade_to_the_same_bytes(tmp_path: Path, damage: str):
    store = ShardStore(tmp_path)
    _fill(store, 0)
    whole = tree(tmp_path)
    tar, mark = store.folder / "000000.tar", store.folder / "000000.done.json"
    match damage:
        case "no tar":
            tar.unlink()
        case "cut tar":
            tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
        case "no mark":
            mark.unlink()
        case "empty mark":
            mark.write_bytes(b"")
        case _:
            mark.write_text("[]")
    assert not store.is_done(0)
    assert list(store.accepted()) == []
    _fill(store, 0)
    assert tree(tmp_path) == whole


def test_a_mark_that_cannot_be_read_is_not_taken_for_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else an export would end there, and take out what an earlier one wrote."""
    store = ShardStore(tmp_path)
    _fill(store, 0)
    _fill(store, 1)
    read = Path.read_bytes

    def read_or_fail(path: Path) -> bytes:
        if path.name == "000001.done.json":
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_or_fail)
    with pytest.raises(UserError, match=r"cannot read .*000001\.done\.json or its tar \(Input/output error\)"):
        list(store.accepted())


def test_changed_bytes_of_equal_size_are_found_and_the_shard_is_made_again(tmp_path: Path):
    store = ShardStore(tmp_path)
    _fill(store, 0)
    tar = store.folder / "000000.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    assert store.is_done(0)
    with pytest.raises(UserError, match=r"sha256 .*was damaged.*datagen generate"):
        list(store.accepted())
    assert not store.is_done(0)


def test_a_tar_cut_behind_its_mark_is_told(tmp_path: Path):
    store = ShardStore(tmp_path)
    _fill(store, 0)
    tar, mark = store.folder / "000000.tar", store.folder / "000000.done.json"
    tar.write_bytes(tar.read_bytes()[: 512 * 3 + 100])
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"nbytes": tar.stat().st_size}))
    with pytest.raises(UserError, match=r"000000\.tar is damaged"):
        list(store.read(0))


@pytest.mark.parametrize("after", [0, 1])
def test_a_full_disk_leaves_no_half_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int):
    store = ShardStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(OSError(errno.ENOSPC, "No space left on device"), after=after))
        with pytest.raises(UserError, match="disk full while writing"):
            _fill(store, 0)
    assert not store.is_done(0)
    assert not [name for name in tree(tmp_path) if name.endswith(".tmp")]
    _fill(store, 0)
    assert store.is_done(0)


def test_opening_removes_what_a_killed_writer_left(tmp_path: Path):
    _fill(ShardStore(tmp_path), 0)
    whole = tree(tmp_path)
    left = tmp_path / "shards" / f".{socket.gethostname()}-0123456789abcdef.tmp"
    left.write_bytes(b"half")
    ShardStore(tmp_path)
    assert tree(tmp_path) == whole


@pytest.mark.parametrize("ids", [("00000001", "00000000"), ("00000000", "00000000"), ("a.b",)])
def test_ids_must_rise_and_fit_the_layout(tmp_path: Path, ids: tuple[str, ...]):
    samples = [Sample(recipe=Recipe(id=name, prompt="", seed=0), image=image(), labels={}) for name in ids]
    with pytest.raises(ValueError, match="sample ids must rise"):
        ShardStore(tmp_path).write(0, samples, [KEPT] * len(ids))


def test_images_in_the_tar_open_as_png(tmp_path: Path):
    from PIL import Image

    store = ShardStore(tmp_path)
    (given, *_) = _fill(store, 0)
    with tarfile.open(store.folder / "000000.tar") as tar:
        file = tar.extractfile("00000000.image.png")
        assert file is not None
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(file.read()))), given.image)
