"""Iterations that take one residual a step: what they share as solvers, and what ITD differentiates."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel import tree
from bilevel.loops import bounded_while, repeat
from bilevel.problems import Lower
from bilevel.solvers.base import MAX_STEPS, default_rtol, fallen, map_step, request, scale
from bilevel.status import SolveInfo, Status, code

Tree = Any
T = TypeVar("T", bound=Any)
Residual = Callable[[Any], Tree]  # F at the w of a state


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


def solve_by_iteration(
    self: Iteration, lower: Lower, lam: Tree, w0: Tree, data: Tree, *, rtol: Any = None, steps: Any = None
) -> tuple[Tree, SolveInfo]:
    """Solve the lower level by an :class:`Iteration`; its ``__call__``, see :class:`~bilevel.solvers.base.Solver`.

    Cost: one matvec a step and one for the residual of the value returned, besides those of ``prepare``.
    """
    iteration, estimate = self.prepare(lower, lam, w0, data)
    budget, rtol, steps = request(self, rtol, steps, default=default_rtol(w0), most=MAX_STEPS)
    start = iteration.init(w0)

    def residual(state: Any) -> Tree:
        return lower.residual(iteration.params(state), lam, data)

    if budget:
        w, info = _run_budget(iteration, residual, start, steps)
        return w, info.plus(estimate)
    unit, more = (iteration.step, 0) if iteration.step is not None else map_step(lower, lam, w0, data)
    w, info = _run_to_tolerance(iteration, residual, start, unit, rtol, steps)
    return w, info.plus(estimate + more)


def _run_budget(iteration: Iteration, residual: Residual, start: Any, steps: Any) -> tuple[Tree, SolveInfo]:
    """``steps`` steps, whatever happens: a plain loop of ``advance`` and nothing else, judged at its end.

    A norm, a residual or a choice between two states inside the loop would cost up to as much as the step itself,
    under ``vmap`` above all. The first step is taken before the loop, since its residual says where the run began.
    """
    F_start = residual(start)

    def run() -> tuple[Any, Tree]:
        first = iteration.advance(start, F_start)
        state = repeat(lambda state: iteration.advance(state, residual(state)), first, steps - 1)
        return state, residual(state)

    state, F = jax.lax.cond(steps > 0, run, lambda: (start, F_start))
    w = iteration.params(state)
    # Largest entries take one pass; that of the last residual is part of its norm.
    begin, end = tree.largest(F_start), tree.largest(F)
    healthy = jnp.isfinite(tree.largest(w)) & ~_diverged(end, begin, w)
    status = jnp.where(healthy, code(Status.OK), code(Status.DIVERGED))
    status = jnp.where(jnp.isfinite(begin), status, code(Status.NONFINITE))
    return w, SolveInfo(jnp.asarray(steps), jnp.asarray(steps) + 1, tree.norm(F), status)


class _Run(NamedTuple):
    state: Any
    F: Tree
    size: Float[Array, ""]  # norm(a F)
    step: Int[Array, ""]


def _run_to_tolerance(
    iteration: Iteration, residual: Residual, start_state: Any, unit: Any, rtol: Any, steps: Any
) -> tuple[Tree, SolveInfo]:
    """At most ``steps`` steps, until ``norm(a F(w)) <= rtol * max(norm(w), norm(w0))`` with the ``unit`` a."""
    w0 = iteration.params(start_state)

    def at(state: Any, step: Any) -> _Run:
        F = residual(state)
        return _Run(state, F, unit * tree.norm(F), step)

    def reached(run: _Run) -> Bool[Array, ""]:
        """Whether the residual is small, relative to ``w`` and not only because ``w`` drifts away."""
        small = run.size <= rtol * scale(iteration.params(run.state), w0)
        return small & fallen(run.size, start.size, run.step)

    def body(run: _Run) -> _Run:
        return at(iteration.advance(run.state, run.F), run.step + 1)

    start = at(start_state, jnp.asarray(0))
    run = bounded_while(lambda run: jnp.isfinite(run.size) & ~reached(run), body, start, steps)
    status = jnp.where(reached(run), code(Status.OK), code(Status.MAX_STEPS))
    status = jnp.where(_diverged(run.size, start.size, w0), code(Status.DIVERGED), status)
    status = jnp.where(jnp.isfinite(start.size), status, code(Status.NONFINITE))
    return iteration.params(run.state), SolveInfo(run.step, run.step + 1, tree.norm(run.F), status)


def _diverged(size: Any, size_start: Any, w: Tree) -> Bool[Array, ""]:
    """Whether a residual is not finite, or has grown over that of the start beyond ``1 / sqrt(eps)``."""
    return ~(size <= size_start / tree.eps(w) ** 0.5)


def with_map_step(iteration: T, lower: Lower, lam: Tree, w0: Tree, data: Tree) -> tuple[T, int]:
    """The iteration with the step of the map of the problem, where it has none, and the matvecs of estimating it."""
    if iteration.step is not None:
        return iteration, 0
    step, matvecs = map_step(lower, lam, w0, data)
    return replace(iteration, step=step), matvecs
