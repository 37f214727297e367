"""Two pictures of a run: how the losses depend on the penalties, and which penalties were learned."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bilevel.tuning.run import Result
from bilevel.tuning.search import GRID

# Okabe and Ito's colors, which color-blind people can tell apart.
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#666666"
MOST_BARS = 40
BELOW: dict[str, Any] = {
    "frameon": False,
    "loc": "upper center",
    "bbox_to_anchor": (0.5, -0.2),
    "fontsize": 9,
    "ncols": 2,
}


def validation_curve(result: Result, path: Path) -> None:
    """Left: losses over the grid of single penalties. Right: over the spread of the penalties' prior."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _grid_panel(left, result)
    _prior_panel(right, result)
    figure.savefig(path, dpi=150)


def _grid_panel(axes, result: Result) -> None:
    found = result.search
    penalty = len(result.train_rows) * 10.0**GRID
    axes.semilogx(penalty, found.grid_validation[:, 0], "o-", color=BLUE, ms=4, label="one penalty for all")
    best = int(np.nanargmin(found.grid_validation[:, 0]))
    axes.plot(
        penalty[best],
        found.grid_validation[best, 0],
        "o",
        mfc="none",
        mec=ORANGE,
        mew=2,
        ms=11,
        label="the best of them",
    )
    tuned = result.validation["tuned"].loss
    axes.axhline(tuned, color=GREEN, ls="--", label="tuned")
    lowest = min(tuned, float(found.grid_validation[best, 0]))
    highest = min(float(np.nanmax(found.grid_validation[:, 0])), 12 * lowest)
    axes.set_ylim(lowest - 0.08 * (highest - lowest), highest + 0.08 * (highest - lowest))
    axes.set(xlabel="penalty (on standardized features)", ylabel=f"validation loss ({_loss(result)})")
    axes.set_title("Validation curve of the single penalty", fontsize=11)
    axes.legend(**BELOW)


def _prior_panel(axes, result: Result) -> None:
    found = result.search
    choice = found.choice
    assert choice is not None
    x = np.arange(len(found.spreads))
    axes.plot(
        x, [point.validation[0] for point in found.path], "s--", color=BLUE, ms=5, label="validation, being minimized"
    )
    axes.errorbar(
        x, choice.means, choice.standard_error, fmt="o-", color=ORANGE, ms=5, capsize=3,
        label="selection, never minimized (bar: standard\nerror of the difference to the lowest)",
    )  # fmt: skip
    axes.axvline(choice.chosen, color=GREEN, ls=":", lw=2, label="chosen")
    axes.set_xticks(x, ["single\npenalty", *(f"{spread:.2g}" for spread in found.spreads[1:])])
    axes.set(xlabel="prior spread of the log penalties", ylabel=f"loss ({_loss(result)})")
    axes.set_title("From one penalty to one per feature", fontsize=11)
    axes.legend(**BELOW)


def penalties(result: Result, path: Path) -> None:
    """The learned penalty of every feature, or of the 20 smallest and 20 largest."""
    table = result.penalties.sort_values("penalty", kind="stable")
    cut = len(table) > MOST_BARS
    if cut:
        table = table.iloc[[*range(MOST_BARS // 2), *range(len(table) - MOST_BARS // 2, len(table))]]
    figure = Figure(figsize=(7, 1.4 + 0.2 * len(table)), layout="constrained")
    axes = figure.subplots()
    y = np.arange(len(table))[::-1]
    single = float(np.exp(result.search.path[0].shared[0]))
    axes.hlines(y, single, table["penalty"], color=GRAY, lw=1)
    smaller = (table["penalty"] < single).to_numpy()
    for mask, color, marker, label in (
        (smaller, BLUE, "o", "used more than with one penalty"), (~smaller, ORANGE, "s", "used as much or less"),
    ):  # fmt: skip
        axes.plot(table["penalty"][mask], y[mask], marker, color=color, ms=5, label=label)
    axes.axvline(single, color=GREEN, ls="--", label="best single penalty")
    axes.set_xscale("log")
    values = np.append(table["penalty"].to_numpy(), single)
    low, high = float(values.min()), float(values.max())
    margin = max((high / low) ** 0.05, 1.5)
    axes.set_xlim(low / margin, high * margin)
    axes.set_ylim(-0.8, len(table) - 0.2)
    axes.set_yticks(y, [_short(name) for name in table["feature"]], fontsize=8)
    if cut:
        axes.axhline(MOST_BARS / 2 - 0.5, color=GRAY, lw=0.8, ls=(0, (1, 3)))
    title = f"{MOST_BARS // 2} smallest and {MOST_BARS // 2} largest" if cut else "All"
    axes.set_title(f"{title} of {len(result.penalties)} learned penalties" if cut else "Learned penalties", fontsize=11)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("penalty (on standardized features)")
    figure.legend(frameon=False, fontsize=8.5, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150)


def _short(name: str) -> str:
    return name if len(name) <= 28 else name[:27] + "…"


def _loss(result: Result) -> str:
    return "squared error" if result.model.family == "ridge" else "cross-entropy"
