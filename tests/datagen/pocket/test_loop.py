"""Training can be killed and go on as if nothing had happened."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from datagen.pocket import loop
from tests.datagen.pocket.conftest import log_of


class KilledError(Exception):
    """Stands for the end of the process."""


def _network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


def _train(folder: Path, *, updates: int, killed_at: int = -1, save_seconds: float = 1e9) -> nn.Module:
    network = _network()

    def loss(step: int) -> Mapping[str, Tensor]:
        if step == killed_at:
            raise KilledError
        batch = torch.randn(16, 4, generator=loop.stream(1, step))
        return {"loss": ((network(batch) - batch.sum(dim=1, keepdim=True)) ** 2).mean()}

    schedule = loop.Schedule(updates=updates, peak_rate=1e-2, warm_up=5, average_decay=0.9)
    return loop.advance(network, loss, folder=folder, schedule=schedule, log_every=10, save_seconds=save_seconds)


def test_a_killed_run_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole", updates=30)
    with pytest.raises(KilledError):
        _train(tmp_path / "cut", updates=30, killed_at=17, save_seconds=0.0)
    assert loop.finished_updates(tmp_path / "cut" / "checkpoint.safetensors") == 17
    resumed = _train(tmp_path / "cut", updates=30)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert (tmp_path / "whole" / "checkpoint.safetensors").read_bytes() == (
        tmp_path / "cut" / "checkpoint.safetensors"
    ).read_bytes()


def test_finished_training_does_nothing_and_more_updates_go_on(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    _train(tmp_path, updates=20)
    before = path.read_bytes()
    _train(tmp_path, updates=20, killed_at=20)
    assert path.read_bytes() == before
    with pytest.raises(KilledError):
        _train(tmp_path, updates=25, killed_at=20)
    _train(tmp_path, updates=25)
    assert loop.finished_updates(path) == 25


def test_it_learns_and_writes_down_how(tmp_path: Path) -> None:
    _train(tmp_path, updates=200)
    entries = log_of(tmp_path)
    assert [entry["step"] for entry in entries] == list(range(10, 201, 10))
    assert entries[-1]["loss"] < 0.2 * entries[0]["loss"]


def test_the_average_lags_behind_and_is_what_is_read_back(tmp_path: Path) -> None:
    average = _train(tmp_path, updates=40)
    stored = loop.averaged_weights(tmp_path / "checkpoint.safetensors")
    assert stored.keys() == average.state_dict().keys()
    assert all(torch.equal(stored[name], value) for name, value in average.state_dict().items())
    assert int(stored["1.num_batches_tracked"]) == 40
    assert not torch.equal(stored["0.weight"], _network().state_dict()["0.weight"])


def test_the_rate_warms_up_stays_and_decays() -> None:
    schedule = loop.Schedule(updates=1000, peak_rate=1.0, warm_up=100, decay_share=0.2)
    assert schedule.rate(0) == pytest.approx(0.01)
    assert schedule.rate(99) == schedule.rate(500) == schedule.rate(800) == 1.0
    assert schedule.rate(900) == pytest.approx(0.5)
    assert schedule.rate(999) == pytest.approx(1 / 200)
    assert schedule.keep(0) == pytest.approx(0.1)
    assert schedule.keep(10**6) == 0.999


def test_a_stream_belongs_to_a_step() -> None:
    draws = [torch.rand(3, generator=loop.stream(seed, step)) for seed, step in ((1, 5), (1, 5), (1, 6), (2, 5))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])
