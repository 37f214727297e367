"""Solvers whose number of steps is data, so that a curve over the steps is one compiled program."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import jax.numpy as jnp
from jaxtyping import Array, Int

from bilevel import tree
from bilevel.methods.aid import AID
from bilevel.methods.itd import ITD
from bilevel.problems import Lower
from bilevel.solvers.iteration import Iteration
from bilevel.status import SolveInfo

Tree = Any


def aid(solver: Any, linear_solver: Any, t: Any, k: Any) -> AID:
    """``AID`` with exactly t steps of the solver and k of the linear solver; one program for all t and k."""
    return AID(Counted(solver, t), Counted(linear_solver, k))


def itd(solver: Any, t: Any, most: int) -> ITD:
    """``ITD`` through exactly ``t <= most`` steps of the solver; one program for all t, whose time is that of ``most``.

    Its counts of steps and matvecs are those of ``most`` steps, too.
    """
    return ITD(Stopped(solver, t, most))


@tree.record
@dataclass(frozen=True)
class Counted:
    """A lower-level or linear solver that takes exactly ``steps`` steps, where ``steps`` is data.

    Parameters
    ----------
    solver
        Any of :mod:`bilevel.solvers` or :mod:`bilevel.linear`.
    steps
        Steps, a number.
    """

    solver: Any
    steps: Any

    @property
    def needs_symmetry(self) -> bool:
        """Of a linear solver."""
        return self.solver.needs_symmetry

    def __call__(self, *arguments: Any, **options: Any) -> tuple[Tree, SolveInfo]:
        """Solve; see :class:`~bilevel.solvers.base.Solver` and :class:`~bilevel.linear.operator.LinearSolver`."""
        return self.solver(*arguments, **{**options, "steps": self.steps})


class _Count(NamedTuple):
    state: Any
    step: Int[Array, ""]


@tree.record
@dataclass(frozen=True)
class Stopped:
    """An :class:`~bilevel.solvers.iteration.Iteration` that stands still from step ``active`` on.

    Its derivative is exactly that of ``active`` steps.

    Parameters
    ----------
    solver
        The iteration.
    active
        Steps that change anything, a number.
    steps
        Steps in all, at least ``active``.
    """

    solver: Iteration
    active: Any
    steps: int = field(metadata={"static": True})

    @property
    def rtol(self) -> None:
        """None: the steps alone decide."""
        return

    @property
    def step(self) -> Any:
        """That of the solver."""
        return self.solver.step

    def prepare(self, lower: Lower, lam: Tree, w0: Tree, data: Tree) -> tuple[Self, int]:
        """Make the parameters of the solver numbers."""
        solver, matvecs = self.solver.prepare(lower, lam, w0, data)
        return replace(self, solver=solver), matvecs

    def init(self, w0: Tree) -> _Count:
        """Start of the solver."""
        return _Count(self.solver.init(w0), jnp.asarray(0))

    def params(self, state: _Count) -> Tree:
        """The ``w`` of the solver."""
        return self.solver.params(state.state)

    def advance(self, state: _Count, F: Tree) -> _Count:
        """One step of the solver, or none."""
        moved = self.solver.advance(state.state, F)
        return _Count(tree.where(state.step < self.active, moved, state.state), state.step + 1)
