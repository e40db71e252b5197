"""Two processes fit one decoder: the same weights in both, from statistics of all pictures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.multiprocessing import get_context

from decoders.errors import UserError
from decoders.labels import semantic_map
from decoders.peers import ALONE, Alone, Group, Peers, average_gradients
from decoders.settings import DecoderSettings, FitSettings
from decoders.training import FitReport, fit, split
from tests.decoders.toy_perceiver import ToyPerceiver
from tests.decoders.toy_world import TAXONOMY, toy_pictures

SETTINGS = FitSettings(updates=30, batch_size=4, views=3, evaluations=3, learning_rate=4e-3, size=(32, 32), threads=1)
TASKS = {"semantic": {}, "depth": {}}
COUNT = 2


def _fit(
    peers: Peers, settings: FitSettings, state_file: Path | None = None
) -> tuple[dict[str, torch.Tensor], FitReport]:
    decoder, _, report = fit(
        ToyPerceiver(classes=3),
        toy_pictures(6),
        TAXONOMY,
        TASKS,
        settings,
        decoder_settings=DecoderSettings(width=32, fine_width=8),
        peers=peers,
        state_file=state_file,
    )
    return decoder.state_dict(), report


def _warnings(peers: Peers, *, shown_by: Sequence[int]) -> list[str]:
    """Of a fit on six pictures, of which these alone show the class ball."""
    sky = np.ones((48, 64), np.uint8)
    ball = np.where(np.arange(64) < 32, np.uint8(3), sky)
    pictures = [
        replace(picture, labels={"semantic": semantic_map(ball if number in shown_by else sky)})
        for number, picture in enumerate(toy_pictures(6))
    ]
    told: list[str] = []
    fit(
        ToyPerceiver(classes=3),
        pictures,
        TAXONOMY,
        {"semantic": {}},
        replace(SETTINGS, updates=1, evaluations=1),
        decoder_settings=DecoderSettings(width=32, fine_width=8),
        peers=peers,
        on_progress=lambda progress: told.append(progress.message),
    )
    return [message for message in told if message.startswith("warning")]


def _process(rank: int, folder: Path, settings: FitSettings) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=COUNT)
    try:
        peers = Group("cpu")
        weights, report = _fit(peers, settings, folder / "state.safetensors")
        fitted, (held,) = split(6, holdout=settings.holdout, seed=settings.seed)
        told = {
            "weights": weights,
            "fitted": report.fitted,
            "merit": report.points[-1].merit,
            "lost": _warnings(peers, shown_by=[held]),
            "kept": [_warnings(peers, shown_by=[held, one]) for one in fitted[:COUNT]],  # one of each process
        }
        torch.save(told, folder / str(rank))
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    context = get_context("spawn")
    processes = [context.Process(target=_process, args=(rank, folder, SETTINGS)) for rank in range(COUNT)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=200)
        assert process.exitcode == 0
    return folder


def test_both_end_with_the_same_decoder(together: Path):
    first, second = (torch.load(together / str(rank), weights_only=True) for rank in range(COUNT))
    assert all(torch.equal(first["weights"][name], tensor) for name, tensor in second["weights"].items())
    assert first["fitted"] == second["fitted"]


def test_it_is_as_good_as_one_process_alone_and_knows_all_pictures(together: Path):
    found = torch.load(together / "0", weights_only=True)
    weights, report = _fit(ALONE, SETTINGS)
    assert found["fitted"] == report.fitted
    for name, tensor in weights.items():
        if "standardise" in name or "log_mean" in name:  # measured over the pictures of both
            torch.testing.assert_close(found["weights"][name], tensor, atol=1e-4, rtol=1e-4)
    assert report.points[-1].merit is not None
    assert found["merit"] > report.points[-1].merit - 0.1


def test_a_class_that_no_process_learns_is_told_once(together: Path):
    first, second = (torch.load(together / str(rank), weights_only=True) for rank in range(COUNT))
    assert [message.split(" was held out")[0] for message in first["lost"]] == ["warning: every example of ball"]
    assert second["lost"] == []
    assert first["kept"] == second["kept"] == [[], []]


class Twice(Alone):
    """Two processes that have the same gradients, and note what they exchange."""

    count = 2

    def __init__(self) -> None:
        self.exchanged: list[int] = []

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        self.exchanged.append(tensor.numel())
        return 2 * tensor


def test_gradients_are_exchanged_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("decoders.peers._EXCHANGED", 10)
    parameters = [torch.nn.Parameter(torch.zeros(2, columns)) for columns in (2, 4, 1, 7, 1)]
    for number, parameter in enumerate(parameters[:-1]):
        parameter.grad = torch.full_like(parameter, float(number))
    peers = Twice()
    average_gradients(parameters, peers)
    assert peers.exchanged == [12, 16, 2]
    assert [float(one.grad.mean()) for one in parameters if one.grad is not None] == [0, 1, 2, 3, 0]


def test_another_number_of_processes_does_not_go_on_with_it(together: Path):
    with pytest.raises(UserError, match=r"begun by 2 processes, and there are 1 now; .*remove .*state\.safetensors"):
        _fit(ALONE, SETTINGS, together / "state.safetensors")


def test_what_cannot_be_divided_is_refused():
    class Three(Alone):
        count = 3

    with pytest.raises(UserError, match=r"3 processes .* batch_size of 4"):
        _fit(Three(), SETTINGS)
    with pytest.raises(UserError, match="expected a picture for each"):
        _fit(Three(), replace(SETTINGS, batch_size=3, holdout=0.7))
