"""Newton-GMRES for fixed points and roots, after a few Picard steps (Knoll and Keyes 2004)."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel import tree
from bilevel.linear.gmres import GMRES
from bilevel.loops import bounded_while
from bilevel.problems import Lower
from bilevel.solvers.base import HELD, MAX_NEWTON_STEPS, RUNNING, default_rtol, forcing, request, scale
from bilevel.solvers.line_search import DECREASE, backtrack
from bilevel.solvers.picard import Picard
from bilevel.status import SolveInfo, Status, code

Tree = Any

OTHERS = 3  # products of a step besides those of the Krylov space: F, the residual of GMRES, a trial
PICARD_STEPS = 20  # a good contraction needs no Newton step; more would not pay against GMRES


@tree.record
@dataclass(frozen=True)
class NewtonKrylov:
    """Newton's method on ``F(w, lam) = 0`` with GMRES steps and backtracking on ``norm(F)``.

    Begins with at most 20 Picard steps, which it keeps only if they lower the residual: a good contraction is
    solved by them alone, a map that is no contraction loses little.

    Parameters
    ----------
    steps
        Newton steps. Without ``rtol`` exactly so many run; with it, at most (default 300).
    rtol
        Stop after a step of norm ``<= rtol * max(norm(w), norm(w0))`` if the residual is then the predicted one.
        Default, where ``steps`` is not given either: the square root of machine epsilon.
    preconditioner
        A :class:`~bilevel.linear.operator.Preconditioner` of ``d_w F``, built anew at every step; one that is built
        already stays.
    max_matvecs
        Stop with ``MAX_STEPS`` when so many have been spent, give or take those of a line search; default no limit.

    Notes
    -----
    Cost: one matvec a Picard step; for a Newton step one evaluation of F, the GMRES products and the trials
    of the line search. Statuses: ``MAX_STEPS``, ``NO_DESCENT`` (a local minimum of ``norm(F)`` that is no
    root, or rounding), ``NONFINITE``.
    """

    steps: int | None = field(default=None, metadata={"static": True})
    rtol: Any = None
    preconditioner: Any = None
    max_matvecs: Any = None

    def __call__(
        self, lower: Lower, lam: Tree, w0: Tree, data: Tree, *, rtol: Any = None, steps: Any = None
    ) -> tuple[Tree, SolveInfo]:
        """Solve the lower level; see :class:`~bilevel.solvers.base.Solver`."""
        budget, rtol, steps = request(self, rtol, steps, default=default_rtol(w0), most=MAX_NEWTON_STEPS)
        most = self.max_matvecs
        w, picard = _picard(lower, lam, w0, data, rtol, most)
        status = jnp.where((picard.status == Status.OK) & (not budget), code(Status.OK), code(RUNNING))
        gmres = GMRES(preconditioner=self.preconditioner)
        left = None if most is None else most - picard.matvecs
        run = _newton(lower, lam, w, w0, data, rtol, steps, budget, status, gmres, left)
        F = lower.residual(run.w, lam, data)
        status = jnp.where((run.status == RUNNING) & budget, code(Status.OK), run.status)
        status = jnp.where(tree.all_finite((run.w, F)), status, code(Status.NONFINITE))
        matvecs = picard.matvecs + run.matvecs + 1
        return run.w, SolveInfo(picard.steps + run.step, matvecs, tree.norm(F), status)


def _picard(lower: Lower, lam: Tree, w0: Tree, data: Tree, rtol: Any, most: Any) -> tuple[Tree, SolveInfo]:
    """The end of a short Picard run, or ``w0`` where that has the smaller residual."""
    steps = PICARD_STEPS if most is None else jnp.clip(most - 2, 0, PICARD_STEPS)
    w, info = Picard()(lower, lam, w0, data, rtol=rtol, steps=steps)
    before = tree.norm(lower.residual(w0, lam, data))
    better = info.residual_norm < before
    return tree.where(better | (info.status == Status.OK), w, w0), info.plus(1)


class _Run(NamedTuple):
    w: Tree
    residual_norm: Float[Array, ""]
    model_norm: Float[Array, ""]
    step_norm: Float[Array, ""]
    step: Int[Array, ""]
    matvecs: Int[Array, ""]
    status: Int[Array, ""]


def _newton(
    lower: Lower, lam, w: Tree, w0: Tree, data, rtol, steps: int, budget: bool, status, gmres: GMRES, most: Any
) -> _Run:
    def residual_norm(w):
        return tree.norm(lower.residual(w, lam, data))

    def body(s: _Run) -> _Run:
        F, A = lower.linearize(s.w, lam, data)
        norm_F = tree.norm(F)
        eta = forcing(norm_F, s.residual_norm, s.model_norm, s.step_norm, rtol * scale(s.w, w0))
        krylov = 2 * tree.size(F) + 50
        krylov = krylov if most is None else jnp.clip(most - s.matvecs - OTHERS, 1, krylov)
        p, linear = gmres(A, tree.neg(F), rtol=eta, steps=krylov)
        step_norm = tree.norm(p)
        last = step_norm <= rtol * scale(s.w, w0)
        size = scale(s.w, w0)
        alpha, new, trials = backtrack(residual_norm, s.w, p, lambda a, new: new <= (1 - DECREASE * a) * norm_F, size)
        # At the level of rounding norm(F) may no longer fall; above it a short step is the last one only if it brings
        # the residual that the model predicts: out along a tail without a root short steps go on for ever.
        rounding = (alpha == 0) & last
        reached = last & (rounding | (new <= linear.residual_norm + HELD * norm_F))
        alpha = jnp.where(rounding, 1.0, alpha)
        status = jnp.where(reached & (not budget) & (linear.status == Status.OK), code(Status.OK), code(RUNNING))
        status = jnp.where(alpha > 0, status, code(Status.NO_DESCENT))
        status = jnp.where(jnp.isfinite(norm_F), status, code(Status.NONFINITE))
        w = tree.where(jnp.isfinite(step_norm), tree.axpy(alpha, p, s.w), s.w)
        matvecs = s.matvecs + 1 + linear.matvecs + trials
        return _Run(w, norm_F, linear.residual_norm, alpha * step_norm, s.step + 1, matvecs, status)

    def unfinished(s: _Run):
        within = True if most is None else s.matvecs < most
        return (s.status == RUNNING) & within

    infinite = jnp.asarray(jnp.inf, tree.dtype(w))
    start = _Run(w, infinite, infinite, infinite, jnp.asarray(0), jnp.asarray(0), status)
    return bounded_while(unfinished, body, start, steps)
