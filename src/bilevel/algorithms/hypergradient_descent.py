"""Projected descent along hypergradients, by any optax transformation."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import optax

from bilevel import tree
from bilevel.algorithms.step_info import StepInfo, told
from bilevel.hypergradient import hypergradient
from bilevel.methods.base import Hypergradient
from bilevel.problems import Problem
from bilevel.status import is_failure

Tree = Any


class DescentState(NamedTuple):
    """What is carried: hyperparameters, warm starts of solution and adjoint, the optimizer's state."""

    lam: Tree
    w: Tree
    v: Tree
    optimizer: Any


@tree.record
@dataclass(frozen=True)
class HypergradientDescent:
    """``lam <- P(lam + update(hypergradient))`` with warm starts of ``w`` and ``v``.

    Parameters
    ----------
    optimizer
        An optax transformation.
    method
        Hypergradient method; None: the automatic one, to the relative accuracy ``tol``.
    projection
        ``lam -> lam``, onto the feasible set; for instance ``optax.projections.projection_non_negative``.
    tol
        Relative accuracy of each hypergradient; a given ``method`` is held to it only where it is given.
        Default for the automatic method 1e-2, which a descent direction does not notice.

    warm_start
        Whether the solvers start from the last ``w`` and ``v``; else from ``w0`` and zero at every step.

    Notes
    -----
    The projected gradient is ``lam - P(lam - grad)``: the gradient itself without a projection, and zero exactly
    at stationary points of the constrained problem.
    """

    optimizer: optax.GradientTransformation = field(metadata={"static": True})
    method: Any = None
    projection: Callable[[Tree], Tree] | None = field(default=None, metadata={"static": True})
    tol: Any = None
    warm_start: bool = field(default=True, metadata={"static": True})

    def init(self, lam0: Tree, w0: Tree) -> DescentState:
        """State at ``lam0``; the adjoint starts from zero."""
        lam0, w0 = tree.strong((lam0, w0))
        return DescentState(lam0, w0, tree.zeros_like(w0), self.optimizer.init(lam0))

    def update(
        self, state: DescentState, problem: Problem, lower_data: Tree, upper_data: Tree, *, error: bool = True
    ) -> tuple[DescentState, StepInfo]:
        """One step. After a failed hypergradient the state is the old one."""
        tol = 1e-2 if self.method is None and self.tol is None else self.tol
        h = hypergradient(
            problem, state.lam, state.w, v0=state.v, lower_data=lower_data, upper_data=upper_data,
            method=self.method, tol=tol if error or self.method is None else None, error=error, on_failure="keep",
        )  # fmt: skip
        return _move(self, state, h)


@jax.jit
def _move(algorithm: HypergradientDescent, state: DescentState, h: Hypergradient) -> tuple[DescentState, StepInfo]:
    """The step and the projected gradient; a failed hypergradient moves nothing."""
    updates, optimizer = algorithm.optimizer.update(h.grad, state.optimizer, state.lam)
    project = algorithm.projection or (lambda lam: lam)
    lam = project(optax.apply_updates(state.lam, updates))
    starts = (h.w, h.v) if algorithm.warm_start else (state.w, state.v)
    moved = tree.where(is_failure(h.status), state, DescentState(lam, *starts, optimizer))
    projected_gradient = tree.sub(state.lam, project(tree.sub(state.lam, h.grad)))
    return moved, told(state.lam, h, tree.norm(h.grad if algorithm.projection is None else projected_gradient))
