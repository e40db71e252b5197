import errno
import fcntl
import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datagen.files import (
    decode_png,
    encode_png,
    image_size,
    json_bytes,
    read_image,
    read_json,
    read_label_file,
    read_label_png,
    write_json,
)
from decoders.errors import UserError
from decoders.files import atomic_file, no_other_writer, remove_stale, write_atomic
from tests.datagen.made_up import failing, tree

RNG = np.random.default_rng(0)
COLORS = RNG.integers(0, 256, (5, 7, 3), np.uint8)


@pytest.mark.parametrize(
    "pixels",
    [COLORS, COLORS[..., 0], RNG.integers(0, 65536, (5, 7), np.uint16), np.full((1, 1), 65535, np.uint16)],
    ids=["rgb", "grey", "grey 16", "one pixel"],
)
def test_png_gives_back_pixels_and_equal_bytes(pixels: np.ndarray):
    data = encode_png(pixels)
    assert data == encode_png(pixels.copy())
    back = decode_png(data)
    assert back.dtype == pixels.dtype
    np.testing.assert_array_equal(back, pixels)


def test_json_is_canonical_and_refuses_nan(tmp_path: Path):
    write_json(tmp_path / "ü x.json", {"b": 1, "a": "ä"})
    assert (tmp_path / "ü x.json").read_text(encoding="utf-8") == '{"a":"ä","b":1}\n'
    assert read_json(tmp_path / "ü x.json") == {"a": "ä", "b": 1}
    with pytest.raises(ValueError, match="JSON compliant"):
        json_bytes([float("nan")])


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe"])
def test_broken_json_names_the_file(tmp_path: Path, content: bytes):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json cannot be read as JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="file not found"):
        read_json(tmp_path / "b.json")


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path):
    write_atomic(tmp_path / "new folder" / "a", b"one")
    write_atomic(tmp_path / "new folder" / "a", b"two")
    assert tree(tmp_path) == {"new folder/a": b"two"}


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
):
    write_atomic(tmp_path / "a", b"old")
    monkeypatch.setattr(os, call, failing(OSError(number, os.strerror(number))))
    with pytest.raises(UserError, match=r"disk full while writing .*a; .*free some space.*same command"):
        write_atomic(tmp_path / "a", b"new")
    assert tree(tmp_path) == {"a": b"old"}


