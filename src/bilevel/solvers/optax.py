"""Any optimizer of optax as a lower-level solver."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import optax

from bilevel import tree
from bilevel.problems import Lower
from bilevel.solvers.iteration import solve_by_iteration

Tree = Any


class _State(NamedTuple):
    w: Tree
    optimizer: Any


@tree.record
@dataclass(frozen=True)
class Optax:
    """``w <- w + update(F(w, lam))`` with the updates of a gradient transformation of optax.

    For a minimization F is the gradient; for fixed points and roots the residual takes its place.

    Parameters
    ----------
    optimizer
        For instance ``optax.adam(1e-2)``. One that needs values of the loss, as L-BFGS with its line search, is
        refused by optax: use :class:`~bilevel.solvers.lbfgs.LBFGS`. Make it once and keep it: every new one
        compiles anew.
    steps, rtol
        As in :class:`~bilevel.solvers.picard.Picard`, the residual measured with its ``step``. An optimizer
        whose learning rate does not fall to zero ends with a noise that may lie above the tolerance.

    Notes
    -----
    Cost: one matvec a step, one for the residual of the value returned, and, with a tolerance on a minimization
    without a step, 17 for its unit. Statuses: ``MAX_STEPS``, ``DIVERGED``, ``NONFINITE``.
    """

    optimizer: optax.GradientTransformation = field(metadata={"static": True})
    steps: int | None = field(default=None, metadata={"static": True})
    rtol: Any = None

    __call__ = solve_by_iteration
    step = None  # an optimizer has no step that could measure a residual

    def prepare(self, lower: Lower, lam: Tree, w0: Tree, data: Tree) -> tuple[Self, int]:
        """Nothing is estimated."""
        return self, 0

    def init(self, w0: Tree) -> _State:
        """``w0`` and the state of the optimizer there."""
        return _State(w0, self.optimizer.init(w0))

    def params(self, state: _State) -> Tree:
        """``w``."""
        return state.w

    def advance(self, state: _State, F: Tree) -> _State:
        """One update."""
        updates, optimizer = self.optimizer.update(F, state.optimizer, state.w)
        return _State(tree.strong(optax.apply_updates(state.w, updates)), optimizer)
