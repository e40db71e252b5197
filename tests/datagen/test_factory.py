"""The loop: which shards are made, in which batches, and when it stops."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from datagen.factory import Factory
from datagen.interruption import stop_signals
from datagen.launchers import Launcher
from datagen.records import Guide, Recipe, Sample, Verdict
from datagen.shards import ShardStore
from datagen.sources import sample_id
from decoders.errors import UserError
from decoders.labels import semantic_map
from decoders.peers import ALONE, Peers
from tests.datagen.toys import Brightness, Noise

Item = TypeVar("Item")


@dataclass
class Counting:
    """A source of numbered prompts."""

    length: int | None = None

    def recipe(self, index: int) -> Recipe:
        return Recipe(id=sample_id(index), prompt=f"number {index}", seed=index)


@dataclass
class Every:
    """Keeps each n-th sample."""

    step: int

    def judge(self, sample: Sample) -> Verdict:
        keep = int(sample.recipe.id) % self.step == 0
        return Verdict(keep=keep, reason="" if keep else "not its turn")


@dataclass
class OneOf:
    """One of several processes, as the accelerate launcher shares the shards out."""

    rank: int
    world: int
    device = "cpu"

    def assigned(self, shards: Iterable[int]) -> Iterator[int]:
        return islice(iter(shards), self.rank, None, self.world)

    def peers(self) -> Peers:
        return ALONE

    def once(self, find: Callable[[], Item]) -> Item:
        return find()

    def barrier(self) -> None: ...

    def close(self) -> None: ...


class Told:
    def __init__(self) -> None:
        self.updates: list[tuple[int, int]] = []

    def update(self, *, accepted: int, target: int, made: int = 0) -> None:
        assert target
        self.updates.append((accepted, made))

    def say(self, text: str) -> None: ...


def factory(run: Path, **changes: Any) -> Factory:
    values: dict[str, Any] = {
        "source": Counting(),
        "generator": Noise(),
        "labeller": Brightness(),
        "store": ShardStore(run),
        "target": 5,
        "shard_size": 4,
        "batch_size": 2,
    }
    return Factory(**{**values, **changes})


def made(parts: Factory) -> list[int]:
    return [shard.index for shard in parts.run()]


def files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "shards").iterdir())}


def test_shards_are_made_until_enough_is_accepted(tmp_path: Path):
    assert made(factory(tmp_path)) == [0, 1]
    accepted = [sample.recipe.prompt for sample in ShardStore(tmp_path).accepted(5)]
    assert accepted == [f"number {index}" for index in range(5)]


def test_rejected_samples_are_kept_with_their_reason(tmp_path: Path):
    assert made(factory(tmp_path, filters=[Every(2)])) == [0, 1, 2]
    summary = ShardStore(tmp_path).done()[0]
    assert summary.accepted == ("00000000", "00000002")
    assert summary.rejected == {"not its turn": 2}


def test_finished_shards_are_not_made_again(tmp_path: Path):
    parts = factory(tmp_path, target=9)
    iterator = parts.run()
    next(iterator)
    before = files(tmp_path)
    again = factory(tmp_path, target=9)
    assert made(again) == [1, 2]
    assert files(tmp_path).items() >= before.items()
    idle = Noise()
    assert made(factory(tmp_path, target=9, generator=idle)) == []
    assert idle.batches == []


def test_batches_are_always_full(tmp_path: Path):
    generator = Noise()
    parts = factory(tmp_path, generator=generator, shard_size=5, batch_size=3, target=5)
    assert made(parts) == [0]
    assert generator.batches == [3, 3]
    assert len(ShardStore(tmp_path).done()[0].verdicts) == 5


def test_a_finite_source_ends_the_run(tmp_path: Path):
    assert made(factory(tmp_path, source=Counting(length=6), target=100)) == [0, 1]
    assert [len(shard.verdicts) for shard in ShardStore(tmp_path).done()] == [4, 2]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_dataset_is_the_same_however_the_work_is_shared(tmp_path: Path, order: Sequence[int]):
    alone, together = tmp_path / "alone", tmp_path / "together"
    made(factory(alone, filters=[Every(3)], target=7))
    for rank in order:
        made(factory(together, filters=[Every(3)], target=7, launcher=OneOf(rank, 3)))
    assert files(together).items() >= files(alone).items()
    first = [sample.recipe for sample in ShardStore(alone).accepted(7)]
    assert [sample.recipe for sample in ShardStore(together).accepted(7)] == first
    assert len(first) == 7


def test_what_one_process_left_behind_is_dealt_out_anew(tmp_path: Path):
    for rank in (0, 2):
        made(factory(tmp_path, target=36, launcher=OneOf(rank, 3)))
    finished = frozenset(shard.index for shard in ShardStore(tmp_path).done())
    assert {index % 3 for index in finished} == {0, 2}
    shared = [made(factory(tmp_path, target=36, launcher=OneOf(rank, 3), finished=finished)) for rank in range(3)]
    assert shared == [[1, 10], [4], [7]]


def test_processes_that_see_each_others_shards_overshoot_little(tmp_path: Path):
    runs = [factory(tmp_path, target=20, launcher=OneOf(rank, 3)).run() for rank in range(3)]
    shards: list[int] = []
    while runs:  # in turn, each making one shard at a time
        for run in list(runs):
            shard = next(run, None)
            if shard is None:
                runs.remove(run)
            else:
                shards.append(shard.index)
    assert len(shards) == len(set(shards))
    assert 5 <= len(shards) <= 5 + 2


def test_a_poor_yield_stops_the_run_with_reasons(tmp_path: Path):
    parts = factory(tmp_path, filters=[Every(10**6)], target=5, minimum_yield=0.2, yield_after=8)
    with pytest.raises(UserError) as caught:
        made(parts)
    told = str(caught.value)
    assert "only 1 of 8 pictures were accepted, expected at least 20%; rejected for: not its turn (7)" in told
    assert "minimum_yield" in told
    assert len(ShardStore(tmp_path).done()) == 2


def test_progress_is_told_after_each_batch(tmp_path: Path):
    told = Told()
    made(factory(tmp_path, progress=told, filters=[Every(2)], target=4))
    assert told.updates == [(0, 0), (1, 2), (2, 2), (2, 0), (3, 2), (4, 2), (4, 0)]


def after(batches: int, generator: Noise) -> Callable[[], bool]:
    return lambda: len(generator.batches) >= batches


def test_a_wish_to_stop_ends_the_run_after_the_batch(tmp_path: Path):
    generator = Noise()
    assert made(factory(tmp_path, generator=generator, stopped=after(1, generator))) == []
    assert generator.batches == [2]
    generator = Noise()
    assert made(factory(tmp_path, generator=generator, stopped=after(2, generator))) == [0]
    assert made(factory(tmp_path)) == [1]


def test_a_generator_that_loses_pictures_is_a_bug(tmp_path: Path):
    class Loses(Noise):
        def render(self, recipes: Sequence[Recipe]) -> np.ndarray:
            return super().render(recipes)[:-1]

    with pytest.raises((ValueError, AssertionError)):
        made(factory(tmp_path, generator=Loses()))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as in a foreground shell; jobs in the background are born ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_the_first_signal_asks_and_the_second_interrupts():
    told: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with stop_signals(lambda: told.append("stopping")) as stopped:
        assert not stopped()
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped()
        assert told == ["stopping"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_comes_with_the_package_fits_the_protocols():
    from datagen.launchers.local import Local

    assert isinstance(Local(), Launcher)


def test_guides_of_several_sizes_are_drawn_apart_and_stay_in_order(tmp_path: Path):
    """Every batch has one size and is full; a picture is the one that it would be among its like."""

    class Guided(Counting):
        def recipe(self, index: int) -> Recipe:
            ids = np.ones((8, 8 + 4 * (index % 2)), np.uint8)
            return replace(super().recipe(index), guide=Guide(labels={"semantic": semantic_map(ids)}))

    noise = Noise()
    parts = factory(tmp_path, source=Guided(6), generator=noise, target=6, shard_size=6, batch_size=3)
    assert made(parts) == [0]
    stored = list(ShardStore(tmp_path).read(0))
    assert [sample.recipe.prompt for sample in stored] == [f"number {index}" for index in range(6)]
    assert noise.batches == [3] * 4  # two sizes among each three
    for sample in stored:
        np.testing.assert_array_equal(sample.image, Noise().render([sample.recipe])[0])


class Bright:
    """Keeps bright pictures and says how bright each is."""

    def judge(self, sample: Sample) -> Verdict:
        brightness = float(sample.image.mean())
        return Verdict(keep=brightness > 128, reason="dark", scores={"brightness": brightness})


def test_the_best_candidate_is_kept_and_can_be_drawn_again_from_its_recipe(tmp_path: Path):
    def kept(candidates: int) -> list[Sample]:
        run = tmp_path / str(candidates)
        choices = {"filters": [Bright()], "candidates": candidates, "best_by": "brightness"}
        shards = made(factory(run, source=Counting(12), target=100, batch_size=3, **choices))
        stored = [each for index in shards for each in ShardStore(run).read(index)]
        return [Sample(recipe=each.recipe, image=each.image, labels={}) for each in stored]

    one, four = kept(1), kept(4)
    assert [sample.recipe.id for sample in four] == [sample.recipe.id for sample in one]
    gains = [best.image.mean() - only.image.mean() for best, only in zip(four, one, strict=True)]
    assert min(gains) >= 0
    assert max(gains) > 0
    for sample in four:
        np.testing.assert_array_equal(Noise().render([sample.recipe])[0], sample.image)


def test_candidates_need_a_score_to_be_compared_by(tmp_path: Path):
    parts = factory(tmp_path, filters=[Bright()], candidates=2)
    with pytest.raises(UserError, match="compared by 'agreement', but the filters give the scores brightness"):
        made(parts)
