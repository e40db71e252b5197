"""What came of an evaluation: a table with intervals, what a synthetic dataset is worth in real pictures, a plot."""

import math
import statistics
from collections.abc import Mapping, Sequence
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
    """Every condition with its figures; then what synthetic pictures add, and how many real ones they stand for."""
    rows = rows_of(results)
    figures = list(dict.fromkeys(name for row in rows for result in row.results.values() for name in result))
    ordered = sorted(figures, key=lambda name: (name not in headlines, "/" in name))  # those of classes and bands last
    seeds = max(len(row.results) for row in rows)
    said = "one seed: no intervals"
    if seeds > 1:
        said = (
            f"{seeds} seeds: mean ± half of the 95 % interval over seeds, which vary the student alone (first weights "
            "and views), not the pictures or labels"
        )
    lines = [f"{number}  {row}" for number, row in enumerate(rows, start=1)]
    return "\n".join(
        [*lines, "", said, *_grid(rows, ordered), *(line for each in headlines for line in _gains(rows, each))]
    )


def _grid(rows: Sequence[Row], figures: Sequence[str]) -> list[str]:
    """A line for each figure, a column for each condition by its number."""
    cells = [["", *(str(number) for number in range(1, len(rows) + 1))]]
    for name in figures:
        values = [row.values(name) for row in rows]
        cells.append([name, *(interval(found) if found else "-" for found in values)])
    widths = [max(len(line[place]) for line in cells) for place in range(len(rows) + 1)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


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
    figure, panels = pyplot.subplots(*shape, figsize=(7 * len(headlines), 4.5), dpi=120, sharey=True, squeeze=False)
    for axes, headline in zip(panels[0], headlines, strict=True):
        _draw([row for row in rows_of(results) if row.values(headline)], headline, axes)
    figure.tight_layout()
    figure.savefig(to, metadata={"Software": None})
    pyplot.close(figure)


def _draw(rows: Sequence[Row], headline: str, axes: "Axes") -> None:
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(row.cell.column + (f", {row.added} added" if row.added else ""), []).append(row)
    for name, unordered in lines.items():
        members = sorted(unordered, key=lambda row: row.cell.real)
        means = [statistics.fmean(row.values(headline)) for row in members]
        bars = [half_width(row.values(headline)) or 0.0 for row in members]
        if members[0].cell.real:
            axes.errorbar([row.cell.real for row in members], means, yerr=bars, marker="o", capsize=3, label=name)
        else:
            axes.axhline(means[0], linestyle="--", color="tab:gray", label=name)
            axes.axhspan(means[0] - bars[0], means[0] + bars[0], color="tab:gray", alpha=0.15)
    counts = sorted({row.cell.real for row in rows if row.cell.real})
    if counts:
        axes.set_xscale("log")
        axes.set_xticks(counts, labels=[str(count) for count in counts])
        axes.minorticks_off()
    axes.set_xlabel("annotated real pictures")
    axes.set_ylabel(f"{headline}, real test pictures")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
