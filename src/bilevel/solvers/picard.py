"""Iteration of the lower-level map: Picard's iteration, and gradient descent as its instance."""

from dataclasses import dataclass, field
from typing import Any, Self

from bilevel import tree
from bilevel.problems import Lower
from bilevel.solvers.base import require_minimization
from bilevel.solvers.iteration import solve_by_iteration, with_map_step

Tree = Any


@tree.record
@dataclass(frozen=True)
class Picard:
    """``w <- w - step * F(w, lam)``; with a step of one ``w <- Phi(w, lam)`` of a fixed-point problem.

    Linearly convergent when that map is a contraction.

    Parameters
    ----------
    steps
        Iterations. Without ``rtol`` exactly so many run; with it, at most (default 10000).
    rtol
        Stop at ``norm(step * F(w)) <= rtol * max(norm(w), norm(w0))``. Default, where ``steps`` is not given
        either: the square root of machine epsilon.
    step
        Default: one for fixed points and roots; for a minimization that of the problem, else one over the
        largest eigenvalue of the Hessian at ``w0``.

    Notes
    -----
    Cost: one matvec a step, one for the residual of the value returned, 17 where the step is estimated.
    Statuses: ``MAX_STEPS``, ``DIVERGED``, ``NONFINITE``. A tolerance ends the steps at the first residual that is not
    finite; exactly ``steps`` steps are a plain loop, judged where it ends.
    """

    steps: int | None = field(default=None, metadata={"static": True})
    rtol: Any = None
    step: Any = None

    __call__ = solve_by_iteration

    def prepare(self, lower: Lower, lam: Tree, w0: Tree, data: Tree) -> tuple[Self, int]:
        """Make the step a number."""
        return with_map_step(self, lower, lam, w0, data)

    def init(self, w0: Tree) -> Tree:
        """The state is ``w``."""
        return w0

    def params(self, state: Tree) -> Tree:
        """The state is ``w``."""
        return state

    def advance(self, state: Tree, F: Tree) -> Tree:
        """``w - step * F``."""
        return tree.axpy(-self.step, F, state)


@tree.record
@dataclass(frozen=True)
class GradientDescent:
    """``w <- w - step * d_w loss(w, lam)``: :class:`Picard` on a minimization.

    Parameters
    ----------
    steps, rtol, step
        As in :class:`Picard`.

    Notes
    -----
    Cost and statuses as in :class:`Picard`.
    """

    steps: int | None = field(default=None, metadata={"static": True})
    rtol: Any = None
    step: Any = None

    __call__ = solve_by_iteration
    init, params, advance = Picard.init, Picard.params, Picard.advance

    def prepare(self, lower: Lower, lam: Tree, w0: Tree, data: Tree) -> tuple[Self, int]:
        """Make the step a number."""
        require_minimization("GradientDescent", lower, "Picard")
        return with_map_step(self, lower, lam, w0, data)
