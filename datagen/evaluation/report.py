"""What came of an evaluation: a table with intervals, what a synthetic dataset is worth in real pictures, a plot."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from scipy.stats import t as student_t

from datagen.evaluation.columns import Cell
from datagen.evaluation.evaluate_plan import Column

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Result = Mapping[str, float]
CONFIDENCE = 0.95
_LINE = 120
"""Characters."""
_BETWEEN = "  "
_ASIDE = 1 / 60
"""From one line of the plot to the next, as a share of the axis."""
_MARGIN = 1.25
"""Factor by which the axis reaches beyond the counts."""
_INSTEAD: Mapping[Column, str] = {
    "teacher": "the same pictures with labels of a teacher",
    "retrieved": "as many retrieved pictures in their place",
}
"""What the synthetic pictures of `both` and their labels are held against, beside real pictures alone."""

_MORE_COUNTS: Mapping[bool, str] = {
    True: "`curve_counts`",
    False: "`real_counts` (of the column `real`), or in `curve_counts` where all columns have equal updates",
}
"""Where real pictures alone are asked for that are learned from for as long as a condition, by whether those of
`curve_counts` are: these are learned from for as long as the mixed columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One condition: all cells that differ in their seed alone."""

    cell: Cell
    """One of them."""
    results: Mapping[int, Result]
    """By seed."""

    @property
    def added(self) -> int:
        """Pictures that are not among the annotated ones that there are."""
        return self.cell.synthetic + self.cell.retrieved

    def __str__(self) -> str:
        return f"{self.cell.column}: {told_counts(self.cell)}, {self.cell.updates} updates"

    def values(self, figure: str) -> list[float]:
        return [result[figure] for result in self.results.values() if figure in result]


def told_counts(cell: Cell) -> str:
    """`100 real + 64 synthetic`."""
    counts = {"real": cell.real, "synthetic": cell.synthetic, "retrieved": cell.retrieved}
    return " + ".join(f"{count} {name}" for name, count in counts.items() if count)


def rows_of(results: Mapping[Cell, Result]) -> list[Row]:
    groups: dict[Cell, dict[int, Result]] = {}
    for cell, result in results.items():
        groups.setdefault(replace(cell, seed=0), {})[cell.seed] = result
    return [Row(cell=cell, results=by_seed) for cell, by_seed in groups.items()]


def half_width(values: Sequence[float]) -> float | None:
    """Of the 95 % interval of a mean by Student's t; None from fewer than two values."""
    if len(values) < 2:
        return None
    quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def interval(values: Sequence[float], *, signed: bool = False) -> str:
    """`0.512 ± 0.020`; without an interval where there is one value."""
    half = half_width(values)
    sign = "+" if signed else ""
    return f"{statistics.fmean(values):{sign}.3f}" + ("" if half is None else f" ± {half:.3f}")


def break_even(row: Row, real_only: Sequence[Row], figure: str) -> str:
    """How many real pictures alone give what a condition gives, between measured counts straight in their logarithm."""
    goal = statistics.fmean(row.values(figure))
    curve = sorted((other.cell.real, statistics.fmean(other.values(figure))) for other in real_only)
    if goal < curve[0][1]:
        return f"fewer than {curve[0][0]}"
    for count, value in curve:
        if goal == value:
            return f"about {count}"
    for (few, low), (many, high) in pairwise(curve):
        if low < goal < high:
            return f"about {round(math.exp(math.log(few) + (goal - low) / (high - low) * math.log(many / few)))}"
    return f"more than {curve[-1][0]}"


def differences(row: Row, other: Row, figure: str) -> list[float]:
    """Seed by seed, since equal seeds share their views and their first weights."""
    shared = [seed for seed in row.results if seed in other.results]
    return [row.results[seed][figure] - other.results[seed][figure] for seed in shared]


def table(results: Mapping[Cell, Result], headlines: Sequence[str]) -> str:
    """Every condition with its headlines; all other figures; then what synthetic pictures add, and how many real ones
    they stand for."""
    rows = rows_of(results)
    figures = dict.fromkeys(name for row in rows for result in row.results.values() for name in result)
    others = sorted((name for name in figures if name not in headlines), key=lambda name: "/" in name)  # classes, bands
    seeds = max(len(row.results) for row in rows)
    said = "one seed: no intervals"
    if seeds > 1:
        said = (
            f"{seeds} seeds: mean ± half of the 95 % interval over seeds, which vary the student alone (first weights "
            "and views), not the pictures or labels"
        )
    numbers = [str(number) for number in range(1, len(rows) + 1)]
    overview = [[f"{number}  {row}", *_told(row, headlines)] for number, row in zip(numbers, rows, strict=True)]
    details = [[name, *(_told(row, [name])[0] for row in rows)] for name in others]
    gains = (line for each in headlines for line in _gains(rows, each))
    return "\n".join([*_grid([["", *headlines], *overview]), "", said, *_details(numbers, details), *gains])


