"""``p1-contraction``: ITD, AID-FP and AID-CG where the map is no contraction.

The map is one tanh layer, ``w_i <- tanh(q M w_i + B x_i + c)`` with ``|M| = 1``, so that q is its contraction factor as
long as ``q < 1``. A weak drive ``B x_i + c`` keeps the states where ``tanh' = 1``, nearly, and the bound is sharp. M is
orthogonal, with a spectral radius of its norm, or a Gaussian matrix, with one of about half its norm. From ``w_0 = 0``,
ITD returns the gradient of ``f_t(lam) = U(w_t(lam), lam)`` for every q. AID with t steps and k = t products, by the
fixed-point method (FP) or by conjugate gradients on the normal equations (CG), is about the fixed point itself.

References
----------
Grazzi, Franceschi, Pontil, Salzo (2020), arXiv 2006.16218, Sections 2 and 3.2.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel import tree
from bilevel.experiments.checks import Check, Summary
from bilevel.experiments.counted import Counted, aid, itd
from bilevel.experiments.lines import Line, facts
from bilevel.hypergradient import hypergradient
from bilevel.linear.normal_cg import NormalCG
from bilevel.linear.richardson import Richardson
from bilevel.methods.base import Hypergradient
from bilevel.methods.exact import Exact
from bilevel.models import equilibrium
from bilevel.models.catalog import Case
from bilevel.models.samples import Samples, floating, orthonormal
from bilevel.problems import Problem
from bilevel.solvers.picard import Picard
from bilevel.status import Status

Tree = Any
Progress = Callable[[str, int, int], None]

NAME = "p1-contraction"
METHODS = ("ITD", "FP k = t", "CG k = t")
MAPS = ("orthogonal", "Gaussian")
CLASSES, FEATURES = 3, 3
DRIVE = 0.1  # scale of B and c
INSIDE, BEYOND = 0.9, 1.2  # spectral radii at the solution within which t = 100 steps converge, or diverge
CONVERGED = 1e-3
WRONG = 0.1  # relative error above which a hypergradient has to be flagged
EXACT = 1e-9  # relative distance of two derivatives of one function


@dataclass(frozen=True)
class Settings:
    """What is computed.

    Attributes
    ----------
    factors
        Values of q, increasing.
    shown
        Pairs of a map and one of these values, whose errors are recorded for all t and not only for the last.
    times
        Values of t, increasing.
    samples, states
        Size of the model.
    """

    factors: tuple[float, ...] = (*(round(0.5 + 0.1 * i, 1) for i in range(21)),)
    shown: tuple[tuple[str, float], ...] = (("orthogonal", 0.9), ("Gaussian", 1.6), ("orthogonal", 2.0))
    times: tuple[int, ...] = (1, 2, 4, 7, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 100)
    samples: int = 4
    states: int = 20

    @property
    def total(self) -> int:
        """Problems in all: the unit of progress."""
        return len(MAPS) * len(self.factors)


FULL = Settings()
QUICK = Settings(factors=(0.5, 0.9, 1.0, 1.1, 1.3, 1.6, 2.0, 2.5), times=(1, 4, 10, 20, 40, 70, 100))


def run(settings: Settings, seed: int, progress: Progress) -> Iterator[Line]:
    """One record for every map, q, method and t."""
    done = 0
    for kind in MAPS:
        case = draw(kind, settings, seed)
        about = facts(NAME, seed, tree.dtype(case.w0), {**asdict(settings), "drive": DRIVE, "features": FEATURES})
        w = case.w0
        for q in settings.factors:
            scaled = case._replace(lam={**case.lam, "A": q * case.lam["A"]})
            truth = _truth(scaled, w, settings.times[-1])
            w = case.w0 if truth is None else truth.w
            times = settings.times if (kind, q) in settings.shown else settings.times[-1:]
            spectrum = {
                "map": kind, "q": q, "spectral_radius": spectral_radius(np.asarray(scaled.lam["A"])),
                "spectral_radius_at_solution": None if truth is None else _radius_at(scaled, truth.w),
            }  # fmt: skip
            for t in times:
                for line in _lines(scaled, truth, t, settings.times[-1]):
                    yield {**about, **spectrum, **line}
            done += 1
            progress("map", done, settings.total)


def draw(kind: str, settings: Settings, seed: int) -> Case:
    """The problem for ``q = 1``."""
    rng = np.random.default_rng(seed)
    h, n = settings.states, settings.samples
    G = rng.standard_normal((h, h))
    M = orthonormal(rng, h, h) if kind == "orthogonal" else G / np.linalg.norm(G, 2)
    lam = equilibrium.Parameters(
        A=floating(M),
        B=floating(DRIVE * rng.standard_normal((h, FEATURES))),
        c=floating(DRIVE * rng.standard_normal(h)),
        coef=floating(rng.standard_normal((h, CLASSES)) / np.sqrt(h)),
        intercept=floating(np.zeros(CLASSES)),
    )
    data = Samples(floating(rng.standard_normal((n, FEATURES))), jnp.asarray(rng.integers(CLASSES, size=n)))
    return Case(equilibrium.problem(), lam, floating(np.zeros((n, h))), data, data)


def _truth(case: Case, near: Tree, most: int) -> Hypergradient | None:
    """The hypergradient at the fixed point near the last one, or near the last iterate where that one has vanished."""
    for w0 in (near, _compute(case, aid(Picard(), Richardson(), most, 1)).w):
        h = _compute(case._replace(w0=w0), Exact())
        if Status(int(h.status)) == Status.OK:
            return h
    return None


def _lines(case: Case, truth: Hypergradient | None, t: int, most: int) -> Iterator[Line]:
    """The three methods after t steps."""
    methods = itd(Picard(), t, most), aid(Picard(), Richardson(), t, t), aid(Picard(), NormalCG(), t, t)
    for name, method in zip(METHODS, methods, strict=True):
        h = _compute(case, method)
        error, relative_error = (None, None) if truth is None else _errors(h.grad, truth.grad)
        status = Status(int(h.status))
        yield {
            "method": name, "t": t, "k": t, "error": error, "relative_error": relative_error,
            "estimated_relative_error": float(h.relative_error),
            "distance_to_gradient_of_ft": _distance_to_gradient_of_ft(case, h.grad, t) if name == "ITD" else None,
            "norm": float(tree.norm(h.grad)), "residual_norm": float(h.lower.residual_norm),
            "matvecs": 2 * t if name == "ITD" else int(h.lower.matvecs) + int(h.adjoint.matvecs),
            "status": status.name, "flagged": status != Status.OK,
        }  # fmt: skip


def _errors(grad: Tree, truth: Tree) -> tuple[float, float]:
    error = float(tree.norm(tree.sub(grad, truth)))
    return error, error / float(tree.norm(truth))


def _compute(case: Case, method: Any) -> Hypergradient:
    problem, lam, w0, lower_data, upper_data = case
    return hypergradient(
        problem, lam, w0, lower_data=lower_data, upper_data=upper_data, method=method, on_failure="keep"
    )


def _distance_to_gradient_of_ft(case: Case, grad: Tree, t: int) -> float:
    """``|<grad - grad f_t, d>| / |grad|`` for a random unit direction d, the derivative of ``f_t`` in forward mode."""
    direction = tree.standard_normal(jax.random.key(0), case.lam)
    direction = tree.scale(1 / tree.norm(direction), direction)
    slope = _slope_of_ft(*case, direction, t)
    return float(jnp.abs(tree.dot(grad, direction) - slope) / tree.norm(grad))


@jax.jit
def _slope_of_ft(
    problem: Problem, lam: Tree, w0: Tree, lower_data: Tree, upper_data: Tree, direction: Tree, t: Any
) -> Float[Array, ""]:
    def f_t(lam: Tree) -> Float[Array, ""]:
        w, _ = Counted(Picard(), t)(problem.lower, lam, w0, lower_data)
        return problem.upper(w, lam, upper_data)

    return jax.jvp(f_t, (lam,), (direction,))[1]


def spectral_radius(A: np.ndarray) -> float:
    """Greatest absolute eigenvalue."""
    return float(np.abs(np.linalg.eigvals(A)).max())


def _radius_at(case: Case, w: Float[Array, "n h"]) -> float:
    """Spectral radius of ``d_w Phi`` at w: the greatest of its blocks ``diag(1 - w_i^2) A``, for ``w = Phi(w)``."""
    A, states = np.asarray(case.lam["A"]), np.asarray(w)
    return max(spectral_radius((1 - np.square(state))[:, None] * A) for state in states)


def checks(lines: list[Line]) -> list[Check]:
    """What the paper says of contractions and of other maps, and that nothing wrong goes without a flag."""
    last = max(line["t"] for line in lines)
    known = [line for line in lines if line["relative_error"] is not None]
    final = [line for line in known if line["t"] == last]
    inside = [line for line in final if line["spectral_radius_at_solution"] < INSIDE]
    beyond = [line for line in final if line["spectral_radius_at_solution"] > BEYOND and line["method"] == "FP k = t"]
    least, most = _range([line["relative_error"] for line in beyond])
    _, converged = _range([line["relative_error"] for line in inside])
    _, of_ft = _range([line["distance_to_gradient_of_ft"] for line in lines if line["method"] == "ITD"])
    wrong = [line for line in known if line["relative_error"] > WRONG]
    silent = sum(not line["flagged"] for line in wrong)
    expanding = sum(line["q"] > 1 for line in inside)
    return [
        Check(
            f"all methods converge where the spectral radius at the solution is below {INSIDE}, also where |A| > 1",
            converged <= CONVERGED and expanding > 0,
            f"relative errors up to {converged:.0e}; {expanding} of {len(inside)} with |A| > 1",
        ),
        Check(
            f"AID-FP diverges where that is above {BEYOND}", least > 1,
            f"relative errors from {least:.0e} to {most:.0e}",
        ),
        Check("ITD returns the gradient of f_t for every q", of_ft <= EXACT, f"relative distance at most {of_ft:.0e}"),
        Check(
            f"every relative error above {WRONG} is flagged", silent == 0,
            f"{len(wrong)} of {len(known)} are above, {silent} of them without a flag",
        ),
    ]  # fmt: skip


def _range(values: list[float]) -> tuple[float, float]:
    """Least and greatest; NaN, which no claim holds for, where there are none."""
    return (min(values), max(values)) if values else (np.nan, np.nan)


def summary(lines: list[Line]) -> Summary:
    """Relative error and status of every method at the last t."""
    last = max(line["t"] for line in lines)
    problems: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        if line["t"] == last:
            error = "-" if line["relative_error"] is None else f"{line['relative_error']:.0e}"
            problems.setdefault((line["map"], f"{line['q']:g}"), []).append(error + " !" * line["flagged"])
    return Summary(("A", "q", *METHODS), [(*key, *cells) for key, cells in problems.items()])
