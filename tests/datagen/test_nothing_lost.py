"""Kill the factory at any moment: the same command gives the same bytes in the end."""

import random
import subprocess
import time
from pathlib import Path

from tests.datagen import toys

KILLS = 5
FIRST_SHARD_FILES = 3
"""plan.yaml, a tar and its mark."""


def files(run: Path) -> list[Path]:
    return [path for path in run.rglob("*") if path.is_file()]


def content(run: Path) -> dict[str, bytes]:
    # plan.yaml names the run's folder
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(files(run)) if path.name != "plan.yaml"}


def start(site: Path, folder: Path) -> subprocess.Popen[str]:
    values = toys.plan_values(folder / "run", target=12, generator={"kind": "noise", "side": 32, "pause": 0.02})
    return toys.command(site, "generate", toys.write_plan(folder / "plan.yaml", values))


def wait_for_files(process: subprocess.Popen[str], run: Path, count: int) -> None:
    while process.poll() is None and len(files(run)) < count:
        time.sleep(0.001)


def test_killed_at_random_moments(tmp_path: Path):
    """Moments are told by how many files there are, so that they spread over the run on a slow machine too."""
    site = toys.install(tmp_path / "site")
    told = start(site, tmp_path / "whole").communicate(timeout=200)
    whole = content(tmp_path / "whole/run")
    assert "run/exports/coco" in told[0], told
    seed = random.randrange(2**32)
    print(f"moments are those of random.Random({seed})")  # shown of a test that fails
    chance = random.Random(seed)
    killed = 0
    for count in sorted(chance.randrange(FIRST_SHARD_FILES, len(whole)) for _ in range(KILLS)):
        process = start(site, tmp_path / "killed")
        wait_for_files(process, tmp_path / "killed/run", count)
        time.sleep(chance.uniform(0, 0.02))
        process.kill()
        process.communicate()
        killed += process.returncode == -9
    assert killed
    last = start(site, tmp_path / "killed")
    told = last.communicate(timeout=200)
    assert last.returncode == 0, told
    assert content(tmp_path / "killed/run") == whole