def _told(row: Row, figures: Sequence[str]) -> list[str]:
    return [interval(found) if (found := row.values(name)) else "-" for name in figures]


def _details(numbers: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """A line for each figure, a column for each condition by its number: side by side as many as there is room for."""
    named = max((len(name) for name, *_ in lines), default=0)
    broadest = max((len(value) for _, *values in lines for value in values), default=0)
    room = max(1, (_LINE - named) // (broadest + len(_BETWEEN)))
    for start in range(0, len(numbers) if lines else 0, room):
        yield ""
        yield from _grid([[name, *values[start : start + room]] for name, *values in [["", *numbers], *lines]])


def _grid(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        _BETWEEN.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    ]


def _gains(rows: Sequence[Row], headline: str) -> list[str]:
    """What synthetic pictures add to real ones learned from for as long, what they are against others in their place,
    and how many real pictures they stand for."""
    alone = [row for row in rows if row.cell.column in ("real", "real_long")]
    told: list[str] = []
    for number, row in enumerate(rows, start=1):
        equal = [
            other for other in alone if other.cell.real == row.cell.real and other.cell.updates == row.cell.updates
        ]
        if row.added and row.cell.real and equal:
            gain = differences(row, equal[0], headline)
            against = rows.index(equal[0]) + 1
            told.append(f"{number} - {against}, as many updates on real pictures alone: {interval(gain, signed=True)}")
    for number, row in enumerate(rows, start=1):
        for against, other in enumerate(rows, start=1):
            same = (row.cell.real, row.added, row.cell.updates) == (other.cell.real, other.added, other.cell.updates)
            if row.cell.column == "both" and other.cell.column in _INSTEAD and same:
                gain = differences(row, other, headline)
                told.append(f"{number} - {against}, {_INSTEAD[other.cell.column]}: {interval(gain, signed=True)}")
    as_long_as_curves = {row.cell.updates for row in rows if row.cell.column not in ("real", "synthetic")}
    without: dict[bool, list[str]] = {}
    for number, row in enumerate(rows, start=1):
        curve = {other.cell.real: other for other in alone if other.cell.updates == row.cell.updates}
        if row.added and len(curve) > 1:
            worth = break_even(row, list(curve.values()), headline)
            told.append(f"{number} is worth {worth} real pictures, learned from for as long")
        elif row.added:
            without.setdefault(row.cell.updates in as_long_as_curves, []).append(str(number))
    for curves_help, numbers in without.items():
        told.append(
            f"{', '.join(numbers)}: no break-even count, which needs real pictures alone at two counts, learned from "
            f"for as long; name more in {_MORE_COUNTS[curves_help]}"
        )
    return ["", headline, *told] if told else []


def plot(results: Mapping[Cell, Result], headlines: Sequence[str], to: Path) -> None:
    """Each headline against the number of real pictures, a line for each column and count of synthetic ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shape = (1, len(headlines))
    size = (7 * len(headlines), 4.5)
    figure, panels = pyplot.subplots(*shape, figsize=size, dpi=120, sharey=True, squeeze=False, layout="constrained")
    for axes, headline in zip(panels[0], headlines, strict=True):
        _draw([row for row in rows_of(results) if row.values(headline)], headline, axes)
    if panels[0][0].get_ylim()[0] < 0:
        panels[0][0].set_ylim(bottom=0)  # an interval may reach below, no figure does
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(to, metadata={"Software": None})
    pyplot.close(figure)


def _draw(rows: Sequence[Row], headline: str, axes: "Axes") -> None:
    from matplotlib import colormaps

    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(row.cell.column + (f", {row.added} added" if row.added else ""), []).append(row)
    colors = colormaps["tab10" if len(lines) <= 10 else "tab20"]
    counts = sorted({row.cell.real for row in rows if row.cell.real})
    limits = (counts[0] / _MARGIN, counts[-1] * _MARGIN) if counts else (1.0, 1.0)
    for place, (name, unordered) in enumerate(lines.items()):
        members = sorted(unordered, key=lambda row: row.cell.real)
        means = [statistics.fmean(row.values(headline)) for row in members]
        bars = [half_width(row.values(headline)) or 0.0 for row in members]
        color = colors(place % colors.N)
        if members[0].cell.real:
            # Intervals of equal counts stand side by side.
            aside = (limits[1] / limits[0]) ** (_ASIDE * (place - (len(lines) - 1) / 2))
            places = [row.cell.real * aside for row in members]
            axes.errorbar(places, means, yerr=bars, marker="o", capsize=3, color=color, label=name)
        else:
            axes.axhline(means[0], linestyle="--", color=color, label=name)
            axes.axhspan(means[0] - bars[0], means[0] + bars[0], color=color, alpha=0.1)
    if counts:
        axes.set_xscale("log")
        axes.set_xticks(counts, labels=[str(count) for count in counts])
        axes.minorticks_off()
        axes.set_xlim(*limits)
    axes.set_xlabel("annotated real pictures")
    axes.set_ylabel(f"{headline}, real test pictures")
    axes.grid(alpha=0.3)
