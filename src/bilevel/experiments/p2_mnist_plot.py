"""The figure of ``p2-mnist``, from its records alone."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from bilevel.experiments.lines import Line
from bilevel.experiments.p2_mnist_claims import crossing, curve, penalties, told
from bilevel.experiments.style import BLACK, BLUE, GRAY, GREEN, VERMILION, Style, clean

STYLES = {
    "SID, decreasing": Style(VERMILION, "-", "o"),
    "SID, constant": Style(GREEN, (0, (1, 1.2)), "D"),
    "AID-FP": Style(BLACK, (0, (5, 2)), "s"),
    "AID-CG": Style(BLUE, (0, (6, 1.5, 1, 1.5)), "^"),
}
ERROR = r"$|\nabla f(\lambda) - g(\lambda)|\ /\ |\nabla f(\lambda)|$"
LOWEST, HIGHEST = 2e-5, 3.0  # errors that are drawn


def figure(lines: list[Line]) -> Figure:
    """Relative errors against epochs, a panel for every penalty."""
    found = penalties(lines)
    rows = -(-len(found) // 2)
    drawn = Figure(figsize=(9, 3.1 * rows + 0.9), layout="constrained")
    grid = list(drawn.subplots(rows, 2, squeeze=False, sharex=True, sharey=True).ravel())
    for axes, lam in zip(grid, found, strict=False):
        _panel(axes, lines, lam)
    for axes in grid[len(found) :]:
        axes.set_axis_off()
    for axes in grid[len(found) - 2 : len(found)]:
        axes.set_xlabel("epochs (samples / n)", fontsize=9.5)
        axes.tick_params(labelbottom=True)
    for axes in grid[::2]:
        axes.set_ylabel(ERROR, fontsize=9.5)
    _legend(drawn, lines)
    return drawn


def _panel(axes: Axes, lines: list[Line], lam: float) -> None:
    clean(axes)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(LOWEST, HIGHEST)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    curves = {method: curve(lines, lam, method) for method in STYLES}
    for method, style in STYLES.items():
        c = curves[method]
        if method.startswith("SID"):
            axes.fill_between(c.epochs, c.low, c.high, color=style.color, alpha=0.15, lw=0)
        axes.plot(c.epochs, c.mean, **style.line())
        axes.plot(c.epochs, c.mean, **style.points(ms=4))
    passed = crossing(curves["SID, decreasing"], curves["AID-CG"])
    if np.isfinite(passed):
        axes.axvline(passed, color=GRAY, lw=1, ls=":", zorder=0)
        axes.annotate(
            f"{told(passed)} epochs", (passed, 0.04), xycoords=("data", "axes fraction"), xytext=(-4, 0),
            textcoords="offset points", ha="right", fontsize=8.5, color=GRAY,
        )  # fmt: skip
    axes.set_title(rf"$\lambda = {lam:g}$", fontsize=10)


def _legend(drawn: Figure, lines: list[Line]) -> None:
    runs = len({line["run"] for line in lines})
    handles = [
        Line2D([], [], label=method, **{**style.line(), **style.points(ls=style.dashes)})
        for method, style in STYLES.items()
    ]
    legend = drawn.legend(
        handles=handles, frameon=False, fontsize=9.5, loc="outside lower center", ncols=len(handles), handlelength=3.6,
        title=f"SID: mean and quartiles of {runs} runs; dotted: from here on AID-CG leads", title_fontsize=8.5,
    )  # fmt: skip
    legend.get_title().set_color(GRAY)
