"""What the user sees while pictures are made."""

import io

import pytest
from rich.console import Console

from datagen import progress
from datagen.meter import meter
from datagen.progress import Bar, Progress, Silent


def test_the_line_tells_how_many_how_fast_and_how_long_still(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None)
    with Bar(console) as bar:
        bar.update(accepted=10, target=70)
        now[0] += 20.0
        bar.update(accepted=20, target=70, made=40)
        bar.say("[half] of it")
    told = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "20/70 accepted" in told
    assert "2.00 pictures/s" in told
    assert "0:01:40 left" in told
    assert "[half] of it" in told


def test_a_log_file_gets_a_line_a_minute(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=160, color_system=None)
    with Bar(console) as bar, meter("fit", console=console) as tick:
        for step in range(1, 6):
            now[0] += 40.0
            bar.update(accepted=step, target=70, made=1)
            tick(step, 10)
    lines: list[str] = console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    assert [line for line in lines if line.startswith("fit:")] == ["fit: 2 of 10", "fit: 4 of 10"]
    assert [line.split(",")[0] for line in lines if "of 70" in line] == ["2 of 70 accepted", "4 of 70 accepted"]


def test_nothing_is_shown_before_the_first_batch():
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None)
    with Bar(console):
        pass
    assert "accepted" not in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_both_are_progress():
    assert isinstance(Silent(), Progress)
    assert isinstance(Bar(Console(file=io.StringIO())), Progress)
