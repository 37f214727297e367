"""``p1-figure1``: the error of hypergradients against the steps t of the lower level.

For every random ``lam`` of a panel, ``|grad f(lam) - g(lam)|`` of five methods: ITD, and AID with the fixed-point
method (FP) or conjugate gradients (CG) on the adjoint system, with k = t or k = 10 products. FP iterates the transposed
map of gradient descent with step ``2 / (L + mu)``, also where heavy ball solves the lower level, and CG works with the
Hessian: the map of heavy ball is not symmetric.

References
----------
Grazzi, Franceschi, Pontil, Salzo (2020), arXiv 2006.16218, Section 5.1 and Figure 1.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from bilevel import tree
from bilevel.certificates import apriori
from bilevel.certificates.constants import Constants, on_ball
from bilevel.experiments.checks import Check, Summary
from bilevel.experiments.counted import aid, itd
from bilevel.experiments.lines import Line, facts
from bilevel.experiments.panels import PANELS, Panel, map_step
from bilevel.hypergradient import hypergradient
from bilevel.lagrangian import Instance
from bilevel.linear.cg import CG
from bilevel.linear.richardson import Richardson
from bilevel.methods.base import Hypergradient
from bilevel.status import Status

Tree = Any
Progress = Callable[[str, int, int], None]

NAME = "p1-figure1"
FIXED = 10  # products of the curves whose k does not grow with t
EXPONENT = 1.8  # of the grid of t: denser at the start, where the curves differ
TIED = 1.5  # errors within this factor are tied
STALLED = 0.05  # relative change of an error that no longer falls
FAR_LOWER = 0.2  # of the error of FP, at most
SAME = 1e-12  # relative distance of two gradients that are equal in exact arithmetic
ROUNDING = 1e-12  # relative error that is all rounding
TINY = 1e-300
METHODS = ("ITD", "FP k = t", "FP k = 10", "CG k = t", "CG k = 10")


@dataclass(frozen=True)
class Settings:
    """How much is computed.

    Attributes
    ----------
    draws
        Random ``lam`` of every panel.
    points
        Values of t of every curve.
    panels
        Problems.
    """

    draws: int = 20
    points: int = 11
    panels: tuple[Panel, ...] = PANELS

    @property
    def total(self) -> int:
        """Random ``lam`` in all: the unit of progress."""
        return self.draws * len(self.panels)


FULL = Settings()
QUICK = Settings(draws=3, points=7)


class _Point(NamedTuple):
    """A problem at one ``lam`` with its truth, and what the methods are made of."""

    at: Instance
    w0: Tree
    truth: Tree
    constants: Constants
    solver: Any


def grid(steps: int, points: int) -> list[int]:
    """Values of t up to ``steps``."""
    return [int(t) for t in np.unique(np.maximum(1, (steps * np.linspace(0, 1, points) ** EXPONENT).round()))]


def run(settings: Settings, seed: int, progress: Progress) -> Iterator[Line]:
    """One record for every panel, ``lam``, method and t."""
    done = 0
    for panel in settings.panels:
        rng = np.random.default_rng(seed)
        instance = panel.family.sample(seed, panel.n, panel.d, panel.condition)
        about = facts(NAME, seed, tree.dtype(instance.w0), {**panel.config, "draws": settings.draws})
        box = panel.box(instance)
        for draw in range(settings.draws):
            point = _point(panel, instance._replace(lam=box.draw(rng)))
            if draw == 0:
                list(_lines(panel, point, 1))  # compiles, so that times are without it
            for t in grid(panel.steps, settings.points):
                for line in _lines(panel, point, t):
                    yield {**about, "panel": panel.key, "lam": draw, **line}
            done += 1
            progress("lam", done, settings.total)


def _point(panel: Panel, drawn: Any) -> _Point:
    lam, w0, lower_data, upper_data = drawn
    problem = replace(panel.family.problem(), constants=panel.family.constants)
    at = Instance(problem, lam, lower_data, upper_data)
    constants = _on_ball(at, w0)
    at = at._replace(problem=replace(problem, constants=constants))
    truth = panel.truth(*at[:2], w0, lower_data, upper_data)
    return _Point(at, w0, truth, constants, panel.solver(constants, at, w0))


_on_ball = jax.jit(on_ball)


def _lines(panel: Panel, point: _Point, t: int) -> Iterator[Line]:
    """The five methods after t steps."""
    fp, cg, rates = Richardson(step=map_step(point.constants)), CG(), apriori.rates(point.constants)
    methods = (
        (itd(point.solver, t, panel.steps), t, apriori.itd(rates, t)),
        (aid(point.solver, fp, t, t), t, apriori.aid_fp(rates, t, t)),
        (aid(point.solver, fp, t, FIXED), FIXED, apriori.aid_fp(rates, t, FIXED)),
        (aid(point.solver, cg, t, t), t, apriori.aid_cg(rates, t, t)),
        (aid(point.solver, cg, t, FIXED), FIXED, apriori.aid_cg(rates, t, FIXED)),
    )
    size, first = float(tree.norm(point.truth)), None
    for name, (method, k, bound) in zip(METHODS, methods, strict=True):
        h, seconds = _timed(method, point)
        first = h.grad if first is None else first
        error = _distance(h.grad, point.truth)
        yield {
            "method": name, "t": t, "k": k, "error": error, "relative_error": error / size,
            "estimated_error": float(h.error),
            "apriori_bound": float(bound) if panel.contracts else None,
            "aposteriori_bound": float(h.bound), "proved": bool(h.proved),
            "distance_to_itd": _distance(h.grad, first), "gradient_norm": size,
            "matvecs": 2 * t if name == "ITD" else int(h.lower.matvecs) + int(h.adjoint.matvecs),
            "seconds": None if name == "ITD" else seconds,  # its program takes the largest t whatever t is
            "status": Status(int(h.status)).name,
        }  # fmt: skip


def _timed(method: Any, point: _Point) -> tuple[Hypergradient, float]:
    """A hypergradient, and the seconds it took with its error."""
    problem, lam, lower_data, upper_data = point.at
    start = time.perf_counter()
    h = hypergradient(
        problem, lam, point.w0, lower_data=lower_data, upper_data=upper_data, method=method, on_failure="keep"
    )
    return jax.block_until_ready(h), time.perf_counter() - start


def _distance(a: Tree, b: Tree) -> float:
    return float(tree.norm(tree.sub(a, b)))


def checks(lines: list[Line]) -> list[Check]:
    """The orderings of the paper's figure, on geometric means over ``lam``, and the laws behind them."""
    found = [check for panel in dict.fromkeys(line["panel"] for line in lines) for check in _orderings(lines, panel)]
    identical = [line for line in lines if line["panel"] == "BR-GD" and line["method"] == "FP k = t"]
    if identical:
        apart = max(line["distance_to_itd"] / line["gradient_norm"] for line in identical)
        claim = "BR-GD: ITD equals FP k = t, as A and B are constant"
        found.append(Check(claim, apart <= SAME, f"apart by at most {apart:.0e} of the gradient"))
    for kind in ("apriori", "aposteriori"):
        bounded = [line for line in lines if _is_number(line[f"{kind}_bound"])]
        above = sum(line["error"] > line[f"{kind}_bound"] + ROUNDING * line["gradient_norm"] for line in bounded)
        found.append(Check(f"no error is above its {kind} bound", above == 0, f"{above} of {len(bounded)} are"))
    return found


