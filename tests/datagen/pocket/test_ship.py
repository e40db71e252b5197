"""What is shipped is what was trained, in half the bytes."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel

from datagen.pocket import ship
from decoders.errors import UserError


def test_a_trained_control_becomes_the_shipped_one(tmp_path: Path):
    package = tmp_path / "package"
    (package / "control").mkdir(parents=True)
    (package / "control/README.md").write_text("its card")
    trained = tmp_path / "trained"
    ControlNetModel.from_pretrained(ship.PACKAGE / "control").save_pretrained(trained)
    with pytest.raises(UserError, match=r"trained holds no ControlNet: control\.json is missing"):
        ship.ship(trained, package=package)
    shutil.copyfile(ship.PACKAGE / "control/control.json", trained / "control.json")
    mib = ship.ship(trained, package=package)
    assert 5 < mib < 20
    for name in ("config.json", "control.json", "diffusion_pytorch_model.safetensors", "README.md"):
        assert (package / "control" / name).exists()
    shipped = ControlNetModel.from_pretrained(package / "control", torch_dtype=torch.float16)
    original = ControlNetModel.from_pretrained(trained, torch_dtype=torch.float16)
    for mine, theirs in zip(shipped.parameters(), original.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_is_too_large_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ship, "ROOM_MIB", 1)
    with pytest.raises(UserError, match=r"would weigh 1\d\.\d MiB, expected 1 at most"):
        ship.ship(ship.PACKAGE / "control", package=tmp_path)
    assert list(tmp_path.iterdir()) == []
