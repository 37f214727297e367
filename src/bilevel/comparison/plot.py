"""A picture of a comparison: error against work."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.optimize import isotonic_regression

from bilevel.comparison.run import Comparison, Row

# Okabe and Ito's colors, which color-blind people can tell apart; the shapes tell the same in print.
FAMILIES = {"auto": ("#000000", "*", 13), "aid": ("#0072B2", "o", 7), "itd": ("#D55E00", "s", 6.5)}
LABELS = {"auto": "automatic", "aid": "implicit (AID)", "itd": "iterative (ITD)"}
WORK = "matvecs of lower level and adjoint (auto: and of its error estimate)"
GRAY = "#666666"
LEAST = 1e-17  # an error of zero is drawn here
LINE = 0.055  # height of a label, as a part of the axes


class Point(NamedTuple):
    """A method in the picture; NaN for an error that is not known."""

    name: str
    matvecs: int
    true: float
    estimated: float

    @property
    def family(self) -> str:
        """The family of the method: the first part of its name."""
        return self.name.partition("-")[0]

    @property
    def error(self) -> float:
        """The true error, or where it is not known the estimated one."""
        return self.estimated if np.isnan(self.true) else self.true


def plot(found: Comparison, path: Path) -> None:
    """Relative error of every method against its matvecs, true (filled) and estimated (hollow), as a PNG file."""
    figure = Figure(figsize=(8.5, 5.6), layout="constrained")
    axes = figure.subplots()
    points = [point for row in found.rows if (point := _point(found, row))]
    axes.set(xscale="log", yscale="log", xlabel=_work(found, points), ylabel="relative error")
    axes.set_title(_title(found), fontsize=11)
    for point in points:
        _draw(axes, point)
    _tolerance(axes, found.budget.tol)
    if points:
        _limits(axes, [found.budget.tol, *(y for p in points for y in (p.true, p.estimated) if not np.isnan(y))])
        _name(axes, points)
    axes.grid(which="major", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    figure.legend(handles=_handles(found, points), frameon=False, fontsize=9, loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=150)


def _point(found: Comparison, row: Row) -> Point | None:
    """The point of a row, its errors no lower than the truth is known; None where there is nothing to draw."""
    floor = max(found.truth.relative_error, LEAST) if found.judged else LEAST
    true, estimated = (max(x, floor) if np.isfinite(x) else np.nan for x in (row.true_error, row.estimated_error))
    if not row.matvecs or np.isnan([true, estimated]).all():
        return None
    return Point(row.name, row.matvecs, true, estimated)


def _title(found: Comparison) -> str:
    truth = f"truth: {found.truth.how}" if found.judged else "no truth, estimated errors only"
    return f"{found.name}: {found.budget.steps} steps, {found.budget.products} products; {truth}"


def _work(found: Comparison, points: list[Point]) -> str:
    drawn = [point.name for point in points]
    failed = ", ".join(row.name for row in found.rows if row.name not in drawn)
    return f"{WORK}\nwithout a point, having failed: {failed}" if failed else WORK


def _draw(axes: Axes, point: Point) -> None:
    color, marker, size = FAMILIES[point.family]
    x = point.matvecs
    axes.plot([x, x], [point.true, point.estimated], color=color, lw=0.8)
    axes.plot(x, point.estimated, marker, mfc="none", mec=color, mew=1.0, ms=1.6 * size, zorder=3)
    axes.plot(x, point.true, marker, color=color, ms=size, zorder=3)


def _tolerance(axes: Axes, tol: float) -> None:
    axes.axhline(tol, color=GRAY, lw=1, ls="--", zorder=0)
    axes.annotate(
        f"tol {tol:.0e}", (0.01, tol), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
        color=GRAY, fontsize=8.5,
    )  # fmt: skip


def _limits(axes: Axes, errors: list[float]) -> None:
    axes.set_ylim(min(errors) / 4, max(errors) * 4)
    left, right = axes.get_xlim()
    axes.set_xlim(left / 1.1, right * 1.1)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _name(axes: Axes, points: list[Point]) -> None:
    """Names right of the axes in the order of the errors, one line apart, with lines to their points."""
    bottom, top = np.log(axes.get_ylim())
    heights = {point: (np.log(point.error) - bottom) / (top - bottom) for point in points}
    ordered = sorted(points, key=lambda point: (round(heights[point] / LINE), point.matvecs))  # few lines cross
    for point, height in zip(ordered, spread([heights[point] for point in ordered], LINE), strict=True):
        color, _, _ = FAMILIES[point.family]
        line = {"arrowstyle": "-", "color": color, "lw": 0.5, "alpha": 0.6, "relpos": (0.0, 0.5)}
        axes.annotate(
            point.name, (point.matvecs, point.error), xytext=(1.04, height), textcoords="axes fraction", color=color,
            fontsize=9, va="center", arrowprops=line, annotation_clip=False,
        )  # fmt: skip


def spread(heights: list[float], gap: float) -> np.ndarray:
    """Heights at least ``gap`` apart, in this order and closest to the given ones, within [0, 1] if they fit.

    With ``k gap`` taken off the k-th height, that is isotonic regression.
    """
    lines = gap * np.arange(len(heights))
    moved = isotonic_regression(np.asarray(heights) - lines).x
    return np.clip(moved, 0.0, max(1.0 - lines[-1], 0.0)) + lines


def _handles(found: Comparison, points: list[Point]) -> list[Line2D]:
    shapes = [
        Line2D([], [], color=color, marker=marker, ms=size, ls="", label=LABELS[name])
        for name, (color, marker, size) in FAMILIES.items()
        if name in {point.family for point in points}
    ]
    true = [Line2D([], [], color=GRAY, marker="o", ls="", label="true error")] if found.judged else []
    return [*shapes, *true, Line2D([], [], mfc="none", mec=GRAY, marker="o", ms=10, ls="", label="estimated error")]
