"""Several processes on one run."""

import subprocess
import sys
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path

import pytest

from datagen.adaptation.adapt import adapt
from datagen.adaptation.control import control
from datagen.launchers import from_environment, launched, launched_in_group
from datagen.launchers.local import Local
from decoders.errors import UserError
from tests.datagen import toys
from tests.datagen.test_fitting import photographs, write_plan


class Asked(Local):
    """Notes that it was left."""

    closed = False

    def close(self) -> None:
        self.closed = True


PROMPTS = {"kind": "prompts", "file": "x"}


def test_alone_means_every_shard(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    launcher = from_environment()
    assert isinstance(launcher, Local)
    assert launcher.rank == 0
    assert list(islice(launcher.assigned(count()), 3)) == [0, 1, 2]


@pytest.mark.parametrize(("size", "group"), [("1", False), ("2", True)])
def test_the_environment_says_whether_there_is_a_group(size: str, group: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", size)
    assert launched_in_group() == group


def plan(folder: Path, pipeline: Path) -> Path:
    values = toys.plan_values(
        folder / "run",
        target=7,
        model={"source": str(pipeline)},
        generator={"kind": "stable_diffusion", "steps": 2, "height": 32, "width": 48},
        filters=[{"kind": "class_coverage", "minimum_share": 0.01}],
        minimum_yield=0.0,
    )
    return toys.write_plan(folder / "plan.yaml", values)


def test_a_group_that_did_not_form_is_an_error(tmp_path: Path):
    """As when WORLD_SIZE is left over from something else, or a launcher set nothing but that."""
    file = toys.write_plan(tmp_path / "plan.yaml", toys.plan_values(tmp_path / "run"))
    site = toys.install(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-m", "datagen", "generate", str(file)],
        env={**toys.environment(site), "WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "WORLD_SIZE=2, but not RANK and LOCAL_RANK and MASTER_ADDR and MASTER_PORT" in done.stderr
    assert "--multi_gpu" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_two_processes_make_the_same_bytes_as_one(tmp_path: Path, pipelines: dict[str, Path]):
    site = toys.install(tmp_path / "site")
    outcomes: dict[str, dict[str, bytes]] = {}
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    for name, start in (
        ("alone", [sys.executable]),
        ("together", [*launch, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]),
    ):
        log = tmp_path / name / "log"
        log.mkdir(parents=True)
        done = subprocess.run(
            [*start, "-m", "datagen", "generate", str(plan(tmp_path / name, pipelines["sd1"]))],
            env={**toys.environment(site), "TOYS_LOG": str(log)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("7 labelled pictures") == 1
        outcomes[name] = {
            str(path.relative_to(tmp_path / name)): path.read_bytes()
            for path in sorted((tmp_path / name / "run").rglob("*"))
            if path.is_file() and path.name != "plan.yaml"  # which names the run's folder
        }
    made = {path.name: set(path.read_text().split()) for path in (tmp_path / "together/log").iterdir()}
    assert set(made) == {"0", "1"}
    assert not made["0"] & made["1"]
    assert all(int(name) // 4 % 2 == int(rank) for rank, names in made.items() for name in names)
    assert set((tmp_path / "alone/log/alone").read_text().split()) <= made["0"] | made["1"]
    shards = {path for path in outcomes["alone"] if path.startswith("run/shards")}
    assert shards
    assert all(outcomes["together"][path] == outcomes["alone"][path] for path in shards)
    datasets = [
        {path: content for path, content in files.items() if path.startswith("run/exports/coco/")}
        for files in outcomes.values()
    ]
    assert datasets[0] == datasets[1]
    assert "run/exports/coco/annotations/instances.json" in datasets[0]


def test_two_processes_fit_one_reader(tmp_path: Path, pipelines: dict[str, Path]):
    photographs(tmp_path / "few", 6)
    photographs(tmp_path / "unseen", 2, seed=1)
    file = write_plan(
        tmp_path / "plan.yaml", pipelines["sd1"], tmp_path / "few", validation={"root": str(tmp_path / "unseen")}
    )
    for expected in ("never saw", "fitted before, kept"):
        done = toys.in_two_processes(tmp_path, "fit", file)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("reader: ") == 1
        assert expected in done.stdout
    assert sorted(path.name for path in (tmp_path / "reader").iterdir()) == [
        "decoder.safetensors",
        "fit.json",
        "reader.json",
        "validation.json",
    ]


@pytest.mark.parametrize("verb", [adapt, control])
def test_trainings_ask_the_environment_unless_they_are_given_a_group(
    verb: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given, formed = Asked(), list[Asked]()

    def form() -> Asked:
        formed.append(Asked())
        return formed[-1]

    values = {"adapted" if verb is adapt else "control": "x", "model": {"source": "nowhere"}, "updates": 1}
    values |= {"images": str(tmp_path / "none")} if verb is adapt else {"condition": "edges", "source": PROMPTS}
    file = toys.write_plan(tmp_path / "plan.yaml", {**values, "tracker": "none"})
    monkeypatch.setattr("datagen.launchers.from_environment", form)
    for launcher in (None, given):
        with pytest.raises(UserError, match=r"none|source: prompts brings no labels"):
            verb(file, launcher=launcher)
    assert len(formed) == 1
    assert not given.closed  # it belongs to whoever brought it


def test_a_group_is_left_but_not_after_an_error(monkeypatch: pytest.MonkeyPatch):
    """Who leaves waits for the others, who may wait for this one: the error would never be told."""
    asked = Asked()
    monkeypatch.setattr("datagen.launchers.from_environment", lambda: asked)
    with pytest.raises(UserError, match="disk full"), launched():
        raise UserError("disk full")
    assert not asked.closed
    with launched() as found:
        assert found is asked
        assert not asked.closed
    assert asked.closed


def test_processes_share_gpus_on_one_machine_alone(monkeypatch: pytest.MonkeyPatch):
    from datagen.launchers import accelerate

    class Formed:
        num_processes, process_index, device = 4, 3, "cpu"

        def __init__(self, **settings: object) -> None:
            meets_on_cpu.append(settings["cpu"])

        def wait_for_everyone(self) -> None:
            waited.append("by its number")

    meets_on_cpu, chosen, waited = list[object](), list[str](), list[str]()
    monkeypatch.setattr(accelerate, "PartialState", Formed)
    monkeypatch.setattr(accelerate.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(accelerate.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(accelerate.torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(accelerate.torch.distributed, "barrier", lambda: waited.append("on the CPU"))
    values = {"RANK": "3", "LOCAL_RANK": "3", "MASTER_ADDR": "x", "MASTER_PORT": "0", "WORLD_SIZE": "4"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    launcher = accelerate.Accelerate()
    assert launcher.device == "cuda:1"
    assert chosen == ["cuda:1"]
    launcher.barrier()
    assert waited == ["on the CPU"], "there is no GPU with this process's number"
    assert meets_on_cpu == [True], "NCCL takes no two processes on one GPU"
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(UserError, match=r"4 processes found on a machine with 2 GPUs, expected a GPU for each"):
        accelerate.Accelerate()
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setenv("WORLD_SIZE", "4")
    accelerate.Accelerate().barrier()
    assert meets_on_cpu == [True, False], "by NCCL, unless it is known that GPUs are shared"
    assert waited[1:] == ["by its number"]


def test_a_group_of_another_size_is_an_error(monkeypatch: pytest.MonkeyPatch):
    """As when accelerate is told to use one process while the environment speaks of two."""
    from datagen.launchers import accelerate

    class Alone:
        num_processes, process_index, device = 1, 0, "cpu"

        def __init__(self, **settings: object) -> None:
            assert settings["cpu"] is True

    monkeypatch.setattr(accelerate, "PartialState", Alone)
    monkeypatch.setattr(accelerate.torch.cuda, "is_available", lambda: False)
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"WORLD_SIZE=2, but this process found a group of 1: .* --multi_gpu"):
        accelerate.Accelerate()
