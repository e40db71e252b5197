"""Training can be killed and go on as if nothing had happened."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from datagen.adaptation import loop
from datagen.adaptation.training_state import averaged_weights, finished_updates
from decoders.errors import UserError
from decoders.peers import ALONE, Alone
from tests.datagen.pocket.conftest import log_of

Probe = Callable[[nn.Module, int], Mapping[str, float]]


class KilledError(Exception):
    """Stands for the end of the process."""


def _network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


def _train(
    folder: Path,
    *,
    updates: int,
    killed_at: int = -1,
    save_seconds: float = 1e9,
    probe: Probe | None = None,
    teacher: nn.Module | None = None,
) -> nn.Module:
    network = _network()

    def loss(step: int) -> Mapping[str, Tensor]:
        if step == killed_at:
            raise KilledError
        batch = torch.randn(16, 4, generator=loop.stream(1, step))
        return {"loss": ((network(batch) - batch.sum(dim=1, keepdim=True)) ** 2).mean()}

    schedule = loop.Schedule(updates=updates, peak_rate=1e-2, warm_up=5, average_decay=0.9)
    return loop.advance(
        network,
        loss,
        folder=folder,
        schedule=schedule,
        log_every=10,
        save_seconds=save_seconds,
        probe=probe,
        probe_every=4,
        teacher=teacher,
    )


def test_a_killed_run_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole", updates=30)
    with pytest.raises(KilledError):
        _train(tmp_path / "cut", updates=30, killed_at=17, save_seconds=0.0)
    assert finished_updates(tmp_path / "cut" / "checkpoint.safetensors") == 17
    resumed = _train(tmp_path / "cut", updates=30)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert (tmp_path / "whole" / "checkpoint.safetensors").read_bytes() == (
        tmp_path / "cut" / "checkpoint.safetensors"
    ).read_bytes()


def test_cudnn_attends_to_no_training(tmp_path: Path) -> None:
    """Its gradients can be NaN on Hopper GPUs."""
    seen: list[bool] = []

    def loss(_number: int) -> Mapping[str, Tensor]:
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        if len(seen) > 1:
            raise KilledError
        return {"loss": network(torch.zeros(4, 4)).mean()}

    network = _network()
    with pytest.raises(KilledError):
        loop.advance(network, loss, folder=tmp_path, schedule=loop.Schedule(updates=3, peak_rate=0.1))
    assert seen == [False, False]
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_finished_training_does_nothing_and_more_updates_go_on(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    _train(tmp_path, updates=20)
    before = path.read_bytes()
    _train(tmp_path, updates=20, killed_at=20)
    assert path.read_bytes() == before
    with pytest.raises(KilledError):
        _train(tmp_path, updates=25, killed_at=20)
    _train(tmp_path, updates=25)
    assert finished_updates(path) == 25


def test_it_learns_and_writes_down_how(tmp_path: Path) -> None:
    _train(tmp_path, updates=200)
    entries = log_of(tmp_path)
    assert [entry["step"] for entry in entries] == list(range(10, 201, 10))
    assert entries[-1]["loss"] < 0.2 * entries[0]["loss"]


def test_the_average_lags_behind_and_is_what_is_read_back(tmp_path: Path) -> None:
    average = _train(tmp_path, updates=40)
    stored = averaged_weights(tmp_path / "checkpoint.safetensors")
    assert stored.keys() == average.state_dict().keys()
    assert all(torch.equal(stored[name], value) for name, value in average.state_dict().items())
    assert int(stored["1.num_batches_tracked"]) == 40
    assert not torch.equal(stored["0.weight"], _network().state_dict()["0.weight"])


@pytest.mark.parametrize("step", [1, 17])
def test_a_teacher_has_the_average_of_all_updates_so_far(step: int, tmp_path: Path) -> None:
    teacher = _network().requires_grad_(False)
    nn.init.zeros_(next(teacher.parameters()))
    with pytest.raises(KilledError):
        _train(tmp_path, updates=30, killed_at=step, save_seconds=0.0, teacher=teacher)
    stored = averaged_weights(tmp_path / "checkpoint.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in teacher.named_parameters())


def test_the_rate_warms_up_stays_and_decays() -> None:
    schedule = loop.Schedule(updates=1000, peak_rate=1.0, warm_up=100, decay_share=0.2)
    assert schedule.rate(0) == pytest.approx(0.01)
    assert schedule.rate(99) == schedule.rate(500) == schedule.rate(800) == 1.0
    assert schedule.rate(900) == pytest.approx(0.5)
    assert schedule.rate(999) == pytest.approx(1 / 200)
    assert schedule.keep(0) == pytest.approx(0.1)
    assert schedule.keep(10**6) == 0.999


def test_what_is_frozen_is_neither_stored_nor_changed(tmp_path: Path) -> None:
    network = _network()
    first = cast(nn.Linear, network.get_submodule("0")).requires_grad_(False)
    before = first.weight.clone()

    def loss(number: int) -> Mapping[str, Tensor]:
        return {"loss": network(torch.randn(16, 4, generator=loop.stream(1, number))).square().mean()}

    loop.advance(network, loss, folder=tmp_path, schedule=loop.Schedule(updates=3, peak_rate=0.1))
    assert torch.equal(first.weight, before)
    stored = averaged_weights(tmp_path / "checkpoint.safetensors")
    assert {name.split(".")[0] for name in stored} == {"1", "2"}
    with pytest.raises(UserError, match=r"holds the training of another network: 0\..* remove that file"):
        _train(tmp_path, updates=5)


def test_a_probe_sees_the_average_and_training_goes_on_as_without(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []

    def probe(module: nn.Module, step: int) -> Mapping[str, float]:
        assert not module.training
        seen.append({name: value.clone() for name, value in module.state_dict().items()})
        return {"probe": float(step)}

    plain = _train(tmp_path / "plain", updates=12)
    probed = _train(tmp_path / "probed", updates=12, probe=probe)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, probed.state_dict()[name]), name
        assert torch.equal(value, seen[-1][name]), name
    assert [entry["step"] for entry in log_of(tmp_path / "probed") if "probe" in entry] == [4.0, 8.0, 12.0]


@pytest.mark.parametrize("way", ["accumulated", "shared"])
def test_parts_of_a_batch_make_the_update_of_the_whole(way: str, tmp_path: Path) -> None:
    """One after another in one process, or each in a process of its own."""
    whole = _descend(tmp_path / "whole", parts=1)
    if way == "accumulated":
        found = [_descend(tmp_path / "parts", parts=2)]
    else:
        with ThreadPoolExecutor(2) as pool:
            meeting = Meeting(2)
            found = list(pool.map(lambda rank: _descend(tmp_path / str(rank), peers=Met(rank, meeting)), range(2)))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "whole"]  # rank 0 alone writes
        assert torch.equal(*found)
    torch.testing.assert_close(found[0], whole, atol=1e-6, rtol=1e-5)


class Meeting:
    """Sums over the threads that meet."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.given: list[Tensor] = []
        self.barrier = Barrier(count)


