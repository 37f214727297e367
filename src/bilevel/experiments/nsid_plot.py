"""The figure of ``nsid``, from its records alone."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bilevel.experiments.lines import Line
from bilevel.experiments.nsid_claims import Curve, curve, exact_parts, sampled_part
from bilevel.experiments.style import BLACK, BLUE, GRAY, GREEN, ORANGE, SKY, VERMILION, Style, clean

EXACT = {
    "ITD": Style(BLACK, "-", "o"),
    "AID-FP": Style(VERMILION, (0, (5, 2)), "s"),
    "AID-CG": Style(BLUE, (0, (1, 1.2)), "^"),
}
SAMPLED = {
    "NSID, decreasing": Style(BLUE, "-", "o"),
    "NSID, constant": Style(SKY, (0, (1, 1.2)), "D"),
    "SID, decreasing": Style(GREEN, (0, (6, 1.5, 1, 1.5)), "^"),
    "SID, constant": Style(ORANGE, (0, (3, 1.2, 1, 1.2, 1, 1.2)), "v"),
    "AID-FP": Style(VERMILION, (0, (5, 2)), "s"),
}
ERROR = r"$\Vert\nabla f(\lambda) - g(\lambda)\Vert\ /\ \Vert\nabla f(\lambda)\Vert$"
HIGHEST, LOWEST = 50.0, 1e-13
LOWEST_SAMPLED = 1e-4


def figure(lines: list[Line]) -> Figure:
    """Relative errors: against t with all data, and against samples."""
    parts = exact_parts(lines)
    columns = len(parts) + 1
    drawn = Figure(figsize=(3.9 * columns, 4.6), layout="constrained")
    *exact, last = drawn.subplots(1, columns, squeeze=False)[0]
    for axes, (lam, own) in zip(exact, parts.items(), strict=True):
        _exact_panel(axes, lam, own)
    _sampled_panel(last, sampled_part(lines))
    exact[0].set_ylabel(ERROR, fontsize=9.5)
    _legends(drawn, exact[0], last, max(line.get("run", 0) for line in lines) + 1)
    return drawn


def _exact_panel(axes: Axes, lam: tuple[float, float], lines: list[Line]) -> None:
    clean(axes)
    axes.set_yscale("log")
    axes.set_ylim(LOWEST, HIGHEST)
    for method, style in EXACT.items():
        found = curve(lines, method)
        axes.plot(found.k, found.rms, **style.line())
        axes.plot(found.k, found.rms, **style.points(ms=4))
    axes.axvline(lines[0]["identified"], color=GRAY, lw=1, ls=":", zorder=0)
    axes.annotate(
        "support found", (lines[0]["identified"], 0.95), xycoords=("data", "axes fraction"), xytext=(4, 0),
        textcoords="offset points", ha="left", fontsize=8.5, color=GRAY,
    )  # fmt: skip
    axes.set_title(rf"All data, $\ell_1 = {lam[0]:g}$, $\ell_2 = {lam[1]:g}$", fontsize=10)
    axes.set_xlabel("t = k", fontsize=9.5)


def _sampled_panel(axes: Axes, curves: dict[str, Curve]) -> None:
    clean(axes)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(LOWEST_SAMPLED, 2.0)
    for method, style in SAMPLED.items():
        found = curves[method]
        if method != "AID-FP":
            axes.fill_between(found.samples, found.low, found.high, color=style.color, alpha=0.15, lw=0)
        axes.plot(found.samples, found.rms, **style.line())
        axes.plot(found.samples, found.rms, **style.points(ms=4))
    axes.set_title("Batches", fontsize=10)
    axes.set_xlabel("samples", fontsize=9.5)


def _legends(drawn: Figure, exact: Axes, sampled: Axes, runs: int) -> None:
    for axes, styles in ((exact, EXACT), (sampled, SAMPLED)):
        handles = [
            Line2D([], [], label=method, **{**style.line(), **style.points(ls=style.dashes, ms=4.5)})
            for method, style in styles.items()
        ]
        axes.legend(handles=handles, frameon=False, fontsize=8.5, loc="lower left", handlelength=3.6)
    note = f"Batches: root mean squares and quartiles of {runs} runs; w after a fixed number of steps with all data"
    drawn.supxlabel(note, fontsize=8.5, color=GRAY)
