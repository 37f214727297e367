"""Approximate implicit differentiation: solve the lower level, solve the adjoint system, read off ``d_lam l``."""

from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from bilevel import tree
from bilevel.certificates.aposteriori import certify
from bilevel.certificates.estimate import estimate_error
from bilevel.lagrangian import Instance, gradient, refine
from bilevel.linear.cg import CG
from bilevel.linear.dense import Dense
from bilevel.linear.gmres import GMRES
from bilevel.linear.normal_cg import NormalCG
from bilevel.linear.operator import LinearSolver, damped
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
    damping
        ``delta``, at least 0, in the units of A: the adjoint becomes ``(A^T + delta I) v = d_w U``, and the result

            grad = d_lam U - (d_lam F)^T (A^T + delta I)^{-1} d_w U,

        for an A that is indefinite or nearly singular, as that of a network, where ``A + delta I`` is neither. It is
        the hypergradient of the lower level ``F(w, lam) + delta (w - w_0) = 0`` with ``w_0`` held at the solution; its
        distance from the true one is of order delta. ``h.damping`` and the status ``DAMPED`` tell of it.

    Notes
    -----
    Cost: that of the solvers; a refinement adds two linear solves and two matvecs. Memory does not grow with
    the number of steps.

    With a damping ``h.error`` is the distance to the damped hypergradient where ``F(w, lam) = 0``. That equation is not
    damped, so that in refinements and in the error estimate linear solves for ``w`` may meet an indefinite A: they are
    done by GMRES, up to 41 vectors in memory, in place of CG and Richardson. Where that of the estimate fails, the
    status is ``UNRESOLVED`` and the error infinite. There is no ``h.bound``. ``NEGATIVE_CURVATURE`` says that
    ``A + delta I`` is not positive definite: take a larger delta.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bilevel as bl
    >>> lower = bl.root(lambda w, lam, data: data * w - lam, symmetric=True)  # w = lam / data, and A is indefinite
    >>> problem = bl.Problem(lower, lambda w, lam, data: jnp.sum(w))
    >>> method = bl.AID(bl.NewtonKrylov(), bl.CG(), damping=0.5)
    >>> h = bl.hypergradient(problem, 1.0, jnp.zeros(2), lower_data=jnp.array([1.0, -0.1]), method=method)
    >>> print(f"{h.grad:.3f}, {bl.Status(int(h.status)).name}")  # 1 / 1.5 + 1 / 0.4
    3.167, DAMPED
    """

    solver: Any = None
    linear_solver: Any = None
    refine: int = field(default=0, metadata={"static": True})
    damping: Any = None

    def check(self, problem: Problem) -> None:
        """Refuse CG on a problem that is not known to be symmetric, solvers that sample, and a negative damping."""
        check_deterministic("AID", self.solver, self.linear_solver)
        check_symmetry(self.linear_solver, problem.lower)
        check_damping(self.damping)

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
        damping = self._damping(w)
        _, A = at.linearize(w)
        value, d_w_U = at.upper_gradient(w)
        v, adjoint = linear(damped(A.T, damping), d_w_U, v0)
        for _ in range(self.refine):
            for_w = linear if damping is None else for_indefinite(linear)
            w, v, step = refine(at, w, v, for_w, linear, damping)
            lower, adjoint = lower.then(step.lower), adjoint.then(step.adjoint)
        if self.refine:
            value = problem.upper(w, lam, upper_data)
        result = gradient(at, w, v)
        estimate, error_info, certificate = None, nothing_done(w), None
        if error:
            spent = lower.matvecs + adjoint.matvecs
            correction, error_info = estimate_error(at, w, v, spent, damping)
            estimate = tree.norm(correction.change)
            if damping is None:
                certificate = certify(at, tree.add(w, correction.dw), tree.add(v, correction.dv), result.grad, spent)
        return conclude(
            problem, self._name(solver, linear), grad=result.grad, scale=result.scale, value=value, w=w, v=v,
            lower=lower, adjoint=adjoint, error=estimate, error_info=error_info,
            certificate=certificate, damping=damping,
        )  # fmt: skip

    def _damping(self, w: Tree) -> Float[Array, ""] | None:
        """The damping in the dtype of w; NaN, which no solve overlooks, for a negative one that is not refused."""
        if self.damping is None:
            return None
        damping = jnp.asarray(self.damping, tree.dtype(w))
        return jnp.where(damping >= 0, damping, jnp.nan)

    def _name(self, solver: Any, linear: Any) -> str:
        adjectives = ", refined" * bool(self.refine) + ", damped" * (self.damping is not None)
        return f"AID ({type(solver).__name__}, {type(linear).__name__}{adjectives})"


def default_linear_solver(lower: Lower) -> LinearSolver:
    """CG for symmetric problems, GMRES for others."""
    return CG() if lower.symmetric else GMRES()


def for_indefinite(linear: Any) -> LinearSolver:
    """Itself where all that a linear solver needs is a regular matrix, else GMRES with the same limits."""
    if isinstance(linear, Dense | GMRES | NormalCG):
        return linear
    return GMRES(steps=getattr(linear, "steps", None), rtol=getattr(linear, "rtol", None))


def check_damping(damping: Any) -> None:
    """Refuse a damping that is no number of at least 0, where its value is known."""
    if damping is None:
        return
    if jnp.shape(damping) != ():
        raise ProblemError(f"damping must be one number, but has the shape {jnp.shape(damping)}.")
    if not isinstance(damping, Tracer) and not 0 <= float(damping) < float("inf"):
        raise ProblemError(f"damping must be finite and at least 0, but is {float(damping)}.")


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