def test_a_failed_block_leaves_no_trace(tmp_path: Path):
    def half() -> None:
        with atomic_file(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert tree(tmp_path) == {}


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot write .*choose another"):
        write_atomic(tmp_path / "file" / "a", b"")


def test_two_do_not_write_one_folder(tmp_path: Path):
    folder = tmp_path / "ein ö"
    told = pytest.raises(UserError, match=r"another process is writing .*ein ö; wait until it ends")
    with no_other_writer(folder), no_other_writer(tmp_path / "other"), told, no_other_writer(folder):
        pass
    (tmp_path / "link").symlink_to(folder)
    with no_other_writer(tmp_path / "link"), told, no_other_writer(folder):
        pass
    with no_other_writer(folder):
        assert not list(folder.iterdir()), "nothing is left behind"


def test_a_killed_writer_is_cleaned_up_and_a_living_one_is_not(tmp_path: Path):
    code = (
        "import os, signal, sys; from pathlib import Path; from decoders.files import atomic_file\n"
        "with atomic_file(Path(sys.argv[1]) / 'a') as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(tree(tmp_path)) == 1
    with atomic_file(tmp_path / "b") as file:
        file.write(b"whole")
        assert len(tree(tmp_path)) == 2
        remove_stale(tmp_path)
        assert len(tree(tmp_path)) == 1
    assert tree(tmp_path) == {"b": b"whole"}


def test_what_another_machine_writes_stays_for_a_day(tmp_path: Path):
    living, dead = tmp_path / ".elsewhere-01.tmp", tmp_path / ".elsewhere-02.tmp"
    for path in (living, dead):
        path.write_bytes(b"half")
    os.utime(dead, (0, time.time() - 25 * 3600))
    remove_stale(tmp_path)
    assert tree(tmp_path) == {living.name: b"half"}


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fcntl, "flock", failing(OSError(errno.ENOSYS, "Function not implemented")))
    with no_other_writer(tmp_path):
        write_atomic(tmp_path / "a", b"whole")
    remove_stale(tmp_path)
    assert tree(tmp_path) == {"a": b"whole"}
    monkeypatch.setattr(fcntl, "flock", failing(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        write_atomic(tmp_path / "b", b"whole")
    assert tree(tmp_path) == {"a": b"whole"}


def _saved(path: Path, picture: Image.Image, **settings: Any) -> Path:
    picture.save(path, **settings)
    return path


def test_pictures_of_every_mode_become_rgb(tmp_path: Path):
    rgb = Image.fromarray(COLORS)
    grey = np.repeat(np.array(rgb.convert("L"))[..., None], 3, axis=2)
    for mode, expected in {"RGB": COLORS, "RGBA": COLORS, "L": grey, "LA": grey}.items():
        np.testing.assert_array_equal(read_image(_saved(tmp_path / f"{mode}.png", rgb.convert(mode))), expected)
    palette = Image.fromarray(COLORS[..., 0] % 2).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    colors = np.array([(10, 20, 30), (40, 50, 60)], np.uint8)[COLORS[..., 0] % 2]
    np.testing.assert_array_equal(read_image(_saved(tmp_path / "P.png", palette)), colors)
    deep = Image.fromarray(np.array([[0, 256, 65535]], np.uint16))
    np.testing.assert_array_equal(read_image(_saved(tmp_path / "16.png", deep))[..., 0], [[0, 1, 255]])
    assert read_image(_saved(tmp_path / "ü 1.tif", rgb.convert("CMYK"))).shape == (5, 7, 3)


def test_exif_orientation_is_applied(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = _saved(tmp_path / "a.png", Image.fromarray(COLORS), exif=exif)
    np.testing.assert_array_equal(read_image(path), np.rot90(COLORS, -1))
    assert image_size(path.read_bytes(), "a") == (7, 5)
    exif[0x0112] = 5
    for ending in ("png", "jpg", "tif", "webp"):
        path = _saved(tmp_path / f"b.{ending}", Image.fromarray(COLORS), exif=exif)
        assert image_size(path.read_bytes(), "b") == read_image(path).shape[:2] == (7, 5), ending


@pytest.mark.parametrize("read", [read_image, read_label_png])
def test_missing_and_damaged_pictures_are_named(tmp_path: Path, read: object):
    assert callable(read)
    whole = encode_png(RNG.integers(0, 256, (64, 64), np.uint8))
    broken = {"cut.png": whole[: len(whole) // 2], "head.png": whole[:20], "empty.png": b"", "text.png": b"hello"}
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for name, data in {**broken, "flipped.png": bytes(flipped)}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"{name} cannot be read .*replace or remove"):
            read(tmp_path / name)
    with pytest.raises(UserError, match=r"not found: .*none\.png; check the path"):
        read(tmp_path / "none.png")


def test_files_that_may_not_be_read_are_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for place in ("datagen.files.Image.open", "datagen.files.np.load", "pathlib.Path.read_text"):
        monkeypatch.setattr(place, refuse)
    reading = ((read_image, "a.png"), (read_label_png, "a.png"), (read_label_file, "a.npy"), (read_json, "a.json"))
    for read, name in reading:
        with pytest.raises(UserError, match=rf"^no permission to read .*{name}; give yourself the right"):
            read(tmp_path / name)


def test_floating_point_pictures_are_refused(tmp_path: Path):
    path = _saved(tmp_path / "a.tif", Image.fromarray(np.zeros((2, 2), np.float32)))
    with pytest.raises(UserError, match="floating-point numbers"):
        read_image(path)
    with pytest.raises(UserError, match=r"a\.tif is a picture of floating-point numbers.*NPY array.*16-bit PNG"):
        read_label_file(path, floats=True)


def test_label_files_give_ids_and_never_colors(tmp_path: Path):
    ids = np.array([[0, 1, 2], [3, 1, 255]], np.uint8)
    palette = Image.fromarray(ids).convert("P")
    palette.putpalette([9] * 768)
    wide = np.array([[0, 300, 65535]], np.uint16)
    for name, picture, expected in (
        ("grey.png", Image.fromarray(ids), ids),
        ("palette.png", palette, ids),
        ("wide.png", Image.fromarray(wide), wide),
        ("bits.png", Image.fromarray(ids > 1), (ids > 1).astype(np.uint8)),
        ("grey.bmp", Image.fromarray(ids), ids),
        ("wide.tif", Image.fromarray(wide), wide),
    ):
        found = read_label_png(_saved(tmp_path / name, picture))
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_is_not_stretched(tmp_path: Path, bits: int):
    import struct
    import zlib

    ids = np.arange(8, dtype=np.uint8)[None] % 2**bits
    unpacked = np.unpackbits(ids[..., None], axis=2)[..., 8 - bits :]
    rows = b"\0" + np.packbits(unpacked.reshape(1, -1), axis=1).tobytes()
    header = struct.pack(">IIBBBBB", 8, 1, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    data = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    np.testing.assert_array_equal(read_label_png(tmp_path / "a.png"), ids)


def test_colors_and_lossy_label_files_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"a\.png holds colours .*one id per pixel"):
        read_label_png(_saved(tmp_path / "a.png", Image.fromarray(COLORS)))
    with pytest.raises(UserError, match=r"b\.jpg is JPEG, expected a lossless"):
        read_label_png(_saved(tmp_path / "b.jpg", Image.fromarray(COLORS[..., 0])))
    with pytest.raises(UserError, match=r"c\.tif holds ids -5\.\."):
        read_label_png(_saved(tmp_path / "c.tif", Image.fromarray(np.full((2, 2), -5, np.int32))))


def test_the_size_of_something_else_is_told():
    with pytest.raises(UserError, match=r"picture x\.png cannot be read"):
        image_size(b"hello", "x.png")
    buffer = io.BytesIO()
    Image.fromarray(COLORS).save(buffer, "JPEG")
    assert image_size(buffer.getvalue(), "x.jpg") == (5, 7)
