"""Adapter to the solvers of lineax (Rader, Lyons and Kidger 2023), judged by a residual computed here.

The one module that needs the extra ``lineax``; nothing else of the library imports it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Int

from bilevel import tree
from bilevel.linear.dense import is_definite
from bilevel.linear.operator import LinearOperator, Request, request, start
from bilevel.status import ProblemError, SolveInfo, Status, code

Tree = Any

ITERATIVE = (lx.CG, lx.BiCGStab, lx.GMRES, lx.LSMR)
DEFINITE = (lx.CG, lx.Cholesky)  # these ask lineax for the promise of a definite matrix


@tree.record
@dataclass(frozen=True)
class Lineax:
    """A solver of lineax as a linear solver of this library: ``Lineax(lx.GMRES(rtol=1e-6, atol=0.0))``.

    lineax stops by its own rules, those of the solver object; what it reports is not believed: the solve succeeds
    where ``norm(b - A x) <= rtol * norm(b)`` for the x returned, computed here, and fails where not.

    Parameters
    ----------
    solver
        ``lx.CG``, ``lx.BiCGStab``, ``lx.GMRES``, ``lx.LSMR`` or ``lx.Normal`` of one of them: by products. Any
        other: by the dense matrix.
    rtol
        The tolerance that is judged by. Default: the square root of machine epsilon.
    preconditioner
        A :class:`~bilevel.linear.operator.Preconditioner`; LSMR and the dense solvers do without.

    Notes
    -----
    Cost: lineax tells no products, so they follow from the steps it tells, S, and one more checks the residual:
    ``CG`` 1 + S and one every ``stabilise_every`` steps, ``BiCGStab`` 1 + 2 S, ``Normal`` 1 and twice those of its
    inner solver, all exact; ``LSMR`` 2 + 2 S, exact unless it breaks down in a step; ``GMRES``
    ``S + (S - 1) min(restart, n)``, an upper bound: S is the number of cycles and a dummy one, and a cycle may break
    off early. Dense solvers: n as one block. ``steps`` of the info is S, 1 for dense solvers.

    Statuses: ``NEGATIVE_CURVATURE`` where ``A`` must be positive definite and is seen not to be (dense: always;
    by products: where ``x^T A x < 0``), ``MAX_STEPS`` where lineax ended above the tolerance, by its steps or by its
    own looser rule, ``STAGNATED`` where it stagnated or broke down, ``SINGULAR`` (dense, zero pivot), ``NONFINITE``.

    Raises
    ------
    ProblemError
        ``steps=`` is given in the call: lineax bounds them in the solver object, by ``max_steps``.
    """

    solver: Any = field(metadata={"static": True})
    rtol: Any = None
    preconditioner: Any = None

    steps = None  # no budget but that of the solver object

    @property
    def needs_symmetry(self) -> bool:
        """Whether the solver is wrong on a nonsymmetric operator."""
        return isinstance(self.solver, DEFINITE)

    def __call__(
        self,
        A: LinearOperator,
        b: Tree,
        x0: Tree | None = None,
        *,
        preconditioner: Callable[[Tree], Tree] | None = None,
        rtol: Any = None,
        steps: Any = None,
    ) -> tuple[Tree, SolveInfo]:
        """Solve ``A x = b``; see :class:`~bilevel.linear.operator.LinearSolver`."""
        if steps is not None:
            raise ProblemError(
                "Lineax takes no steps=: give the limit to the solver of lineax, as in lx.GMRES(..., max_steps=100)."
            )
        ask = request(self, A, b, preconditioner=preconditioner, rtol=rtol, steps=None, most=0)
        if isinstance(getattr(self.solver, "inner_solver", self.solver), ITERATIVE):
            return self._by_products(A, b, x0, ask)
        return self._dense(A, b, ask)

    def _tags(self, A: LinearOperator) -> tuple[object, ...]:
        definite = A.definite or (A.symmetric and self.needs_symmetry)
        return (lx.symmetric_tag,) * A.symmetric + (lx.positive_semidefinite_tag,) * definite

    def _by_products(self, A: LinearOperator, b: Tree, x0: Tree | None, ask: Request) -> tuple[Tree, SolveInfo]:
        structure = jax.eval_shape(lambda: b)
        options = {} if x0 is None else {"y0": x0}
        if ask.preconditioner is not None:
            options["preconditioner"] = lx.FunctionLinearOperator(
                ask.preconditioner, structure, lx.positive_semidefinite_tag if A.symmetric else ()
            )
        operator = lx.FunctionLinearOperator(A.mv, structure, self._tags(A))
        solution = lx.linear_solve(operator, b, self.solver, options=options, throw=False)
        x = tree.where(tree.norm(b) > 0, solution.value, tree.zeros_like(b))
        x, r, checked = start(A, b, x)
        norm_r = tree.norm(r)
        ran_out = (
            (solution.result == lx.RESULTS.max_steps_reached)
            | (solution.result == lx.RESULTS.singular)  # that is max_steps of its own choice, for iterations
            | (solution.result == lx.RESULTS.successful)
        )
        status = jnp.where(ran_out, code(Status.MAX_STEPS), code(Status.STAGNATED))
        status = jnp.where(norm_r <= ask.target, code(Status.OK), status)
        if A.definite:  # x^T A x = x^T b up to the residual
            negative = tree.dot(x, b) < -tree.norm(x) * norm_r
            status = jnp.where(negative, code(Status.NEGATIVE_CURVATURE), status)
        status = jnp.where(jnp.isfinite(norm_r), status, code(Status.NONFINITE))
        steps = jnp.asarray(solution.stats["num_steps"])
        matvecs = products(self.solver, steps, tree.size(b)) + checked + ask.matvecs
        return x, SolveInfo(steps, matvecs, norm_r, status)

    def _dense(self, A: LinearOperator, b: Tree, ask: Request) -> tuple[Tree, SolveInfo]:
        M = A.dense(b)
        rhs, unravel = ravel_pytree(b)
        x = lx.linear_solve(lx.MatrixLinearOperator(M, self._tags(A)), rhs, self.solver, throw=False).value
        norm_r = tree.norm(rhs - M @ x)
        status = jnp.where(norm_r <= ask.target, code(Status.OK), code(Status.STAGNATED))
        status = jnp.where(jnp.isfinite(norm_r), status, code(Status.SINGULAR))
        if A.definite:
            status = jnp.where(is_definite(M), status, code(Status.NEGATIVE_CURVATURE))
        status = jnp.where(tree.all_finite((M, rhs)), status, code(Status.NONFINITE))
        return unravel(x), SolveInfo(jnp.asarray(1), jnp.asarray(rhs.size + ask.matvecs), norm_r, status)


def products(solver: Any, steps: Int[Array, ""], n: int) -> Int[Array, ""]:
    """Products with ``A`` and ``A^T`` in so many steps of a solver of lineax, read off its source (0.1)."""
    if isinstance(solver, lx.Normal):
        return 1 + 2 * products(solver.inner_solver, steps, n)
    if isinstance(solver, lx.CG):
        return 1 + steps + (0 if solver.stabilise_every is None else steps // solver.stabilise_every)
    if isinstance(solver, lx.GMRES):
        return steps + (steps - 1) * min(solver.restart, n)
    return (1 if isinstance(solver, lx.BiCGStab) else 2) + 2 * steps
