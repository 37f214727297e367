"""How the figures look: colors that color-blind people can tell apart, and shapes that tell the same in print."""

from typing import Any, NamedTuple

from matplotlib.axes import Axes

GRAY = "#666666"
GRID = "#dddddd"


class Style(NamedTuple):
    """Of one curve; the colors are Okabe and Ito's."""

    color: str
    dashes: Any
    marker: str

    def line(self, **more: Any) -> dict[str, Any]:
        """Keywords of ``Axes.plot`` for a line without markers."""
        return {"color": self.color, "ls": self.dashes, "lw": 1.6, **more}

    def points(self, **more: Any) -> dict[str, Any]:
        """Keywords of ``Axes.plot`` for hollow markers without a line."""
        return {"color": self.color, "marker": self.marker, "ls": "", "ms": 5.5, "mfc": "none", "mew": 1.1, **more}


BLACK, BLUE, SKY = "#000000", "#0072B2", "#56B4E9"
VERMILION, ORANGE, GREEN = "#D55E00", "#E69F00", "#009E73"


def clean(axes: Axes) -> None:
    """Light grid behind the curves, no frame above and right."""
    axes.grid(which="major", color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5)
