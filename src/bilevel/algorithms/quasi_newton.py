"""Quasi-Newton descent along certified hypergradients, with steps of its own: what ``optimize`` takes unasked."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from bilevel import tree
from bilevel.algorithms.step_info import StepInfo, told
from bilevel.automatic.tools import DENSE_MOST
from bilevel.hypergradient import hypergradient
from bilevel.lagrangian import Instance
from bilevel.methods.base import Hypergradient
from bilevel.problems import Problem
from bilevel.status import is_failure

Tree = Any

FIRST_TOL = 0.1  # relative accuracy of the hypergradients, to begin with
LEAST_TOL = 1e-3
FIRST_STEP = 0.5  # largest change of a component by the first step, against max(1, |lam|)
GROWTH = 4.0  # by which a step may be longer than the last
DECREASE = 1e-4  # part of the decrease that the slope promises which a step must reach
PATIENCE = 3  # rejected steps in a row after which hypergradients are asked for more accurately
MOST_REJECTIONS = 12  # in a row, after which a run has come as far as it can


class Best(NamedTuple):
    """The best point so far: hyperparameters, solution, adjoint, upper-level objective, hypergradient."""

    lam: Tree
    w: Tree
    v: Tree
    value: Float[Array, ""]
    grad: Tree


class QuasiNewtonState(NamedTuple):
    """What is carried.

    Attributes
    ----------
    lam
        The hyperparameters to look at next: ``best.lam + part * direction``.
    best
        The best so far, where steps begin.
    direction, part
        The present direction and the part of it that is tried.
    optimizer
        Memory of the curvature.
    tol
        Relative accuracy of the hypergradients.
    length
        Length of the last step that was taken.
    tried, rejected
        Hypergradients so far; rejected steps since the last one that was taken.
    """

    lam: Tree
    best: Best
    direction: Tree
    part: Float[Array, ""]
    optimizer: Any
    tol: Float[Array, ""]
    length: Float[Array, ""]
    tried: Int[Array, ""]
    rejected: Int[Array, ""]

    @property
    def w(self) -> Tree:
        """Lower-level start of the next solve."""
        return self.best.w


@tree.record
@dataclass(frozen=True)
class QuasiNewton:
    """L-BFGS on ``f(lam) = U(w(lam), lam)`` with certified hypergradients and a line search; there is nothing to tune.

    A step looks at ``lam + s d``, d the direction of L-BFGS. It is taken where the Lagrangian
    ``l(w, v, lam) = U - <v, F>``, whose error is of second order in those of w and v, has fallen by a part
    of what the slope promises; else s shrinks to where the slopes at both ends put the minimum. Hypergradients come
    from the automatic method, from the last w and v, and are certified to a tenth of their norm; more accurately
    where steps keep being rejected.

    Parameters
    ----------
    memory
        Pairs of steps and gradient changes kept.
    max_matvecs
        Budget of one hypergradient; one that needs more is a failure, so that the step is made shorter, or where it is
        the first the run ends. Default no limit.

    Notes
    -----
    Every step is one hypergradient with all data. A product with all rows at once costs less than the same rows in
    batches; still, where w is large or the lower level ill-conditioned, minibatch algorithms whose steps were tuned are
    faster (docs/race.md).

    The first step changes no component of lam by more than half of ``max(1, |lam|)``, later ones are at most four
    times as long as the last; where the objective is not convex along a step the memory is dropped and the next one
    goes along the gradient.

    Memory: ``2 memory`` vectors like lam.

    References
    ----------
    Pedregosa 2016, arXiv 1602.02355, for descent along inexact hypergradients with tolerances that shrink.
    """

    memory: int = field(default=10, metadata={"static": True})
    max_matvecs: Any = None

    def init(self, lam0: Tree, w0: Tree) -> QuasiNewtonState:
        """State at ``lam0``; the adjoint starts from zero."""
        lam0, w0 = tree.strong((lam0, w0))
        real = tree.dtype(lam0)
        best = Best(lam0, w0, tree.zeros_like(w0), jnp.asarray(jnp.inf, real), tree.zeros_like(lam0))
        zero, tol, none = jnp.zeros((), real), jnp.asarray(FIRST_TOL, real), jnp.asarray(0)
        return QuasiNewtonState(lam0, best, best.grad, zero, _lbfgs(self).init(lam0), tol, zero, none, none)

    def update(
        self, state: QuasiNewtonState, problem: Problem, lower_data: Tree, upper_data: Tree, *, error: bool = True
    ) -> tuple[QuasiNewtonState, StepInfo]:
        """Look at ``state.lam`` and choose where to look next."""
        # Up to that size a cold adjoint: L-BFGS begins, as at the first step, where the adjoint is zero anyway.
        v0 = state.best.v if tree.size(state.best.v) > DENSE_MOST else None
        h = hypergradient(
            problem, state.lam, state.best.w, v0=v0, lower_data=lower_data, upper_data=upper_data,
            tol=state.tol, max_matvecs=self.max_matvecs, error=error, on_failure="keep",
        )  # fmt: skip
        return _move(self, Instance(problem, state.lam, lower_data, upper_data), state, h)


def _lbfgs(algorithm: QuasiNewton) -> optax.GradientTransformation:
    return optax.scale_by_lbfgs(memory_size=algorithm.memory)


@jax.jit
def _move(
    algorithm: QuasiNewton, at: Instance, state: QuasiNewtonState, h: Hypergradient
) -> tuple[QuasiNewtonState, StepInfo]:
    """Take the step to ``state.lam`` or not; the next one either way."""
    best = state.best
    found = Best(state.lam, h.w, h.v, at.value(h.w, h.v), h.grad)
    step = tree.sub(state.lam, best.lam)
    slope = tree.dot(best.grad, step)
    rounding = 20 * tree.eps(found.value) * jnp.abs(best.value)
    fallen = found.value <= best.value + DECREASE * slope + rounding
    usable = ~is_failure(h.status) & tree.all_finite((found.value, found.grad))
    first = state.tried == 0
    accepted = first | (usable & fallen)
    taken = _take(algorithm, state, found, tree.norm(step), first)
    rejected = _reject(state, slope, tree.dot(h.grad, step), usable)
    new = tree.where(accepted & usable, taken, rejected)
    tol = jnp.where(new.rejected == PATIENCE, jnp.maximum(state.tol / 10, LEAST_TOL), state.tol)
    promised = -tree.dot(new.best.grad, tree.sub(new.lam, new.best.lam))
    ended = (new.rejected >= MOST_REJECTIONS) | (promised <= tree.eps(found.value) * jnp.abs(new.best.value))
    info = told(state.lam, h, tree.norm(h.grad), accepted=accepted, ended=ended)
    return new._replace(tol=tol, tried=state.tried + 1), info


def _take(
    algorithm: QuasiNewton, state: QuasiNewtonState, found: Best, length: Array, first: Bool[Array, ""]
) -> QuasiNewtonState:
    """The state after a step to ``found``: a new direction from there."""
    lbfgs = _lbfgs(algorithm)
    s, y = tree.sub(found.lam, state.best.lam), tree.sub(found.grad, state.best.grad)
    convex = ~first & (tree.dot(s, y) > tree.eps(s) * tree.norm(s) * tree.norm(y))
    memory = tree.where(convex, state.optimizer, lbfgs.init(found.lam))
    newton, memory = lbfgs.update(found.grad, memory, found.lam)
    # Without known curvature along the gradient: a step so much longer than the last, or the first of all.
    largest = tree.largest(found.grad)
    unit = FIRST_STEP * jnp.maximum(1.0, tree.largest(found.lam)) / jnp.where(largest > 0, largest, 1.0)
    norm = tree.norm(found.grad)
    blind = jnp.where(first, unit, GROWTH * length / jnp.where(norm > 0, norm, 1.0))
    direction = tree.neg(tree.where(convex, newton, tree.scale(blind, found.grad)))
    size = tree.norm(direction)
    part = jnp.where(first, 1.0, jnp.minimum(1.0, GROWTH * length / jnp.where(size > 0, size, 1.0)))
    part = part.astype(state.part.dtype)
    lam = tree.axpy(part, direction, found.lam)
    none = jnp.zeros_like(state.rejected)
    return QuasiNewtonState(lam, found, direction, part, memory, state.tol, length, state.tried, none)


def _reject(state: QuasiNewtonState, slope: Array, slope_there: Array, usable: Bool[Array, ""]) -> QuasiNewtonState:
    """The state after a step that was not taken: a shorter one, to where slopes at both ends put the minimum."""
    secant = slope / jnp.where(slope == slope_there, 1.0, slope - slope_there)
    shorter = jnp.where(usable & (slope_there > 0), jnp.clip(secant, 0.1, 0.5), 0.25)
    part = (state.part * shorter).astype(state.part.dtype)
    return state._replace(lam=tree.axpy(part, state.direction, state.best.lam), part=part, rejected=state.rejected + 1)
