"""The stages find each other's work, refuse to mix it, and start warm from shipped weights."""

import json
from pathlib import Path

import pytest
import torch

from datagen.pocket import card, gates, prior, text, vae
from datagen.pocket.training import train
from datagen.pocket.workshop import Workshop
from decoders.errors import UserError

STAGES = ("scenes", "vae", "latents", "prior", "judge")
UPDATES = {"vae": 2, "vae_decoder": 1, "prior": 2, "judge": 2}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same networks, narrow; fewer steps and scenes; the same code."""
    build_vae, build_unet, build_encoder = vae.build, prior.build_unet, text.build_encoder
    monkeypatch.setattr(vae, "build", lambda: build_vae((8, 8, 8, 16)))
    monkeypatch.setattr(prior, "build_unet", lambda: build_unet((16, 32), context=16))
    monkeypatch.setattr(text, "build_encoder", lambda words: build_encoder(words, width=16, layers=1, heads=2))
    monkeypatch.setattr(gates, "STEPS", 2)
    monkeypatch.setattr(card, "TEST_SCENES", 4)
    monkeypatch.setattr("datagen.pocket.workshop.UNSEEN", 4)


def _train(stages: tuple[str, ...], folder: Path, weights: Path, updates: dict[str, int] = UPDATES) -> None:
    train(stages, folder=folder, weights=weights, scenes=4, judge_scenes=4, workers=1, threads=1, updates=updates)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_from_nothing_to_a_shipped_model_and_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, weights = tmp_path / "cache", tmp_path / "weights"
    with pytest.raises(UserError, match=r"no trained codec.*--stages vae"):
        _train(("latents",), folder, weights)
    _train((*STAGES[:-1], "vae_decoder", "export"), folder, weights)
    assert not json.loads((weights / "measured.json").read_text())["gates"]["obedience"]
    assert "**not measured** for these weights" in (weights / "README.md").read_text()

    _train(("judge", "export"), folder, weights)
    assert sorted(path.name for path in (folder / "prior").iterdir()) == [
        "checkpoint.safetensors",
        "log.jsonl",
        "origin.json",
        "preview_000002.png",
        "tokenizer",
    ]
    report = json.loads((weights / "measured.json").read_text())
    assert report["updates"] == UPDATES
    assert set(report["gates"]) == {"psnr", "obedience"}
    assert "not measured" not in (weights / "README.md").read_text()
    assert (weights / "README.md").read_text().startswith("---\nlicense: apache-2.0")
    assert (weights / "samples.jpg").stat().st_size < 400_000
    assert not list(tmp_path.glob("weights.*"))
    capsys.readouterr()

    _train(STAGES, folder, weights)  # all done: nothing happens
    assert capsys.readouterr().out.split() == [word for stage in STAGES for word in ("stage", stage)]

    empty = tmp_path / "another cache"  # the cache is gone: warm start from what was shipped
    warm = Workshop(folder=empty, weights=weights, scenes=4, judge_scenes=4, workers=1, updates=UPDATES)
    latents = warm.encode_scenes()
    assert torch.allclose(latents.float(), _latents(folder), atol=0.02, rtol=0.02)
    warm.train_prior()
    assert (empty / "prior" / "tokenizer" / "tokenizer.json").exists()

    _train(("vae",), folder, weights, UPDATES | {"vae": 3})  # another codec under a prior that was begun
    with pytest.raises(UserError, match=r"was begun on codec .* move that folder away"):
        _train(("latents", "prior"), folder, weights, UPDATES | {"prior": 3})


def _latents(folder: Path) -> torch.Tensor:
    (path,) = (folder / "latents").iterdir()
    return vae.load_file(path)["latents"].float()


def test_unknown_stages_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown stage 'priors'; there are scenes, vae, vae_decoder, latents, prior"):
        train(["priors"], folder=tmp_path)
    with pytest.raises(UserError, match="unknown stage 'unet'"):
        train(["prior"], folder=tmp_path, updates={"unet": 3})
    assert not list(tmp_path.iterdir())


def test_a_prior_that_was_never_trained_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no trained prior in .*--stages prior"):
        Workshop(folder=tmp_path).pipeline()
