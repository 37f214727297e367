"""The figure of ``p1-contraction``, from its records alone."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from bilevel.experiments.lines import Line
from bilevel.experiments.style import BLACK, BLUE, GRAY, SKY, VERMILION, Style, clean

STYLES = {
    "ITD": Style(BLACK, "-", "o"),
    "FP k = t": Style(VERMILION, (0, (5, 2)), "s"),
    "CG k = t": Style(BLUE, (0, (6, 1.5, 1, 1.5)), "^"),
}
LABELS = {"ITD": "ITD", "FP k = t": "FP k = t", "CG k = t": "CG k = t (normal equations)"}
OF_FT = Style(SKY, (0, (1, 1.2)), "D")
LEAST, GREATEST = 1e-17, 1e14  # what is drawn
RELATIVE = r"$\Vert\nabla f(\lambda) - g(\lambda)\Vert\ /\ \Vert\nabla f(\lambda)\Vert$"


def figure(lines: list[Line]) -> Figure:
    """Relative errors against t for three maps, and after the last t against q for both families."""
    last = max(line["t"] for line in lines)
    shown = [(kind, q) for kind, q in lines[0]["config"]["shown"]]
    kinds = list(dict.fromkeys(line["map"] for line in lines))
    drawn = Figure(figsize=(9, 7.2), layout="constrained")
    top, bottom = drawn.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.15)).ravel()
    upper, lower = (
        part.subplots(1, count, sharey=True, squeeze=False).ravel()
        for part, count in ((top, len(shown)), (bottom, len(kinds)))
    )
    for axes, (kind, q) in zip(upper, shown, strict=True):
        own = [line for line in lines if line["map"] == kind and line["q"] == q]
        _panel(axes, own, "t")
        radius = own[0]["spectral_radius"]
        axes.set_title(rf"{kind}: $\Vert A\Vert = {q:g}$, $\rho(A) = {radius:.2g}$", fontsize=10)
        axes.set_xlabel("t", fontsize=9.5)
    for axes, kind in zip(lower, kinds, strict=True):
        _panel(axes, [line for line in lines if line["map"] == kind and line["t"] == last], "q")
        axes.axvline(1.0, color=GRAY, lw=1, ls=":", zorder=0)
        axes.set_title(f"{kind} A, t = {last}", fontsize=10)
        axes.set_xlabel(r"$q = \Vert A\Vert$", fontsize=9.5)
        _second_axis(axes, [line for line in lines if line["map"] == kind])
    for axes in (upper[0], lower[0]):
        axes.set_ylabel(RELATIVE, fontsize=9.5)
    _legend(bottom)
    return drawn


def _second_axis(axes: Axes, lines: list[Line]) -> None:
    """Mark where the spectral radius passes one: there the iteration itself stops converging."""
    ratio = lines[0]["spectral_radius"] / lines[0]["q"]
    if ratio < 0.99:
        axes.axvline(1 / ratio, color=GRAY, lw=1, ls="-.", zorder=0)
        axes.annotate(
            r"$\rho(A) = 1$", (1 / ratio, 0.93), xycoords=("data", "axes fraction"), xytext=(-3, 0),
            textcoords="offset points", ha="right", fontsize=8.5, color=GRAY,
        )  # fmt: skip


def _panel(axes: Axes, lines: list[Line], x: str) -> None:
    clean(axes)
    axes.set_yscale("log")
    axes.set_ylim(LEAST / 10, GREATEST)
    for method, style in STYLES.items():
        own = [line for line in lines if line["method"] == method and line["relative_error"] is not None]
        _curve(axes, [(line[x], line["relative_error"], line["flagged"]) for line in own], style)
    own = [line for line in lines if line["method"] == "ITD"]
    _curve(axes, [(line[x], line["distance_to_gradient_of_ft"], False) for line in own], OF_FT)


def _curve(axes: Axes, points: list[tuple[float, float, bool]], style: Style) -> None:
    """A line; hollow markers where the status is OK, crosses where it is not."""
    x = [point[0] for point in points]
    y = [min(max(point[1], LEAST), GREATEST) for point in points]
    axes.plot(x, y, **style.line(lw=1.3))
    for flagged, shape in ((False, style.points(ms=4.5)), (True, style.points(marker="x", ms=6, mew=1.6))):
        chosen = [i for i, point in enumerate(points) if point[2] == flagged]
        axes.plot([x[i] for i in chosen], [y[i] for i in chosen], **shape)


def _legend(drawn: SubFigure) -> None:
    methods = [
        Line2D([], [], label=LABELS[method], **{**style.line(), **style.points(ls=style.dashes)})
        for method, style in STYLES.items()
    ]
    of_ft = Line2D([], [], label=r"ITD to $\nabla f_t(\lambda)$", **{**OF_FT.line(), **OF_FT.points(ls=OF_FT.dashes)})
    cross = Line2D([], [], label="flagged by h.status", color=GRAY, marker="x", ls="", ms=6, mew=1.6)
    drawn.legend(
        handles=[*methods, of_ft, cross], frameon=False, fontsize=9, loc="outside lower center", ncols=5,
        handlelength=3.2, columnspacing=1.4,
    )  # fmt: skip