class Met(Alone):
    """One of several threads that stand for processes."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank = rank
        self.count = meeting.count
        self._meeting = meeting

    def total(self, tensor: Tensor) -> Tensor:
        self._meeting.given.append(tensor)
        self._meeting.barrier.wait()
        found = torch.stack(self._meeting.given).sum(0)
        if self._meeting.barrier.wait() == 0:
            self._meeting.given.clear()
        self._meeting.barrier.wait()
        return found


def _descend(folder: Path, *, parts: int = 1, peers: Alone = ALONE) -> Tensor:
    """Weights of a line fitted to batches of 8, looked at in parts."""
    network = nn.Linear(4, 1)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)

    def loss(number: int) -> Mapping[str, Tensor]:
        update, part = divmod(number, parts)
        batch = torch.randn(8, 4, generator=loop.stream(5, update))
        mine = batch[part::parts][peers.rank :: peers.count]
        return {"loss": (network(mine) - mine.sum(dim=1, keepdim=True)).square().mean()}

    schedule = loop.Schedule(updates=9, peak_rate=1e-2, warm_up=0, average_decay=0.0)
    loop.advance(network, loss, folder=folder, schedule=schedule, peers=peers, accumulate=parts)
    return network.weight.detach()


def test_numbers_that_are_none_stop_it_before_they_are_learned(tmp_path: Path) -> None:
    network = nn.Linear(2, 1)
    before = network.weight.detach().clone()

    def loss(_number: int) -> Mapping[str, Tensor]:
        return {"loss": network(torch.full((1, 2), torch.inf)).sum()}

    with pytest.raises(UserError, match=r"gradient of update 1 is (nan|inf) \(loss .*smaller learning rate"):
        loop.advance(network, loss, folder=tmp_path, schedule=loop.Schedule(updates=3, peak_rate=0.1))
    assert torch.equal(network.weight, before)


def test_a_stream_belongs_to_a_step() -> None:
    draws = [torch.rand(3, generator=loop.stream(seed, step)) for seed, step in ((1, 5), (1, 5), (1, 6), (2, 5))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])
