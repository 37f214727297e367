"""Approximate implicit differentiation: solve the lower level, solve the adjoint system, read off ``d_lam l``."""

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Array

from bilevel import tree
from bilevel.certificates.aposteriori import certify
from bilevel.certificates.estimate import estimate_error
from bilevel.lagrangian import Instance, gradient, refine
from bilevel.linear.cg import CG
from bilevel.linear.gmres import GMRES
from bilevel.linear.operator import LinearSolver
from bilevel.methods.base import Hypergradient, conclude, nothing_done
from bilevel.problems import Lower, Problem
from bilevel.solvers import default_solver
from bilevel.status import ProblemError

Tree = Any


@tree.record
@dataclass(frozen=True)
class AID:
    """Approximate implicit differentiation (Grazzi et al. 2020, arXiv 2006.16218, Algorithm of Theorem 2.2).

    1. ``w`` from the lower-level solver. 2. ``v`` from the linear solver on ``A^T v = d_w U``, ``A = d_w F``.
    3. ``grad = d_lam U - (d_lam F)^T v``.

    Parameters
    ----------
    solver
        Lower-level solver; default :func:`~bilevel.solvers.default_solver`.
    linear_solver
        Solver of the adjoint system; default CG for symmetric problems, GMRES for others. ``Richardson`` makes
        this AID-FP, ``CG`` AID-CG.
    refine
        Newton steps on ``(w, v)`` afterwards, by the same linear solver: each squares the error, up to that of
        its solves.

    Notes
    -----
    Cost: that of the solvers; a refinement adds two linear solves and two matvecs. Memory does not grow with
    the number of steps.
    """

    solver: Any = None
    linear_solver: Any = None
    refine: int = field(default=0, metadata={"static": True})

    def check(self, problem: Problem) -> None:
        """Refuse CG on a problem that is not known to be symmetric, and solvers that sample."""
        check_deterministic("AID", self.solver, self.linear_solver)
        check_symmetry(self.linear_solver, problem.lower)

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
        at = Instance(problem, lam, lower_data, upper_data)
        solver = self.solver or default_solver(problem.lower)
        linear = self.linear_solver or default_linear_solver(problem.lower)
        w, lower = solver(problem.lower, lam, w0, lower_data)
        _, A = at.linearize(w)
        value, d_w_U = at.upper_gradient(w)
        v, adjoint = linear(A.T, d_w_U, v0)
        for _ in range(self.refine):
            w, v, step = refine(at, w, v, linear)
            lower, adjoint = lower.then(step.lower), adjoint.then(step.adjoint)
        if self.refine:
            value = problem.upper(w, lam, upper_data)
        result = gradient(at, w, v)
        name = f"AID ({type(solver).__name__}, {type(linear).__name__}{', refined' if self.refine else ''})"
        estimate, error_info, certificate = None, nothing_done(w), None
        if error:
            spent = lower.matvecs + adjoint.matvecs
            correction, error_info = estimate_error(at, w, v, spent)
            estimate = tree.norm(correction.change)
            certificate = certify(at, tree.add(w, correction.dw), tree.add(v, correction.dv), result.grad, spent)
        return conclude(
            problem, name, grad=result.grad, scale=result.scale, value=value, w=w, v=v,
            lower=lower, adjoint=adjoint, error=estimate, error_info=error_info,
            certificate=certificate,
        )  # fmt: skip


def default_linear_solver(lower: Lower) -> LinearSolver:
    """CG for symmetric problems, GMRES for others."""
    return CG() if lower.symmetric else GMRES()


def check_symmetry(linear_solver: Any, lower: Lower) -> None:
    """Refuse a linear solver that needs a symmetric operator on a problem that does not promise one."""
    if linear_solver is not None and linear_solver.needs_symmetry and not lower.symmetric:
        raise ProblemError(
            f"{type(linear_solver).__name__} needs a symmetric d_w F, but the {lower.kind} problem does not promise "
            "one: use GMRES or Richardson, or pass symmetric=True if it is symmetric."
        )


def check_deterministic(method: str, *solvers: Any) -> None:
    """Refuse solvers that work on samples where there is nothing to sample with."""
    for solver in filter(is_stochastic, solvers):
        raise ProblemError(
            f"{method} needs deterministic solvers, but {type(solver).__name__} samples batches: use bilevel.SID."
        )


def is_stochastic(solver: Any) -> bool:
    """Whether a solver works on samples; the deterministic ones know nothing of them."""
    return getattr(solver, "stochastic", False)