def _orderings(lines: list[Line], panel: str) -> Iterator[Check]:
    means = {
        method: _means([line for line in lines if (line["panel"], line["method"]) == (panel, method)])
        for method in METHODS
    }
    size = float(np.mean([line["gradient_norm"] for line in lines if line["panel"] == panel]))
    late = [t for t in means["ITD"] if t >= FIXED]
    lead = max(means["CG k = t"][t] / max(min(mean[t] for mean in means.values()), ROUNDING * size) for t in late)
    yield Check(
        f"{panel}: CG k = t is first or tied from t = {late[0]} on",
        lead <= TIED,
        f"at most {lead:.2f} times the least error",
    )
    middle, last = late[len(late) // 2], late[-1]
    drift = means["FP k = 10"][last] / means["FP k = 10"][middle]
    yield Check(
        f"{panel}: FP k = 10 stalls",
        abs(drift - 1) <= STALLED,
        f"its error changes by {abs(drift - 1):.0e} from t = {middle} to {last}",
    )
    ratio = means["CG k = 10"][last] / means["FP k = 10"][last]
    yield Check(f"{panel}: CG k = 10 ends far lower", ratio <= FAR_LOWER, f"{ratio:.0e} times the error of FP k = 10")


def _means(lines: list[Line]) -> dict[int, float]:
    """Geometric mean of the error for every t."""
    logs: dict[int, list[float]] = {}
    for line in lines:
        logs.setdefault(line["t"], []).append(np.log(max(line["error"], TINY)))
    return {t: float(np.exp(np.mean(values))) for t, values in logs.items()}


def _is_number(value: float | None) -> bool:
    return value is not None and np.isfinite(value)


def summary(lines: list[Line]) -> Summary:
    """Relative error of every method at the last t, a geometric mean over ``lam``."""
    rows = []
    for panel in dict.fromkeys(line["panel"] for line in lines):
        own = [line for line in lines if line["panel"] == panel]
        last = max(line["t"] for line in own)
        final = [{**line, "error": line["relative_error"]} for line in own if line["t"] == last]
        errors = [_means([line for line in final if line["method"] == method])[last] for method in METHODS]
        rows.append((panel, str(last), *(f"{error:.0e}" for error in errors)))
    return Summary(("panel", "t", *METHODS), rows)
