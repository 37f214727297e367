"""Truncated Newton for minimizations: CG on the Hessian, Eisenstat-Walker tolerances, Armijo line search."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel import tree
from bilevel.linear.cg import run_cg
from bilevel.linear.operator import build, divisor
from bilevel.loops import bounded_while
from bilevel.problems import Lower
from bilevel.solvers.base import (
    FALLEN,
    HELD,
    MAX_NEWTON_STEPS,
    RUNNING,
    default_rtol,
    forcing,
    request,
    require_minimization,
    scale,
)
from bilevel.solvers.line_search import DECREASE, backtrack
from bilevel.status import SolveInfo, Status, code

Tree = Any

ROUNDING = 32.0  # eps |H| |w| of the gradient that are rounding
MOST_STALLS = 10  # steps in a row that lower neither the loss, beyond its rounding, nor the gradient
OTHERS = 3  # products of a step besides those of CG: gradient, loss, gradient after it


@tree.record
@dataclass(frozen=True)
class NewtonCG:
    """Truncated Newton method on ``loss(w, lam)`` with line search.

    Each step solves ``H p = -d_w loss`` by CG only as far as Newton's model is trusted (Eisenstat and Walker
    1996, choice 1), follows negative curvature away from saddles, and backtracks along p. A step ends the work only
    if the gradient after it is the one that the model predicts: on the way along a curved valley, or out along the
    tail of a loss without a minimum, steps may be short beside ``w`` with no solution near.

    Parameters
    ----------
    steps
        Newton steps. Without ``rtol`` exactly so many run; with it, at most (default 300).
    rtol
        Stop after a step of norm ``<= rtol * max(norm(w), norm(w0))`` if the gradient is then the predicted one.
        Default, where ``steps`` is not given either: the square root of machine epsilon.
    preconditioner
        A :class:`~bilevel.linear.operator.Preconditioner` of the Hessian, built anew at every step; one that is
        built already stays.
    max_matvecs
        Stop with ``MAX_STEPS`` when so many have been spent, give or take those of a line search; default no limit.

    Notes
    -----
    Cost of a step: one gradient, the products of CG and of the preconditioner, one or more evaluations of the loss,
    all counted as matvecs; one more gradient for the residual of the value returned. Statuses: ``MAX_STEPS``,
    ``NO_DESCENT`` (also where step after step lowers neither the loss nor its gradient: rounding), ``NONFINITE``.
    """

    steps: int | None = field(default=None, metadata={"static": True})
    rtol: Any = None
    preconditioner: Any = None
    max_matvecs: Any = None

    def __call__(
        self, lower: Lower, lam: Tree, w0: Tree, data: Tree, *, rtol: Any = None, steps: Any = None
    ) -> tuple[Tree, SolveInfo]:
        """Solve the lower level; see :class:`~bilevel.solvers.base.Solver`."""
        require_minimization("NewtonCG", lower, "NewtonKrylov")
        budget, rtol, steps = request(self, rtol, steps, default=default_rtol(w0), most=MAX_NEWTON_STEPS)
        run = _minimize(lower, lam, w0, data, rtol, steps, budget, self.preconditioner, self.max_matvecs)
        known = jnp.isfinite(run.residual_norm)
        norm_F = jax.lax.cond(
            known,
            lambda: run.residual_norm,
            lambda: tree.norm(lower.residual(run.w, lam, data)).astype(run.step_norm.dtype),
        )
        status = jnp.where((run.status == RUNNING) & budget, code(Status.OK), run.status)
        status = jnp.where(tree.all_finite(run.w) & jnp.isfinite(norm_F), status, code(Status.NONFINITE))
        return run.w, SolveInfo(run.step, run.matvecs + ~known, norm_F, status)


class _Run(NamedTuple):
    w: Tree
    residual_norm: Float[Array, ""]  # at w; infinite where it is not known
    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]  # at the last linearization
    model_norm: Float[Array, ""]  # what the last Newton model predicted for the next one
    step_norm: Float[Array, ""]
    step: Int[Array, ""]
    matvecs: Int[Array, ""]
    lowest: Float[Array, ""]  # gradient norm at linearizations so far
    stalls: Int[Array, ""]  # steps in a row that lowered neither it nor the loss
    status: Int[Array, ""]


def _minimize(
    lower: Lower, lam: Tree, w0: Tree, data: Tree, rtol: Any, steps: Any, budget: bool, preconditioner: Any, most: Any
) -> _Run:
    def loss(w):
        return lower.loss(w, lam, data)

    def noise(value):
        return 8 * jnp.finfo(value.dtype).eps * jnp.abs(value)  # the loss is not known better than this

    def decreases(value, slope):
        return lambda alpha, new: new <= value + DECREASE * alpha * slope + noise(value)

    def left(spent, steps):
        return steps if most is None else jnp.clip(most - spent - OTHERS, 1, steps)

    def body(s: _Run) -> _Run:
        g, H = lower.linearize(s.w, lam, data)
        norm_g = tree.norm(g)
        eta = forcing(norm_g, s.gradient_norm, s.model_norm, s.step_norm, rtol * scale(s.w, w0))
        M, built = build(preconditioner, H, g)
        cg = run_cg(H, tree.neg(g), M, eta * norm_g, None, left(s.matvecs + built, 2 * tree.size(g) + 50))
        bent = cg.status == Status.NEGATIVE_CURVATURE
        # A direction of negative curvature has no length of its own: it begins with that of the step so far.
        newton = tree.axpy(jnp.where(bent, tree.norm(cg.x) / divisor(tree.norm(cg.p)), 0.0), cg.p, cg.x)
        slope = tree.dot(g, newton)
        p = tree.where(slope < 0, newton, tree.neg(g))
        accept = decreases(s.loss, jnp.minimum(slope, 0.0))
        alpha, value, trials = backtrack(loss, s.w, p, accept, scale(s.w, w0), extend=bent)
        step_norm, full = tree.norm(p), tree.add(s.w, p)
        # Rounding of the loss may hide the descent along a short Newton step; its gradient tells.
        short = (step_norm <= rtol * scale(full, w0)) & (cg.status == Status.OK) & ((alpha == 1) | (alpha == 0))
        norm_full = jax.lax.cond(
            short, lambda: tree.norm(lower.residual(full, lam, data)).astype(infinite.dtype), lambda: infinite
        )
        rounding = ROUNDING * tree.eps(s.w) * cg.largest * scale(full, w0)
        tiny = short & (step_norm <= tree.eps(s.w) ** 0.5 * scale(full, w0))  # rounding, with a preconditioner as well
        reached = tiny | (norm_full <= cg.residual_norm + HELD * norm_g + rounding)
        lowered = (value < s.loss - noise(s.loss)) | (norm_g < FALLEN * s.lowest)
        stalls = jnp.where(lowered | budget, 0, s.stalls + 1)
        going = ((alpha > 0) & (stalls < MOST_STALLS)) | reached
        status = jnp.where(going, code(RUNNING), code(Status.NO_DESCENT))
        status = jnp.where(reached & (not budget), code(Status.OK), status)
        status = jnp.where(jnp.isfinite(norm_g) & jnp.isfinite(s.loss), status, code(Status.NONFINITE))
        taken = tree.where(alpha > 0, tree.axpy(alpha, p, s.w), s.w)
        known = jnp.where(reached, norm_full, infinite)
        matvecs = s.matvecs + 1 + built + cg.step + trials + short
        value = jnp.where(alpha > 0, value, s.loss)
        w = tree.where(reached, full, taken)
        lowest = jnp.minimum(norm_g, s.lowest)
        return _Run(
            w, known, value, norm_g, cg.residual_norm, alpha * step_norm, s.step + 1, matvecs, lowest, stalls, status
        )

    def unfinished(s: _Run):
        within = True if most is None else s.matvecs < most
        return (s.status == RUNNING) & within

    infinite = jnp.asarray(jnp.inf, tree.dtype(w0))
    start = _Run(
        w0, infinite, loss(w0), infinite, infinite, infinite, jnp.asarray(0), jnp.asarray(1), infinite, jnp.asarray(0),
        code(RUNNING),
    )  # fmt: skip
    return bounded_while(unfinished, body, start, steps)
