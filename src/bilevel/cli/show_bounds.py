"""Errors of hypergradients and their bounds, and what a person sees of them: a table and a picture."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bilevel.certificates.apriori import Rates
from bilevel.certificates.constants import Constants
from bilevel.comparison.record import facts
from bilevel.comparison.truth import Truth
from bilevel.models.catalog import Case

WIDTH = 80
COLUMNS = ("t", "k", "true error", "estimated", "a-posteriori", "a-priori")
# Okabe and Ito's colors; the shapes tell the same in print.
CURVES = (
    ("apriori", "a-priori bound", {"color": "#E69F00", "ls": "--", "lw": 1.6}),
    ("bound", "a-posteriori bound", {"color": "#0072B2", "marker": "v", "ms": 6, "lw": 1.6}),
    ("estimated_error", "estimated error", {"color": "#D55E00", "marker": "o", "ms": 9, "mfc": "none", "ls": ""}),
    ("true_error", "true error", {"color": "#000000", "marker": "o", "ms": 4, "lw": 1.2}),
)
HIGHEST = 1e6  # relative errors above it are cut off in the picture
LEAST = 1e-17


class Row(NamedTuple):
    """One method after t steps and k products; errors and bounds relative to the norm of the truth."""

    method: str
    t: int
    k: int
    true_error: float
    estimated_error: float
    bound: float
    proved: bool
    apriori: float


class Bounds(NamedTuple):
    """All rows on one problem, and what the bounds are made of; ``rates`` is None where there is no a-priori bound."""

    name: str
    case: Case
    truth: Truth
    constants: Constants
    rates: Rates | None
    step: float
    rows: list[Row]

    @property
    def methods(self) -> dict[str, list[Row]]:
        """The rows of every method."""
        names = dict.fromkeys(row.method for row in self.rows)
        return {name: [row for row in self.rows if row.method == name] for name in names}


def show(found: Bounds, out: Path | None) -> None:
    """Print problem, constants and table; no line is longer than 80 characters."""
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH)
    for text in (_problem(found), Text(_constants(found)), _table(found), Text(_legend(found))):
        console.print(text)
    if out is not None:
        console.print(Text(f"written: {out}"))


def plot(found: Bounds, path: Path) -> None:
    """Relative errors and bounds of every method against t, as a PNG file."""
    methods = found.methods
    figure = Figure(figsize=(9, 3.4 * math.ceil(len(methods) / 2) + 0.8), layout="constrained")
    panels = figure.subplots(math.ceil(len(methods) / 2), 2, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (name, rows) in zip(panels, methods.items(), strict=False):
        _panel(axes, name, rows)
    for axes in panels[len(methods) :]:
        axes.set_axis_off()
    panels[0].set_ylim(_limits(found))
    figure.suptitle(f"{found.name}: errors of hypergradients relative to their norm", fontsize=11)
    for axes in panels[max(len(methods) - 2, 0) : len(methods)]:
        axes.set_xlabel("steps t of the lower level", fontsize=9.5)
        axes.tick_params(labelbottom=True)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=len(CURVES))
    figure.savefig(path, dpi=150)


def _panel(axes: Axes, name: str, rows: list[Row]) -> None:
    t = [row.t for row in rows]
    for attribute, label, style in CURVES:
        values = np.array([getattr(row, attribute) for row in rows], float)
        axes.plot(t, np.maximum(values, LEAST), label=label, **style)
    axes.set(xscale="log", yscale="log")
    axes.set_title(name, fontsize=10)
    axes.grid(which="major", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)


def _limits(found: Bounds) -> tuple[float, float]:
    values = [value for row in found.rows for value in (row.true_error, row.bound, row.apriori) if value > 0]
    finite = [value for value in values if math.isfinite(value)] or [1.0]
    return max(min(finite) / 3, LEAST), min(max(finite) * 3, HIGHEST)


def _problem(found: Bounds) -> Text:
    about = facts(found.case)
    return Text.assemble(
        (found.name, "bold"),
        f": {about['kind'].replace('_', ' ')}, n = {about['unknowns']}, dim lam = {about['hyperparameters']}, ",
        f"{about['dtype']}; truth: {found.truth.how}",
    )


def _constants(found: Bounds) -> str:
    c = found.constants
    known = [(name, getattr(c, name)) for name in ("mu", "L", "nu1", "nu2", "mu1", "mu2", "D", "L_U", "L_B")]
    words = ", ".join(f"{name} {float(value):.2g}" for name, value in known if value is not None)
    rates = "" if found.rates is None else f"; q {float(found.rates.q):.4f}, step {found.step:.3g}"
    return f"constants{' (estimated)' if c.estimated else ''}: {words}{rates}"


def _table(found: Bounds) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for title in COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    for name, rows in found.methods.items():
        for i, row in enumerate(rows):
            values = (row.true_error, row.estimated_error, row.bound, row.apriori)
            table.add_row(name if i == 0 else "", str(row.t), str(row.k), *(_error(value) for value in values))
    return table


def _legend(found: Bounds) -> str:
    rows = found.rows
    proved = sum(row.proved for row in rows)
    claim = "no bound is proved, as constants are estimated" if found.constants.estimated else f"{proved} are proved"
    floor = f"known to {found.truth.relative_error:.0e}"
    missing = "; -: the constants or the residuals allow none" if any(math.isnan(row.bound) for row in rows) else ""
    apriori = "; no a-priori bound: mu is not known" if found.rates is None else ""
    return (
        f"Errors and bounds over the norm of the true hypergradient, which is {floor}; start at zero. "
        f"Of {len(rows)} a-posteriori bounds {claim}{missing}{apriori}."
    )


def _error(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1e}"
