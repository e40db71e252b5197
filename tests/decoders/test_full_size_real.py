"""Full-size UNets, run for real with random weights: that they fit, and what they cost on this machine."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.full_size import CLASSES, measure


@pytest.mark.real_size
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "side", "coarsest", "finest"),
    [
        ("sd15", 64, (1, 2560, 8, 8), (1, 320, 64, 64)),
        ("sd21", 64, (1, 2560, 8, 8), (1, 320, 64, 64)),
        ("xl", 128, (1, 2560, 32, 32), (1, 320, 128, 128)),
    ],
)
def test_tapped_pass(
    name: str, side: int, coarsest: tuple[int, ...], finest: tuple[int, ...], capsys: pytest.CaptureFixture[str]
):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as own_process:  # so that its peak memory is its own
        measured = own_process.submit(measure, name, side).result()
    with capsys.disabled():
        print(f"\n{name} at {8 * side} px, float32, CPU: {measured.seconds:.1f} s, peak {measured.peak_gib:.1f} GiB")
    assert measured.finite
    assert (measured.levels[0], measured.levels[-1]) == (coarsest, finest)
    assert measured.attention[0] == (1, CLASSES, *coarsest[2:])
