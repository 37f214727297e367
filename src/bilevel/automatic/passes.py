"""The passes of the automatic method: judge the hypergradient, and if need be take the Newton step that judged it."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel import tree
from bilevel.automatic.single import Aids
from bilevel.automatic.start import Start, Wish, budget_left, model_holds, serious
from bilevel.certificates.aposteriori import certify
from bilevel.lagrangian import Correction, Instance, correct, gradient
from bilevel.methods.base import Hypergradient, accepts, conclude, nothing_done
from bilevel.status import SolveInfo, Status, code, is_failure

Tree = Any

MAX_PASSES = 24
ROUNDING = 4.0  # rounding of the gradient, in eps of its terms
VANISHING = 100.0  # a gradient below so many times its own rounding error is zero for all that can be known


class Passes(NamedTuple):
    """Where the passes stand: the present ``(w, v)`` and what is known of the point judged last."""

    w: Tree
    v: Tree
    size: Float[Array, ""]  # of w, what its steps are relative to
    grad: Tree
    scale: Float[Array, ""]
    error: Float[Array, ""]
    trusted: Bool[Array, ""]  # the linear model behind the error holds
    at_rounding: Bool[Array, ""]  # the error is no larger than rounding makes it
    passes: Int[Array, ""]
    stalls: Int[Array, ""]  # passes in a row that did not halve the error
    lower: SolveInfo
    adjoint: SolveInfo
    error_info: SolveInfo
    probe: SolveInfo
    growth: Float[Array, ""]
    running: Bool[Array, ""]

    @property
    def solved(self) -> Bool[Array, ""]:
        """Whether the last linear solves reached what was asked of them, so that the error can be trusted."""
        return (self.error_info.status == Status.OK) & jnp.isfinite(self.error) & self.trusted


def first_state(at: Instance, s: Start, size: Float[Array, ""]) -> Passes:
    """Nothing judged yet."""
    infinite, no = jnp.asarray(jnp.inf, tree.dtype(at.lam)), jnp.asarray(False)
    return Passes(
        **s._asdict(), size=size, grad=tree.zeros_like(at.lam), scale=infinite, error=infinite, trusted=no,
        at_rounding=no, passes=jnp.asarray(0), stalls=jnp.asarray(0), error_info=nothing_done(s.w),
        running=~is_failure(s.lower.status) & ~is_failure(s.adjoint.status),
    )  # fmt: skip


def advance(wish: Wish, at: Instance, aids: Aids, s: Passes) -> Passes:
    """One pass: judge the hypergradient at ``(w, v)``, and if its error is too large take the Newton step.

    The linear solves of a step that is taken found the answer; those of the last one, which is not, are what
    the error estimate cost.
    """
    result = gradient(at, s.w, s.v)
    left = budget_left(wish, s.lower.matvecs + s.adjoint.matvecs + s.probe.matvecs)
    step = correct(at, s.w, s.v, aids.limited_solver(s.w, left))
    # Solves may leave residuals of exactly zero; w and the terms of the gradient are rounded nevertheless.
    rounding = tree.eps(result.grad) * (ROUNDING + s.growth) * result.scale
    error = jnp.maximum(tree.norm(step.change), rounding)
    size = tree.norm(result.grad)
    trusted = model_holds(at, s.w, step.dw, step.F, step.lower.residual_norm, s.size)
    solved = step.lower.then(step.adjoint).plus(1)
    failed = is_failure(serious(solved.status))
    accepted = accepts(error, size, result.scale, wish.tol, wish.atol)
    enough = (solved.status == Status.OK) & accepted & trusted
    stalls = jnp.where(error > 0.5 * s.error, s.stalls + 1, 0)
    lower, adjoint = s.lower.then(step.lower), s.adjoint.then(step.adjoint)
    within = True if left is None else step.lower.matvecs + step.adjoint.matvecs < left
    # What the probe found is the verdict, however small the error becomes.
    promising = (stalls < 3) & (s.passes + 1 < MAX_PASSES) & jnp.isfinite(error) & ~is_failure(serious(s.probe.status))
    go_on = ~enough & ~failed & within & promising
    judged = s._replace(
        grad=result.grad, scale=result.scale, error=error, trusted=trusted,
        at_rounding=_at_rounding(s, step, error, result.scale), passes=s.passes + 1, stalls=stalls, running=go_on,
    )  # fmt: skip
    taken = judged._replace(
        w=tree.add(s.w, step.dw), v=tree.add(s.v, step.dv),
        lower=replace(lower, status=s.lower.status), adjoint=replace(adjoint, status=code(Status.OK)),
    )  # fmt: skip
    return tree.where(go_on, taken, judged._replace(error_info=solved))


def finish(wish: Wish, at: Instance, s: Passes, name: str) -> Hypergradient:
    """The answer with its verdict."""
    spent = s.error_info.then(s.probe)
    h = conclude(
        at.problem, name, grad=s.grad, scale=s.scale,
        value=at.problem.upper(s.w, at.lam, at.upper_data), w=s.w, v=s.v, lower=s.lower, adjoint=s.adjoint,
        error=s.error, error_info=replace(spent, status=serious(spent.status)),
        certificate=certify(at, s.w, s.v, s.grad, s.lower.matvecs + s.adjoint.matvecs),
    )  # fmt: skip
    met = s.solved & accepts(h.error, tree.norm(h.grad), h.scale, wish.tol, wish.atol)
    # A gradient that vanishes has no relative accuracy; that it is zero to rounding is all that can be said.
    vanishing = s.at_rounding & (s.stalls > 0) & (tree.norm(h.grad) <= VANISHING * h.error)
    verdict = jnp.where(vanishing, code(Status.UNRESOLVED), code(Status.TOLERANCE_UNMET))
    return replace(h, status=jnp.where(met | is_failure(h.status), h.status, verdict))


def _at_rounding(s: Passes, step: Correction, error: Any, scale: Any) -> Bool[Array, ""]:
    """Whether the error is below ``sqrt(eps)`` times the size the hypergradient can have.

    That is the larger of its two terms before they cancel, and of its change when w changes by its own size,
    read off the last step: where the adjoint vanishes too, only the second tells.
    """
    dw = tree.norm(step.dw)
    sensitivity = jnp.where(dw > 0, error / jnp.where(dw > 0, dw, 1.0) * s.size, 0.0)
    return error <= jnp.sqrt(jnp.finfo(error.dtype).eps) * jnp.maximum(scale, sensitivity)
