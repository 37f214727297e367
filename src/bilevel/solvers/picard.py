"""Iteration of the lower-level map: Picard's iteration, and gradient descent as its instance."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel import tree
from bilevel.loops import bounded_while
from bilevel.problems import Lower
from bilevel.solvers.base import MAX_STEPS, default_rtol, fallen, scale, with_step
from bilevel.status import ProblemError, SolveInfo, Status, code

Tree = Any


@tree.record
@dataclass(frozen=True)
class Picard:
    """``w <- Phi(w, lam)``, linearly convergent when the map is a contraction.

    For a minimization the map is the gradient step of the problem, for a root ``w - F(w, lam)``.

    Parameters
    ----------
    steps
        Iterations. Without ``rtol`` exactly so many run; with it, at most (default 10000).
    rtol
        Stop at ``norm(Phi(w) - w) <= rtol * max(norm(w), norm(w0))``. Default, where ``steps`` is not given
        either: the square root of machine epsilon.

    Notes
    -----
    Cost: one matvec a step and one for the residual of the value returned. Statuses: ``MAX_STEPS``,
    ``DIVERGED``, ``NONFINITE``; with a tolerance the last finite iterate is returned.
    """

    steps: int | None = field(default=None, metadata={"static": True})
    rtol: Any = None

    def prepare(self, lower: Lower, lam: Tree, w0: Tree, data: Tree) -> tuple[Lower, int]:
        """Give the gradient map of a minimization its step."""
        return with_step(lower, lam, w0, data, None)

    def init(self, w0: Tree) -> Tree:
        """Starting state: ``w0``."""
        return w0

    def advance(self, lower: Lower, lam: Tree, state: Tree, data: Tree) -> Tree:
        """``Phi(w, lam)``."""
        return lower.map(state, lam, data)

    def params(self, state: Tree) -> Tree:
        """The state is ``w``."""
        return state

    def __call__(
        self, lower: Lower, lam: Tree, w0: Tree, data: Tree, *, rtol: Any = None, steps: int | None = None
    ) -> tuple[Tree, SolveInfo]:
        """Solve the lower level; see :class:`~bilevel.solvers.base.Solver`."""
        lower, estimate = self.prepare(lower, lam, w0, data)
        rtol = self.rtol if rtol is None else rtol
        steps = self.steps if steps is None else steps
        if rtol is None and steps is None:
            rtol = default_rtol(w0)
        run, first = _iterate(lower, lam, w0, data, rtol, MAX_STEPS if steps is None else steps)
        reached = True if rtol is None else _reached(run, first, rtol, w0)
        status = jnp.where(reached, code(Status.OK), code(Status.MAX_STEPS))
        diverged = ~(run.residual_norm <= first / tree.eps(w0) ** 0.5)  # also where it is not finite
        status = jnp.where(diverged, code(Status.DIVERGED), status)
        status = jnp.where(jnp.isfinite(first), status, code(Status.NONFINITE))
        residual_norm = run.residual_norm / lower.map_step
        return run.w, SolveInfo(run.step, run.step + 1 + estimate, residual_norm, status)


@tree.record
@dataclass(frozen=True)
class GradientDescent:
    """``w <- w - step * d_w loss(w, lam)``.

    Parameters
    ----------
    steps, rtol
        As in :class:`Picard`; the residual is measured on the gradient map, ``step * norm(d_w loss)``.
    step
        Default: that of the problem, else one over the largest eigenvalue of the Hessian at ``w0``.

    Notes
    -----
    Cost: one matvec a step, one for the last residual, 17 where the step is estimated. Statuses as in
    :class:`Picard`.
    """

    steps: int | None = field(default=None, metadata={"static": True})
    rtol: Any = None
    step: Any = None

    def prepare(self, lower: Lower, lam: Tree, w0: Tree, data: Tree) -> tuple[Lower, int]:
        """Give the gradient map its step."""
        if lower.kind != "minimization":
            raise ProblemError(f"GradientDescent needs a minimization, but the problem is a {lower.kind}: use Picard.")
        return with_step(lower, lam, w0, data, self.step)

    init, advance, params = Picard.init, Picard.advance, Picard.params

    def __call__(
        self, lower: Lower, lam: Tree, w0: Tree, data: Tree, *, rtol: Any = None, steps: int | None = None
    ) -> tuple[Tree, SolveInfo]:
        """Solve the lower level; see :class:`~bilevel.solvers.base.Solver`."""
        lower, estimate = self.prepare(lower, lam, w0, data)
        w, info = Picard(self.steps, self.rtol)(lower, lam, w0, data, rtol=rtol, steps=steps)
        return w, info.plus(estimate)


class _Run(NamedTuple):
    w: Tree
    mapped: Tree  # Phi(w)
    residual_norm: Float[Array, ""]  # norm(Phi(w) - w)
    step: Int[Array, ""]


def _iterate(lower: Lower, lam: Tree, w0: Tree, data: Tree, rtol: Any, steps: Any) -> tuple[_Run, Float[Array, ""]]:
    """Iterate the map until its residual is small (``rtol`` None: never), also the residual at the start."""

    def at(w: Tree, step) -> _Run:
        mapped = lower.map(w, lam, data)
        return _Run(w, mapped, tree.norm(tree.sub(mapped, w)), step)

    def unfinished(run: _Run):
        finite = jnp.isfinite(run.residual_norm)
        return finite if rtol is None else finite & ~_reached(run, start.residual_norm, rtol, w0)

    start = at(w0, jnp.asarray(0))
    run = bounded_while(unfinished, lambda run: at(run.mapped, run.step + 1), start, steps)
    return run, start.residual_norm


def _reached(run: _Run, first: Float[Array, ""], rtol: Any, w0: Tree) -> Bool[Array, ""]:
    """Whether the residual is small, relative to ``w`` and not only because ``w`` drifts away."""
    return fallen(run.residual_norm, first, run.step) & (run.residual_norm <= rtol * scale(run.w, w0))
