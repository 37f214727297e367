"""Solvers of optimistix for the lower level, judged by a residual computed here. Needs the extra ``optimistix``."""

from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import optimistix as optx

from bilevel import tree
from bilevel.problems import Lower
from bilevel.solvers.base import MAX_STEPS, default_rtol, map_step, request, require_minimization, scale
from bilevel.status import ProblemError, SolveInfo, Status, code

Tree = Any


@tree.record
@dataclass(frozen=True)
class Optimistix:
    """A minimiser, root finder, least-squares or fixed-point solver of optimistix.

    Parameters
    ----------
    solver
        For instance ``optx.BFGS(rtol=1e-8, atol=1e-8)``; it stops by its own tolerances. Minimisers need a
        minimization; the others are given ``F(w) = 0`` or its map.
    steps
        At most so many steps; default 10000. An integer, not traced.
    rtol
        The solve counts as solved at ``norm(a F(w)) <= rtol * max(norm(w), norm(w0))`` with the step a of the map,
        whatever the solver says. Default: ten times the ``rtol`` of the solver, which measures the last difference
        instead; with ``steps`` alone, any residual.

    Notes
    -----
    Cost: optimistix does not tell its products. Counted, from above, are one matvec for the start and for each
    step, n more each for root finders and least-squares solvers, which materialize ``A`` by default, two for the
    residual at start and end, 17 where the step is estimated. Statuses: ``MAX_STEPS``, ``NONFINITE``.
    """

    solver: Any = field(metadata={"static": True})
    steps: int | None = field(default=None, metadata={"static": True})
    rtol: Any = None

    def __call__(
        self, lower: Lower, lam: Tree, w0: Tree, data: Tree, *, rtol: Any = None, steps: Any = None
    ) -> tuple[Tree, SolveInfo]:
        """Solve the lower level; see :class:`~bilevel.solvers.base.Solver`."""
        content = 10 * getattr(self.solver, "rtol", default_rtol(w0))
        budget, rtol, steps = request(self, rtol, steps, default=content, most=MAX_STEPS)
        step, estimate = map_step(lower, lam, w0, data)
        solution, products = self._run(lower, lam, w0, data, step, steps)
        w = solution.value
        norm_F = tree.norm(lower.residual(w, lam, data))
        taken = jnp.asarray(solution.stats["num_steps"])
        reached = budget | (step * norm_F <= rtol * scale(w, w0))
        status = jnp.where(reached, code(Status.OK), code(Status.MAX_STEPS))
        status = jnp.where(tree.all_finite((w, norm_F)), status, code(Status.NONFINITE))
        return w, SolveInfo(taken, products * (taken + 1) + 2 + estimate, norm_F, status)

    def _run(self, lower: Lower, lam: Tree, w0: Tree, data: Tree, step: Any, steps: int) -> tuple[Any, int]:
        """The solution by optimistix, and the matvecs of one of its steps."""

        def residual(w, _):
            return lower.residual(w, lam, data)

        kwargs = {"max_steps": steps, "throw": False}
        if isinstance(self.solver, optx.AbstractMinimiser):
            require_minimization(f"optimistix.{type(self.solver).__name__}", lower, "a root finder")
            return optx.minimise(lambda w, _: lower.loss(w, lam, data), self.solver, w0, **kwargs), 1
        if isinstance(self.solver, optx.AbstractFixedPointSolver):
            return optx.fixed_point(lambda w, _: tree.axpy(-step, residual(w, _), w), self.solver, w0, **kwargs), 1
        if isinstance(self.solver, optx.AbstractRootFinder | optx.AbstractLeastSquaresSolver):
            return optx.root_find(residual, self.solver, w0, **kwargs), 1 + tree.size(w0)
        raise ProblemError(f"Optimistix needs a solver of optimistix, but got {type(self.solver).__name__}.")
