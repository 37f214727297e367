"""What a hypergradient is compared with: a solution and an adjoint to rounding, and the objective solved again."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel import tree
from bilevel.checking.derivatives import DIRECTIONS, ENOUGH, Point
from bilevel.checking.differences import Differences, differentiate
from bilevel.hypergradient import hypergradient
from bilevel.lagrangian import Instance, gradient
from bilevel.linear.dense import Dense
from bilevel.methods.aid import AID, default_linear_solver
from bilevel.methods.base import Hypergradient
from bilevel.methods.exact import Exact
from bilevel.problems import Problem
from bilevel.solvers import default_solver
from bilevel.status import Status

Tree = Any

EXACT_SIZE = 2000  # lower-level unknowns up to which dense factorizations take seconds
NEARBY = 1e-3  # the change of lam at which the noise of the re-solved objective is measured
TIGHT = 0.75  # exponent of epsilon in the tolerance of solves "to rounding"
# Statuses that say how far a computation came: numbers tell that better.
OF_ACCURACY = (
    Status.OK,
    Status.UNRESOLVED,
    Status.MAX_STEPS,
    Status.STAGNATED,
    Status.NO_DESCENT,
    Status.TOLERANCE_UNMET,
)


@dataclass(frozen=True)
class Reference:
    """Solution, adjoint and hypergradient to rounding.

    Attributes
    ----------
    how
        ``"Exact"`` or ``"tight solves"``.
    h
        The result.
    trouble
        Why there is none, in a sentence; empty where there is one.
    """

    how: str
    h: Hypergradient
    trouble: str


def honest(problem: Problem) -> Problem:
    """The problem without the promise of a symmetry that it does not have by itself."""
    if problem.lower.kind == "minimization":
        return problem
    return replace(problem, lower=replace(problem.lower, symmetric=False))


def find_reference(at: Instance, w: Tree) -> Reference:
    """Dense up to :data:`EXACT_SIZE` unknowns, else by iterations, from ``w`` on."""
    how, method = ("Exact", Exact()) if tree.size(w) <= EXACT_SIZE else ("tight solves", AID(refine=1))
    h = hypergradient(
        at.problem, at.lam, w, lower_data=at.lower_data, upper_data=at.upper_data, method=method, on_failure="keep"
    )
    status = Status(int(h.status))
    found = status in OF_ACCURACY and bool(tree.all_finite((h.grad, h.error)))
    return Reference(how, h, "" if found else status.sentence)


@jax.jit
def with_its_adjoint(at: Instance, w: Tree) -> Tree:
    """The hypergradient at ``w`` with the exact adjoint there: its error is what ``w`` is to blame for."""
    _, A = at.linearize(w)
    solve = Dense() if tree.size(w) <= EXACT_SIZE else default_linear_solver(at.problem.lower)
    v, _ = solve(A.T, at.upper_gradient(w)[1], rtol=tree.eps(w) ** TIGHT)
    return gradient(at, w, v).grad


def objective_differences(at: Instance, reference: Hypergradient, where: Point, tol: float) -> Differences:
    """Derivatives of ``lam -> U(w(lam), lam)`` along the directions, the lower level solved anew for every value.

    The noise of a value is what the residual that its solve left can change it by, ``|<v, F>|`` to first order.
    """
    eps = tree.eps(at.lam)
    gaps = []

    def f(t: float) -> np.ndarray:
        rows = [_resolved(at, reference.w, where.v, _row(where.z_lam, i), t) for i in range(DIRECTIONS)]
        values, gap = np.asarray(rows, np.float64).T
        gaps.append(np.where(np.isfinite(gap), gap, 0.0))
        return values

    f(NEARBY)
    noise = np.max(gaps, axis=0) + 4 * eps * abs(float(reference.value))
    return differentiate(f, noise, lambda slope: ENOUGH * tol * np.sqrt(np.mean(slope**2)) + 0 * slope, eps)


def _row(z: Tree, i: int) -> Tree:
    return jax.tree.map(lambda x: x[i], z)


@jax.jit
def _resolved(at: Instance, w: Tree, v: Tree, z_lam: Tree, t: Any) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """``U(w(lam + t z), lam + t z)``, and what the residual left can change it by."""
    lam = tree.axpy(t, z_lam, at.lam)
    lower = at.problem.lower
    w, _ = default_solver(lower)(lower, lam, w, at.lower_data, rtol=tree.eps(w) ** TIGHT)
    value = at.problem.upper(w, lam, at.upper_data)
    return value, jnp.abs(tree.dot(v, lower.residual(w, lam, at.lower_data)))
