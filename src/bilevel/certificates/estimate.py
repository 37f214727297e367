"""First-order error estimates: the norm of the next Newton correction, from loose solves.

Derivation in :mod:`bilevel.lagrangian`. A solve that is right within a fifth gives the norm of the correction
within a factor of two, which is all that is asked of an error; but it must be the solution that is right, not
the residual, so the solves stop when the solution has settled.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel import tree
from bilevel.lagrangian import Correction, Instance, LinearSolve, correct, gradient
from bilevel.linear.cg import run_cg
from bilevel.linear.factorized import Factorized, solve_near
from bilevel.linear.gmres import GMRES
from bilevel.linear.operator import LinearOperator, Preconditioner, build
from bilevel.loops import bounded_while
from bilevel.status import SolveInfo, Status, code, is_failure

Tree = Any

LOOSE = 0.03  # relative residual, and relative growth of the solution, of the estimating solves with CG
LOOSE_GMRES = 0.01  # relative residual with GMRES, whose solution is not formed before the end
USABLE = 0.2  # relative residual up to which a solve cut short by its budget still gives a norm within two
FEWEST_STEPS = 4  # given to each estimating solve however small the budget
OVERHEAD = 2  # products of a correction besides its solves
RESOLVED = 0.1  # relative error up to which the first-order estimate is a number, above it a flag


def loose_solve(
    A: LinearOperator, b: Tree, rtol: Any = LOOSE, steps: Any = None, preconditioner: Preconditioner | None = None
) -> tuple[Tree, SolveInfo]:
    """Solve ``A x = b`` so that the norm of x is about right: CG for definite operators, GMRES for others.

    A solve that its steps end before the tolerance still counts where its residual is below ``USABLE``.
    """
    steps = 10 * tree.size(b) + 100 if steps is None else steps
    if A.definite and isinstance(preconditioner, Factorized):
        x, info = solve_near(A, b, preconditioner, rtol, LOOSE, steps)
    elif A.definite:
        M, matvecs = build(preconditioner, A, b)
        run = run_cg(A, b, M, rtol * tree.norm(b), LOOSE, steps)
        x, info = run.x, SolveInfo(run.step, matvecs + run.step, run.residual_norm, run.status)
    else:
        solver = GMRES(preconditioner=preconditioner)
        x, info = solver(A, b, rtol=jnp.minimum(rtol, LOOSE_GMRES), steps=steps)
    usable = (info.status == Status.MAX_STEPS) & (info.residual_norm <= USABLE * tree.norm(b))
    return x, replace(info, status=jnp.where(usable, code(Status.OK), info.status))


def estimate_error(
    at: Instance, w: Tree, v: Tree, spent: Int[Array, ""], damping: Any = None
) -> tuple[Correction, SolveInfo]:
    """Correction at ``(w, v)`` within half of the ``spent`` matvecs, and what it cost.

    The norm of ``correction.change`` is the estimate; with a ``damping`` of the adjoint, that of the distance to the
    damped hypergradient. A solve that its budget cut short makes the status ``UNRESOLVED``: the estimate may then be
    too small. So does, beside a damping, one for ``dw`` that fails, since A may be singular there: the estimate is
    then infinite.
    """
    most = jnp.maximum(spent // 2 - OVERHEAD, 2 * FEWEST_STEPS)

    def within(steps: Any) -> LinearSolve:
        def solve(A: LinearOperator, b: Tree) -> tuple[Tree, SolveInfo]:
            reserve = 0 if A.definite else 1 + most // 40  # GMRES checks its residual once a cycle
            return loose_solve(A, b, steps=steps - reserve)

        return solve

    step = correct(at, w, v, within(most // 2), within(most - most // 2), damping)
    if damping is not None:
        step = _excused(step)
    info = step.lower.then(step.adjoint)
    cut_short = info.status == Status.MAX_STEPS
    return step, SolveInfo(
        info.steps, info.matvecs, info.residual_norm, jnp.where(cut_short, code(Status.UNRESOLVED), info.status)
    )


def _excused(step: Correction) -> Correction:
    """A correction whose solve for ``dw`` may fail, but for NaN: then nothing is known of the error."""
    status = step.lower.status
    failed = is_failure(status) & (status != Status.MAX_STEPS) & (status != Status.NONFINITE)
    lower = replace(step.lower, status=jnp.where(failed, code(Status.UNRESOLVED), status))
    return step._replace(lower=lower, change=tree.where(failed, tree.fill(step.change, jnp.inf), step.change))


class _Reference(NamedTuple):
    w: Tree
    v: Tree
    distance: Float[Array, ""]
    uncertainty: Float[Array, ""]
    info: SolveInfo


def distance_to_hypergradient(at: Instance, w: Tree, grad: Tree) -> tuple[Float[Array, ""], Tree, SolveInfo]:
    """Norm of ``grad`` minus the corrected hypergradient at ``w``, for a ``grad`` that has no adjoint (ITD).

    Newton corrections from ``(w, 0)`` until the reference is known better than the distance. Returns the
    distance, the adjoint, and the cost.
    """

    def body(s: _Reference) -> _Reference:
        step = correct(at, s.w, s.v, loose_solve)
        reference = tree.add(gradient(at, s.w, s.v).grad, step.change)
        info = s.info.then(step.lower.then(step.adjoint)).plus(1)
        return _Reference(
            tree.add(s.w, step.dw),
            tree.add(s.v, step.dv),
            tree.norm(tree.sub(grad, reference)),
            tree.norm(step.change),
            info,
        )

    floor = 16 * tree.eps(grad) * tree.norm(grad)

    def unfinished(s: _Reference):
        known = s.uncertainty <= jnp.maximum(0.5 * s.distance, floor)
        return ~known & (s.info.status <= Status.MAX_STEPS)

    zero, nothing = jnp.asarray(0), jnp.zeros((), tree.dtype(w))
    unknown = jnp.asarray(jnp.inf, tree.dtype(grad))
    start = _Reference(
        w, tree.zeros_like(w), jnp.zeros_like(unknown), unknown, SolveInfo(zero, zero, nothing, code(Status.OK))
    )
    end = bounded_while(unfinished, body, start, 16)
    return end.distance, end.v, end.info
