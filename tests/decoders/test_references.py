"""What may be named as a model, what is refused and how, and what identifies it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from decoders.errors import UserError
from decoders.references import LoraReference, ModelReference, digest, locate_lora, locate_model, weight_variant

COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(pipelines: Mapping[str, Path], tmp_path: Path) -> Path:
    """A pipeline to be spoiled."""
    return shutil.copytree(pipelines["sd1"], tmp_path / "model")


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_references_need_no_torch():
    code = "import decoders.references, sys; print(sorted({'torch', 'diffusers', 'numpy'} & set(sys.modules)))"
    assert _run(code) == "[]"


def test_folder_with_unicode_and_spaces(pipelines: Mapping[str, Path], tmp_path: Path):
    folder = shutil.copytree(pipelines["sd1"], tmp_path / "mein Modell ü 模型")
    assert locate_model(ModelReference(str(folder))) == folder


def test_package_holds_a_model(
    pipelines: Mapping[str, Path], loras: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "some_models"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copytree(pipelines["sd1"], package / "weights")
    shutil.copy(loras["sd1"], package / "style.safetensors")
    monkeypatch.syspath_prepend(tmp_path)
    assert locate_model(ModelReference("package://some_models/weights")) == package / "weights"
    assert locate_lora(LoraReference("package://some_models/style.safetensors")) == package / "style.safetensors"
    with pytest.raises(UserError, match=r"package 'some_models' holds no 'wieghts'; expected its data there"):
        locate_model(ModelReference("package://some_models/wieghts"))
    with pytest.raises(UserError, match=r"found no Python package 'no_such_package'; install it"):
        locate_model(ModelReference("package://no_such_package/weights"))


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:7]])
def test_hub_id_needs_a_pinned_commit(revision: str | None):
    found = "" if revision is None else f", and the revision '{revision}'"
    told = rf"(?s)no folder of this name{found}; .*needs a pinned commit of 40 hex digits.*set `revision:`"
    with pytest.raises(UserError, match=told):
        locate_model(ModelReference("someone/some-model", revision=revision))


def test_hub_offline():
    with pytest.raises(UserError, match=r"(?s)not in the hub's cache and cannot be downloaded.*go online once"):
        locate_model(ModelReference("someone/some-model", revision=COMMIT))


def test_hub_model_in_the_cache(pipelines: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, object] = {}

    def download(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(pipelines["sd1"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert locate_model(ModelReference("someone/some-model", revision=COMMIT)) == pipelines["sd1"]
    assert (asked["name"], asked["revision"]) == ("someone/some-model", COMMIT)
    patterns = asked["allow_patterns"]
    assert isinstance(patterns, list)
    assert not any(pattern.endswith((".bin", ".ckpt", ".py", "*")) for pattern in patterns)
    left = asked["ignore_patterns"]
    assert isinstance(left, list)
    assert "*.fp16*" in left


def test_weights_in_half_precision_are_downloaded_where_a_hub_has_no_others(
    pipelines: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hub, cached = tmp_path / "hub", tmp_path / "cached"
    shutil.copytree(pipelines["sd1"], hub)
    for file in list(hub.rglob("*.safetensors")):
        file.rename(file.with_suffix(".fp16.safetensors"))

    def download(_name: str, *, ignore_patterns: list[str], **_: object) -> str:
        left = shutil.ignore_patterns(
            *(pattern.rpartition("/")[2] for pattern in ignore_patterns if "/" not in pattern)
        )
        shutil.copytree(hub, cached, ignore=left, dirs_exist_ok=True)
        return str(cached)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    reference = ModelReference("someone/some-model", revision=COMMIT)
    assert weight_variant(locate_model(reference)) == "fp16"


def _remove_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def _turn_into_pickle(folder: Path) -> None:
    (folder / UNET_WEIGHTS).rename(folder / "unet/diffusion_pytorch_model.bin")


def _lose_weights(folder: Path) -> None:
    (folder / UNET_WEIGHTS).unlink()


def _lose_config(folder: Path) -> None:
    (folder / "vae/config.json").unlink()


def _become_a_transformer(folder: Path) -> None:
    _edit_json(folder / "model_index.json", unet=None, transformer=["diffusers", "SD3Transformer2DModel"])


def _bring_code(folder: Path) -> None:
    _edit_json(folder / "model_index.json", vae=["my_vae", "MyVae"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_remove_index, r"no readable model_index.json .*expected a folder in diffusers format"),
        (
            _turn_into_pickle,
            r"unet holds diffusion_pytorch_model.bin, a pickle .*convert it:\n  python -c .*save_pretrained",
        ),
        (_lose_weights, r"unet holds no .safetensors weights; copy or download the folder again"),
        (_lose_config, r"vae holds no config.json; copy or download the folder again"),
        (_become_a_transformer, r"'transformer'.* found, expected one with a UNet2DConditionModel"),
        (_bring_code, r"vae comes with code of its own \(my_vae\), which is never run"),
    ],
)
def test_refused_folders(copy: Path, spoil: Callable[[Path], None], message: str):
    spoil(copy)
    with pytest.raises(UserError, match=f"(?s){message}"):
        locate_model(ModelReference(str(copy)))


def test_pickle_beside_safetensors_is_ignored(copy: Path):
    (copy / "unet/diffusion_pytorch_model.bin").touch()
    assert locate_model(ModelReference(str(copy))) == copy


def test_single_file(tmp_path: Path):
    file = tmp_path / "v1-5.ckpt"
    file.touch()
    with pytest.raises(
        UserError, match=r"(?s)is one file; expected a folder in diffusers format. Convert it.*from_single_file"
    ):
        locate_model(ModelReference(str(file)))


def test_nothing_there(tmp_path: Path):
    with pytest.raises(UserError, match=r"found no such folder; expected a folder in diffusers format, a hub id"):
        locate_model(ModelReference(str(tmp_path / "no such model")))


def test_wrong_values():
    # in a process of its own: here the executed annotations would refuse it first
    code = "from decoders.references import *\ntry: ModelReference('x', dtype='half')\nexcept UserError as e: print(e)"
    assert _run(code) == "model dtype 'half' found, expected one of auto, float32, float16, bfloat16"
    with pytest.raises(UserError, match="weight nan found, expected a finite number"):
        LoraReference("x.safetensors", float("nan"))


def test_lora_files(tmp_path: Path):
    with pytest.raises(UserError, match=r"found no such file, expected a \.safetensors file"):
        locate_lora(LoraReference(str(tmp_path / "style.safetensors")))
    (tmp_path / "style.bin").touch()
    with pytest.raises(UserError, match=r"found a .bin file, expected .safetensors.*Convert it:\n"):
        locate_lora(LoraReference(str(tmp_path / "style.bin")))


def test_digest_is_of_contents(copy: Path, pipelines: Mapping[str, Path]):
    assert digest(copy) == digest(pipelines["sd1"])
    assert len({digest(folder) for folder in pipelines.values()}) == 3
    _edit_json(copy / "unet/config.json", _diffusers_version="0.1", _name_or_path="elsewhere")
    _edit_json(copy / "text_encoder/config.json", transformers_version="1.0")
    assert digest(copy) == digest(pipelines["sd1"]), "who wrote a file does not matter"


@pytest.mark.parametrize(
    "name",
    [
        UNET_WEIGHTS,
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
    ],
)
def test_digest_sees_each_file(copy: Path, name: str):
    before = digest(copy)
    content = bytearray((copy / name).read_bytes())
    content[-1] ^= 1
    (copy / name).write_bytes(content)
    os.utime(copy / name, ns=(1, 1))  # a clock too coarse would leave the mtime as it was
    assert digest(copy) != before


def test_digest_sees_configs_and_loras(copy: Path, loras: Mapping[str, Path]):
    before = digest(copy)
    _edit_json(copy / "vae/config.json", scaling_factor=0.3)
    found = [before, digest(copy)]
    found += [
        digest(copy, [LoraReference(str(loras[kind]), weight)]) for kind in ("sd1", "xl") for weight in (1.0, 0.5)
    ]
    assert len(set(found)) == 6


def test_files_are_hashed_once(copy: Path, monkeypatch: pytest.MonkeyPatch):
    before = digest(copy)

    def refuse(*_: object) -> None:
        raise AssertionError("hashed again")

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", refuse)
        assert digest(copy) == before
        os.utime(copy / UNET_WEIGHTS, ns=(5, 5))
        with pytest.raises(AssertionError, match="hashed again"):
            digest(copy)


def test_unwritable_cache_costs_time_only(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = digest(copy)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert digest(copy) == before
