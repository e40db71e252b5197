"""BENCHMARK.md and its plots from what `benchmarks.worth` has measured: python -m benchmarks.written."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.cells import RESULTS
from benchmarks.claims import CLAIMS
from benchmarks.worth import headlines_of, known, results_of, told
from datagen.evaluation.report import plot
from decoders.files import write_atomic

TO = Path(__file__).parents[1] / "BENCHMARK.md"


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Every claim at every scale that there is, as Markdown.

    Args:
        results: scale -> claim -> what `benchmarks.worth.measure` returned.
    """
    return "\n".join(_lines(results)) + "\n"


def _lines(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "# What synthetic pictures are worth"
    yield ""
    yield "Written by `python -m benchmarks.written` from `benchmarks/results/worth.json`; do not edit."
    yield "`make benchmark-full` measures what is missing, `make benchmark` the toys anew."
    yield "[claims.py](benchmarks/claims.py) says what is claimed, [benchmarks](benchmarks/README.md) what came of it."
    yield "`full` measures the claims. `quick` are toys, with which `make benchmark` tells whether a machine gives what"
    yield "others gave: a few dozen synthetic pictures and 150 updates say nothing of what more are worth."
    for scale, claims in sorted(results.items()):
        for name in (name for name in CLAIMS if name in claims):
            found = claims[name]
            yield f"\n## {name}, {scale}\n"
            yield f"```\n{told(found['cells'])}\n```\n"
            if scale == "full":
                yield f"![{name}]({plot_of(name, scale).relative_to(TO.parent)})\n"
            yield "Commands, `HOME` being a folder of their own:\n"
            yield "```"
            yield from found["commands"]
            yield "```\n"
            yield "Made with " + ", ".join(f"{name} {number}" for name, number in found["made_with"].items()) + "."


def plot_of(name: str, scale: str) -> Path:
    """Of a claim."""
    return RESULTS / f"worth_{scale}_{name}.png"


def main() -> None:
    if not known():
        raise SystemExit(f"nothing is measured yet: {RESULTS / 'worth.json'} is missing; run `make benchmark-full`")
    for name, found in known().get("full", {}).items():
        plot(results_of(found["cells"]), headlines_of(found["cells"]), plot_of(name, "full"))
    write_atomic(TO, page(known()).encode())
    print(TO)


if __name__ == "__main__":
    main()
