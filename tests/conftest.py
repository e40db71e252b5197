"""Runs every test with executed annotations, no network, no deadlines, one thread per library and, as everywhere else,
no GPU: there models are in float16, and two trainings never end with the same bytes."""

import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.update(
    HF_HUB_OFFLINE="1",
    NO_ALBUMENTATIONS_UPDATE="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)
if "DATAGEN_TEST_GPU" not in os.environ:  # `make test-gpu`
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from jaxtyping import install_import_hook

# Before anything of ours is imported: shapes and types of every function and dataclass are checked as they run.
install_import_hook(["decoders", "datagen"], "beartype.beartype")
settings.register_profile("untimed", deadline=None)  # how long a test takes says nothing on a shared machine
settings.load_profile("untimed")

_LONGEST = (
    "test_other_device.py",
    "test_launchers.py",
    "test_labelling.py",
    "test_controlnet.py",
    "test_evaluation.py",
    "test_perceiver_unet.py",
    "test_probing.py",
)
"""Files that take minutes: begun first, else one process runs the last of them while the other has nothing left."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder that is not the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def scenes_drawn_once() -> Iterator[None]:
    """The same few scenes are asked for again and again, not least by the type checker, which looks into each dataset
    that is passed on; drawing one with every annotation executed takes half a second."""
    from datagen.pocket import world

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "render_scene", lru_cache(maxsize=256)(world.render_scene))
        yield


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Tiny random pipelines by kind: sd1, sd2, xl; not to be changed."""
    from tests.tiny_models import tiny_sd1, tiny_sd2, tiny_xl

    folder = tmp_path_factory.mktemp("pipelines")
    return {"sd1": tiny_sd1(folder / "sd1"), "sd2": tiny_sd2(folder / "sd2"), "xl": tiny_xl(folder / "xl")}


@pytest.fixture(scope="session")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random one; not to be changed."""
    from tests.tiny_models import tiny_dinov2

    return tiny_dinov2(tmp_path_factory.mktemp("dino ö"))


@pytest.fixture(scope="session")
def loras(pipelines: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """LoRA files by kind."""
    from tests.tiny_models import tiny_lora

    folder = tmp_path_factory.mktemp("loras")
    return {kind: tiny_lora(pipeline, folder / f"{kind}.safetensors") for kind, pipeline in pipelines.items()}
