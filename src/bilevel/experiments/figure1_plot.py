"""The figures of ``p1-figure1``, from its records alone."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bilevel.experiments.lines import Line
from bilevel.experiments.style import BLACK, BLUE, GRAY, GREEN, ORANGE, VERMILION, Style, clean

STYLES = {
    "ITD": Style(BLACK, "-", "o"),
    "FP k = t": Style(VERMILION, (0, (5, 2)), "s"),
    "FP k = 10": Style(ORANGE, (0, (1, 1.2)), "D"),
    "CG k = t": Style(BLUE, (0, (6, 1.5, 1, 1.5)), "^"),
    "CG k = 10": Style(GREEN, (0, (3, 1.2, 1, 1.2, 1, 1.2)), "v"),
}
TITLES = {
    "LR": "Logistic regression",
    "KRR": "Kernel ridge regression",
    "BR": "Biased regularization",
    "HR": "Hyper-representation",
    "BR-GD": "Biased regularization",
}
LEAST = 1e-17  # an error of zero is drawn here
ERROR = r"$\Vert\nabla f(\lambda) - g(\lambda)\Vert$"


class Curve:
    """Geometric means over ``lam`` of one method in one panel, and how far they spread."""

    def __init__(self, lines: list[Line]):
        self.t = np.array(sorted({line["t"] for line in lines}))
        self._lines = lines

    def logs(self, field: str) -> np.ndarray:
        """Decimal logarithms, one row for every t, one column for every ``lam``; NaN where there is no value."""
        rows = [[_log(line[field]) for line in self._lines if line["t"] == t] for t in self.t]
        return np.array(rows)

    def mean(self, field: str) -> np.ndarray:
        """Geometric mean for every t."""
        return 10 ** self.logs(field).mean(axis=1)


def _log(value: float | None) -> float:
    return np.nan if value is None else float(np.log10(max(value, LEAST)))


def curves(lines: list[Line], panel: str) -> dict[str, Curve]:
    """The curves of a panel by the names of their methods."""
    own = [line for line in lines if line["panel"] == panel]
    return {method: Curve([line for line in own if line["method"] == method]) for method in STYLES}


def errors_figure(lines: list[Line]) -> Figure:
    """Errors against t in the paper's panels: mean and spread, and the estimated error."""
    panels = [key for key in ("LR", "KRR", "BR", "HR") if any(line["panel"] == key for line in lines)]
    figure, grid = _figure(len(panels), 3.1)
    for axes, panel in zip(grid, panels, strict=True):
        for method, curve in curves(lines, panel).items():
            _mean_and_spread(axes, curve, STYLES[method])
            _rings(axes, curve, STYLES[method])
        _label(axes, lines, panel)
    _legend(figure, [_handle(method, marker=True) for method in STYLES], _what(lines))
    return figure


def bounds_figure(lines: list[Line]) -> Figure:
    """Errors of gradient descent against their a-priori and a-posteriori bounds."""
    panels = [key for key in ("LR", "BR-GD") if any(line["panel"] == key for line in lines)]
    methods = ("ITD", "FP k = t", "CG k = t", "CG k = 10")
    figure, grid = _figure(len(panels) * len(methods), 2.2, columns=len(methods))
    for row, panel in enumerate(panels):
        found = curves(lines, panel)
        for column, method in enumerate(methods):
            axes = grid[row * len(methods) + column]
            _with_bounds(axes, found[method], STYLES[method])
            axes.set_title(f"{panel.removesuffix('-GD')}: {method}", fontsize=9.5)
            axes.set_xlabel("t" if row == len(panels) - 1 else "", fontsize=9.5)
            axes.sharey(grid[row * len(methods)])
            axes.tick_params(labelleft=column == 0)
        grid[row * len(methods)].set_ylabel(ERROR, fontsize=9.5)
    styles = {
        "a-priori bound": {"color": GRAY, "ls": "--", "lw": 1.6},
        "a-posteriori bound": {"color": GRAY, "marker": "v", "ls": "", "mfc": "none", "ms": 5},
        "true error": {"color": GRAY, "ls": "-", "lw": 1.6},
        "estimated error": {"color": GRAY, "marker": "o", "ls": "", "mfc": "none", "ms": 5},
    }
    handles = [Line2D([], [], label=label, **style) for label, style in styles.items()]
    _legend(figure, handles, "Gradient descent with step 2 / (L + μ); geometric means over λ")
    return figure


def _figure(panels: int, height: float, columns: int = 2) -> tuple[Figure, list[Axes]]:
    rows = -(-panels // columns)
    figure = Figure(figsize=(9, height * rows + 0.9), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in grid:
        clean(axes)
        axes.set_yscale("log")
    for axes in grid[panels:]:
        axes.set_axis_off()
    return figure, grid[:panels]


def _mean_and_spread(axes: Axes, curve: Curve, style: Style) -> None:
    logs = curve.logs("error")
    mean, spread = logs.mean(axis=1), logs.std(axis=1)
    axes.fill_between(curve.t, 10 ** (mean - spread), 10 ** (mean + spread), color=style.color, alpha=0.13, lw=0)
    axes.plot(curve.t, 10**mean, **style.line())


def _rings(axes: Axes, curve: Curve, style: Style) -> None:
    axes.plot(curve.t, curve.mean("estimated_error"), **style.points())


def _with_bounds(axes: Axes, curve: Curve, style: Style) -> None:
    axes.plot(curve.t, curve.mean("apriori_bound"), **style.line(ls="--"))
    axes.plot(curve.t, curve.mean("aposteriori_bound"), **style.points(marker="v", ms=5))
    axes.plot(curve.t, curve.mean("error"), **style.line(ls="-"))
    axes.plot(curve.t, curve.mean("estimated_error"), **style.points(marker="o", ms=4.5))


def _label(axes: Axes, lines: list[Line], panel: str) -> None:
    inner = next(line["config"]["inner"] for line in lines if line["panel"] == panel)
    axes.set_title(f"{TITLES[panel]} ({inner})", fontsize=10)
    axes.set_xlabel("t", fontsize=9.5)
    axes.set_ylabel(ERROR, fontsize=9.5)


def _what(lines: list[Line]) -> str:
    draws = len({line["lam"] for line in lines})
    return f"Lines and bands: mean and standard deviation of log10 over {draws} random λ; markers: estimated error"


def _handle(method: str, marker: bool) -> Line2D:
    style = STYLES[method]
    shape = {"marker": style.marker, "mfc": "none", "mew": 1.1, "ms": 5.5} if marker else {}
    return Line2D([], [], label=method, **style.line(), **shape)


def _legend(figure: Figure, handles: list[Line2D], note: str) -> None:
    legend = figure.legend(
        handles=handles, frameon=False, fontsize=9.5, loc="outside lower center", ncols=len(handles), handlelength=3.6,
        title=note, title_fontsize=8.5,
    )  # fmt: skip
    legend.get_title().set_color(GRAY)
