import json
import os
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as real_version
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from datagen import doctor
from datagen.cli import app
from datagen.doctor import Finding


def _by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_this_machine_has_what_is_declared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = _by_name(list(doctor.examine()))
    assert found["torch"].value == real_version("torch")
    assert {"python", "device", "threads", "bfloat16", "float16", "embedded model", "disk, cache", "processes"} <= {
        name.split(" cuda")[0] for name in found
    }
    assert "OMP_NUM_THREADS 1" in found["threads"].value
    assert not [name for name, finding in found.items() if finding.needed and name != "embedded model"]


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch):
    def version(name: str) -> str:
        if name == "peft":
            raise PackageNotFoundError(name)
        return "0.1" if name == "pillow" else real_version(name)

    monkeypatch.setattr(doctor, "version", version)
    found = _by_name(list(doctor.examine()))
    assert found["peft"].needed
    assert found["peft"].remedy.startswith("pip install 'peft<")
    assert found["pillow"].needed
    assert "0.1, outside" in found["pillow"].value
    assert "device" not in found  # nothing is computed with packages that are not right
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 1


def test_a_cut_or_replaced_weight_file_is_seen(tmp_path: Path):
    file = tmp_path / "weights.safetensors"
    save_file({"a": np.ones((3, 5), np.float16)}, file)
    assert doctor.is_whole(file)
    whole = file.read_bytes()
    for broken in (whole[:-1], whole[:20], b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"):
        file.write_bytes(broken)
        assert not doctor.is_whole(file)


@pytest.mark.parametrize(("files", "told"), [({}, "absent"), ({"model_index.json": "{}"}, "no weights")])
def test_an_embedded_model_that_is_not_whole(
    files: dict[str, str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(doctor, "embedded_folder", lambda: tmp_path)
    (finding,) = doctor.embedded_model()
    assert finding.needed
    assert told in finding.value
    assert finding.remedy


def test_broken_weights_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model_index.json").write_text(json.dumps({}), encoding="utf-8")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"\x08")
    monkeypatch.setattr(doctor, "embedded_folder", lambda: tmp_path)
    (finding,) = doctor.embedded_model()
    assert "unet/diffusion_pytorch_model.safetensors" in finding.value


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "my cache"))
    found = _by_name(list(doctor.disk()))
    assert found["disk, cache"].value.endswith(os.fspath(tmp_path / "my cache" / "datagen"))
    assert not found["disk, cache"].needed
