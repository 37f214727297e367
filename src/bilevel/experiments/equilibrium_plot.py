"""The figure of ``p1-equilibrium``, from its records alone."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bilevel.experiments.lines import Line
from bilevel.experiments.style import BLACK, BLUE, GRAY, VERMILION, Style, clean

STYLES = {
    "ITD": Style(BLACK, "-", "o"),
    "FP": Style(VERMILION, (0, (5, 2)), "s"),
    "CG": Style(BLUE, (0, (6, 1.5, 1, 1.5)), "^"),
}
LABELS = {"ITD": "ITD, T = {0}", "FP": "FP, T = K = {0}", "CG": "CG (normal equations), T = K = {0}"}
ROWS = (
    ("train_loss", "training loss", "log", (5e-5, 1e3)),
    ("test_accuracy", "test accuracy", "linear", (0.0, 1.0)),
    ("estimated_relative_error", "estimated relative error\nof the hypergradient", "log", (1e-9, 1e3)),
    ("norm_A", "‖A‖", "log", (1e-1, 1e4)),
)
COLUMNS = ((True, "with projection, ‖A‖ ≤ 0.99"), (False, "without projection"))


def figure(lines: list[Line]) -> Figure:
    """Loss, accuracy, error of the hypergradient and norm of A along the training, one line for every seed."""
    drawn = Figure(figsize=(9, 10.2), layout="constrained")
    grid = drawn.subplots(len(ROWS), len(COLUMNS), sharex=True, sharey="row")
    for row, (field, label, scale, limits) in zip(grid, ROWS, strict=True):
        for axes, (projected, _) in zip(row, COLUMNS, strict=True):
            clean(axes)
            axes.set_yscale(scale)
            axes.set_ylim(limits)
            _panel(axes, [line for line in lines if line["projected"] is projected], field, limits)
        row[0].set_ylabel(label, fontsize=9.5)
    for axes, (_, title) in zip(grid[0], COLUMNS, strict=True):
        axes.set_title(title, fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("steps of the training", fontsize=9.5)
        axes.set_xscale("symlog", linthresh=10)
        axes.xaxis.set_major_formatter("{x:g}")
    _legend(drawn, lines)
    return drawn


def _panel(axes: Axes, lines: list[Line], field: str, limits: tuple[float, float]) -> None:
    for method, style in STYLES.items():
        for seed in sorted({line["seed"] for line in lines}):
            own = [line for line in lines if (line["method"], line["seed"]) == (method, seed)]
            x = np.array([line["step"] for line in own])
            y = np.clip(np.array([line[field] for line in own], float), *limits)
            axes.plot(x, y, **style.line(lw=1.2))
            flags = np.array([line["flagged"] for line in own])
            axes.plot(x[flags], y[flags], **style.points(marker="x", ms=5, mew=1.3))


def _legend(drawn: Figure, lines: list[Line]) -> None:
    steps = lines[0]["config"]["inner_steps"]
    curves: list[Any] = [
        Line2D([], [], label=LABELS[method].format(steps), **style.line()) for method, style in STYLES.items()
    ]
    cross = Line2D([], [], label="flagged by h.status", color=GRAY, marker="x", ls="", ms=6, mew=1.5)
    seeds = len({line["seed"] for line in lines})
    legend = drawn.legend(
        handles=[*curves, cross], frameon=False, fontsize=9, loc="outside lower center", ncols=4, handlelength=3.6,
        title=f"One line for each of {seeds} seeds" if seeds > 1 else None, title_fontsize=8.5,
    )  # fmt: skip
    legend.get_title().set_color(GRAY)
