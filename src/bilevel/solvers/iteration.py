"""Iterations that take one residual a step: what they share as solvers, and what ITD differentiates."""

from dataclasses import replace
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel import tree
from bilevel.loops import bounded_while, full_length_loop
from bilevel.problems import Lower
from bilevel.solvers.base import MAX_STEPS, default_rtol, fallen, map_step, request, scale
from bilevel.status import SolveInfo, Status, code

Tree = Any
T = TypeVar("T", bound=Any)


class Iteration(Protocol):
    """``state <- advance(state, F(params(state), lam))``: a solver whose steps can be differentiated."""

    @property
    def steps(self) -> Any:
        """Number of steps, an int; None where the tolerance alone decides."""
        ...

    @property
    def rtol(self) -> Any:
        """Tolerance; None where the steps alone decide."""
        ...

    @property
    def step(self) -> Any:
        """The ``a`` for which ``a F`` has the units of ``w``: tolerances are measured on it."""
        ...

    def prepare(self, lower: Lower, lam: Tree, w0: Tree, data: Tree) -> tuple[Self, int]:
        """Itself with every parameter a number, and the matvecs that estimating them took.

        Estimated parameters are constants of differentiation.
        """
        ...

    def init(self, w0: Tree) -> Any:
        """Starting state."""
        ...

    def params(self, state: Any) -> Tree:
        """The ``w`` of a state."""
        ...

    def advance(self, state: Any, F: Tree) -> Any:
        """One step, given the residual at the present ``w``."""
        ...


class _Run(NamedTuple):
    state: Any
    F: Tree
    size: Float[Array, ""]  # norm(a F)
    step: Int[Array, ""]


def solve_by_iteration(
    self: Iteration, lower: Lower, lam: Tree, w0: Tree, data: Tree, *, rtol: Any = None, steps: Any = None
) -> tuple[Tree, SolveInfo]:
    """Solve the lower level by an :class:`Iteration`; its ``__call__``, see :class:`~bilevel.solvers.base.Solver`.

    Stops at ``norm(a F(w)) <= rtol * max(norm(w), norm(w0))`` with the ``step`` a of the iteration.
    Cost: one matvec a step and one for the residual of the value returned, besides those of ``prepare``.
    """
    iteration, estimate = self.prepare(lower, lam, w0, data)
    budget, rtol, steps = request(self, rtol, steps, default=default_rtol(w0), most=MAX_STEPS)
    unit, more = iteration.step, 0
    if unit is None:
        unit, more = (1.0, 0) if budget else map_step(lower, lam, w0, data)

    def at(state: Any, step: Any) -> _Run:
        F = lower.residual(iteration.params(state), lam, data)
        return _Run(state, F, unit * tree.norm(F), step)

    def reached(run: _Run) -> Bool[Array, ""]:
        """Whether the residual is small, relative to ``w`` and not only because ``w`` drifts away."""
        small = run.size <= rtol * scale(iteration.params(run.state), w0)
        return small & fallen(run.size, start.size, run.step)

    def unfinished(run: _Run) -> Bool[Array, ""]:
        finite = jnp.isfinite(run.size)
        return finite if budget else finite & ~reached(run)

    def body(run: _Run) -> _Run:
        return at(iteration.advance(run.state, run.F), run.step + 1)

    start = at(iteration.init(w0), jnp.asarray(0))
    loop = full_length_loop if budget else bounded_while
    run = loop(unfinished, body, start, steps)
    status = jnp.where(budget | reached(run), code(Status.OK), code(Status.MAX_STEPS))
    diverged = ~(run.size <= start.size / tree.eps(w0) ** 0.5)  # also where it is not finite
    status = jnp.where(diverged, code(Status.DIVERGED), status)
    status = jnp.where(jnp.isfinite(start.size), status, code(Status.NONFINITE))
    return iteration.params(run.state), SolveInfo(run.step, run.step + 1 + estimate + more, tree.norm(run.F), status)


def with_map_step(iteration: T, lower: Lower, lam: Tree, w0: Tree, data: Tree) -> tuple[T, int]:
    """The iteration with the step of the map of the problem, where it has none, and the matvecs of estimating it."""
    if iteration.step is not None:
        return iteration, 0
    step, matvecs = map_step(lower, lam, w0, data)
    return replace(iteration, step=step), matvecs
