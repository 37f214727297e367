"""Truncated Newton for minimizations: CG on the Hessian, Eisenstat-Walker tolerances, Armijo line search."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel import tree
from bilevel.linear.cg import run_cg
from bilevel.loops import bounded_while
from bilevel.problems import Lower
from bilevel.solvers.base import MAX_NEWTON_STEPS, RUNNING, default_rtol, forcing, request, require_minimization, scale
from bilevel.solvers.line_search import DECREASE, backtrack
from bilevel.status import SolveInfo, Status, code

Tree = Any


@tree.record
@dataclass(frozen=True)
class NewtonCG:
    """Truncated Newton method on ``loss(w, lam)`` with line search.

    Each step solves ``H p = -d_w loss`` by CG only as far as Newton's model is trusted (Eisenstat and Walker
    1996, choice 1), follows negative curvature away from saddles, and backtracks along p.

    Parameters
    ----------
    steps
        Newton steps. Without ``rtol`` exactly so many run; with it, at most (default 100).
    rtol
        Stop after a step of norm ``<= rtol * max(norm(w), norm(w0))``. Default, where ``steps`` is not given
        either: the square root of machine epsilon.

    Notes
    -----
    Cost of a step: one gradient, the CG products, one or more evaluations of the loss, all counted as matvecs;
    one more gradient for the residual of the value returned. Statuses: ``MAX_STEPS``, ``NO_DESCENT``,
    ``NONFINITE``.
    """

    steps: int | None = field(default=None, metadata={"static": True})
    rtol: Any = None

    def __call__(
        self, lower: Lower, lam: Tree, w0: Tree, data: Tree, *, rtol: Any = None, steps: Any = None
    ) -> tuple[Tree, SolveInfo]:
        """Solve the lower level; see :class:`~bilevel.solvers.base.Solver`."""
        require_minimization("NewtonCG", lower, "NewtonKrylov")
        budget, rtol, steps = request(self, rtol, steps, default=default_rtol(w0), most=MAX_NEWTON_STEPS)
        run = _minimize(lower, lam, w0, data, rtol, steps, budget)
        F = lower.residual(run.w, lam, data)
        status = jnp.where((run.status == RUNNING) & budget, code(Status.OK), run.status)
        status = jnp.where(tree.all_finite((run.w, F)), status, code(Status.NONFINITE))
        return run.w, SolveInfo(run.step, run.matvecs + 1, tree.norm(F), status)


class _Run(NamedTuple):
    w: Tree
    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]  # at the last linearization
    model_norm: Float[Array, ""]  # what the last Newton model predicted for the next one
    step_norm: Float[Array, ""]
    step: Int[Array, ""]
    matvecs: Int[Array, ""]
    status: Int[Array, ""]


def _minimize(lower: Lower, lam: Tree, w0: Tree, data: Tree, rtol: Any, steps: int, budget: bool) -> _Run:
    def loss(w):
        return lower.function(w, lam, data)

    def decreases(value, slope):
        noise = 8 * jnp.finfo(value.dtype).eps * jnp.abs(value)  # the loss is not known better than this
        return lambda alpha, new: new <= value + DECREASE * alpha * slope + noise

    def body(s: _Run) -> _Run:
        g, H = lower.linearize(s.w, lam, data)
        norm_g = tree.norm(g)
        eta = forcing(norm_g, s.gradient_norm, s.model_norm, s.step_norm, rtol * scale(s.w, w0))
        cg = run_cg(H, tree.neg(g), lambda r: r, eta * norm_g, None, 2 * tree.size(g) + 50)
        slope = tree.dot(g, cg.x)
        p = tree.where(slope < 0, cg.x, tree.neg(g))
        alpha, value, trials = backtrack(loss, s.w, p, decreases(s.loss, jnp.minimum(slope, 0.0)))
        step_norm = tree.norm(p)
        w = tree.where(alpha > 0, tree.axpy(alpha, p, s.w), s.w)
        # A short Newton step says that w is this close, whether or not rounding lets the loss fall along it.
        reached = (step_norm <= rtol * scale(w, w0)) & (cg.status == Status.OK)
        status = jnp.where((alpha > 0) | reached, code(RUNNING), code(Status.NO_DESCENT))
        status = jnp.where(reached & (not budget), code(Status.OK), status)
        status = jnp.where(jnp.isfinite(norm_g) & jnp.isfinite(s.loss), status, code(Status.NONFINITE))
        matvecs = s.matvecs + 1 + cg.step + trials
        value = jnp.where(alpha > 0, value, s.loss)
        return _Run(w, value, norm_g, cg.residual_norm, alpha * step_norm, s.step + 1, matvecs, status)

    infinite = jnp.asarray(jnp.inf, tree.dtype(w0))
    start = _Run(w0, loss(w0), infinite, infinite, infinite, jnp.asarray(0), jnp.asarray(1), code(RUNNING))
    return bounded_while(lambda s: s.status == RUNNING, body, start, steps)
