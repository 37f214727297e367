"""Iterative differentiation: the gradient of ``U(w_T(lam), lam)`` through T steps of a solver."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bilevel import tree
from bilevel.certificates.estimate import distance_to_hypergradient
from bilevel.lagrangian import Instance
from bilevel.methods.base import Hypergradient, conclude, nothing_done
from bilevel.problems import Problem
from bilevel.solvers.picard import Picard
from bilevel.status import ProblemError, SolveInfo, Status, code

Tree = Any


@tree.record
@dataclass(frozen=True)
class ITD:
    """Reverse-mode iterative differentiation (Grazzi et al. 2020, arXiv 2006.16218, Theorem 2.1).

    ``w_0 = w0, w_i = Phi(w_{i-1}, lam)``; the exact gradient of ``lam -> U(w_T(lam), lam)``.

    Parameters
    ----------
    solver
        The iteration, with its number of steps: ``Picard(steps=T)``, ``GradientDescent(steps=T)``.
    steps
        Short for ``solver=Picard(steps=T)``, the plain map.
    truncate
        Differentiate only the last K steps; None differentiates all.

    Notes
    -----
    Cost: T matvecs forth, K back; memory O(K) iterates. The error is measured against the corrected
    hypergradient at ``w_T``, and ``v`` is the adjoint found on the way (zero with ``error=False``).
    """

    solver: Any = None
    steps: int | None = field(default=None, metadata={"static": True})
    truncate: int | None = field(default=None, metadata={"static": True})

    def check(self, problem: Problem) -> None:
        """Refuse solvers that cannot be unrolled, and missing or inconsistent counts."""
        solver = self._iteration()
        if not hasattr(solver, "advance"):
            raise ProblemError(
                f"ITD differentiates the steps of its solver, but {type(solver).__name__} has none that can be "
                "differentiated: use Picard or GradientDescent, or AID with it."
            )
        if solver.steps is None or solver.rtol is not None:
            raise ProblemError("ITD needs a fixed number of steps and no rtol: give steps= to ITD or to its solver.")
        if self.truncate is not None and not 0 < self.truncate <= solver.steps:
            raise ProblemError(
                f"truncate must lie between 1 and the number of steps, {solver.steps}, but is {self.truncate}."
            )

    def _iteration(self) -> Any:
        if (self.solver is None) == (self.steps is None):
            raise ProblemError("ITD needs exactly one of solver= and steps=.")
        return Picard(steps=self.steps) if self.solver is None else self.solver

    def __call__(
        self,
        problem: Problem,
        lam: Tree,
        w0: Tree,
        v0: Tree | None,
        lower_data: Tree,
        upper_data: Tree,
        key: Array | None = None,
        *,
        error: bool = True,
    ) -> Hypergradient:
        """Compute the hypergradient; see :class:`~bilevel.methods.base.Method`."""
        solver = self._iteration()
        last = solver.steps if self.truncate is None else self.truncate
        lower, estimate = solver.prepare(problem.lower, lam, w0, lower_data)

        def advance(state, lam):
            return solver.advance(lower, lam, state, lower_data)

        start = jax.lax.fori_loop(0, solver.steps - last, lambda _, s: advance(s, lam), solver.init(w0))

        def unrolled(lam):
            state, _ = jax.lax.scan(lambda s, _: (advance(s, lam), None), start, length=last)
            w = solver.params(state)
            upper, direct = jax.value_and_grad(problem.upper, argnums=1)(w, lam, upper_data)
            return upper, (w, direct)

        (value, (w, direct)), grad = jax.value_and_grad(unrolled, has_aux=True)(lam)
        at = Instance(problem, lam, lower_data, upper_data)
        residual_norm = tree.norm(problem.lower.residual(w, lam, lower_data))
        finite = jnp.where(tree.all_finite(w), code(Status.OK), code(Status.DIVERGED))
        steps = jnp.asarray(solver.steps)
        forth = SolveInfo(steps, steps + 1 + estimate, residual_norm, finite)
        nan = jnp.full_like(residual_norm, jnp.nan)  # the adjoint is never formed, so it has no residual
        back = SolveInfo(jnp.asarray(last), jnp.asarray(last), nan, code(Status.OK))
        distance, v, error_info = None, tree.zeros_like(w), nothing_done(w)
        if error:
            distance, v, error_info = distance_to_hypergradient(at, w, grad)
        return conclude(
            problem, f"ITD ({type(solver).__name__})", grad=grad,
            scale=tree.norm(direct) + tree.norm(tree.sub(grad, direct)), value=value, w=w, v=v,
            lower=forth, adjoint=back, error=distance, error_info=error_info,
        )  # fmt: skip
