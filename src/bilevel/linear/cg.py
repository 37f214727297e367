"""Conjugate gradients for symmetric positive definite systems (Hestenes and Stiefel 1952)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel import tree
from bilevel.linear.operator import LinearOperator, divisor, request, start
from bilevel.linear.rounds import Round, rounds
from bilevel.loops import bounded_while, repeat
from bilevel.status import SolveInfo, Status, code

Tree = Any


SHORT = 4096  # entries
MARGIN = 0.1  # by which the smallest Rayleigh quotient met is held to lie above the smallest eigenvalue


@tree.record
@dataclass(frozen=True)
class CG:
    """Conjugate gradients on ``A x = b``, ``A`` symmetric positive definite.

    Parameters
    ----------
    steps
        Iterations. Without ``rtol`` exactly so many run; with it, at most (default ``10 n + 100``).
    rtol
        Stop at ``norm(b - A x) <= rtol * norm(b)``, checked on the true residual. Default, where ``steps`` is
        not given either: the square root of machine epsilon.
    settle
        For loose solves whose solution, not residual, must be right: stop only when moreover the norm of the
        solution has grown by less than this fraction over the last half of the iterations (it grows
        monotonically: Steihaug 1983, Theorem 2.1), or the residual is small beside this fraction of the solution
        times the smallest Rayleigh quotient met.
    preconditioner
        A :class:`~bilevel.linear.operator.Preconditioner`, positive definite.

    Notes
    -----
    Cost: one matvec a step, one more for a warm start, one per check of the true residual (``rtol`` only), and
    those of the preconditioner. Statuses: ``NEGATIVE_CURVATURE`` (of ``A`` or of the preconditioner),
    ``SINGULAR``, ``MAX_STEPS``, ``STAGNATED`` (rounding), ``NONFINITE``. On a failure the iterate before it is
    returned, the right-hand side if it comes at once.
    """

    steps: int | None = field(default=None, metadata={"static": True})
    rtol: Any = None
    settle: Any = None
    preconditioner: Any = None

    needs_symmetry = True

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
        most = 10 * tree.size(b) + 100
        ask = request(self, A, b, preconditioner=preconditioner, rtol=rtol, steps=steps, most=most)
        x, r, matvecs = start(A, b, x0)
        matvecs += ask.matvecs
        M = None if ask.preconditioner is None else ask.precondition
        if ask.budget:
            run = run_cg(A, r, M, None, self.settle, ask.steps)
            return tree.add(x, run.x), SolveInfo(run.step, matvecs + run.step, run.residual_norm, run.status)

        def iterate(r: Tree, steps: Any) -> Round:
            run = run_cg(A, r, M, ask.target, self.settle, steps)
            return Round(run.x, run.step, run.status)

        x, info = rounds(iterate, A, b, x, r, ask.target, ask.steps, products=1)
        return x, info.plus(matvecs)


class CGRun(NamedTuple):
    """State of the iteration; ``x`` is the correction to the start, all vectors in units of ``norm(r_0)``."""

    x: Tree
    r: Tree
    p: Tree  # after NEGATIVE_CURVATURE the direction of it, after NONFINITE the right-hand side
    rz: Float[Array, ""]  # <r, M r>
    pp: Float[Array, ""]  # <p, M^-1 p>
    residual_norm: Float[Array, ""]
    step: Int[Array, ""]
    status: Int[Array, ""]
    largest: Float[Array, ""]  # largest Rayleigh quotient of A met
    smallest: Float[Array, ""]  # smallest one
    largest_scaled: Float[Array, ""]  # largest Rayleigh quotient of M A met
    size_mark: Float[Array, ""]  # norm(x) at the last mark
    step_mark: Int[Array, ""]
    settled: Bool[Array, ""]


def run_cg(A, r0: Tree, precondition, target, settle, steps, first: Tree | None = None) -> CGRun:
    """CG on ``A x = r0`` from zero until the recursive residual is below ``target`` (None: exactly ``steps``).

    The kernel of :class:`CG`, for callers that can do without a check of the true residual (Newton steps, error
    estimates). ``precondition`` is a product with M, None for none; ``settle`` as there; status ``MAX_STEPS`` where the
    target was not reached. Cost: one matvec a step, but for the first where ``first``, ``A M r0 / norm(r0)``, is known.
    """
    norm_r0 = tree.quick_norm(r0)
    unit = divisor(norm_r0)
    r = tree.scale(1 / unit, r0)
    # CG does not feel the scale of M; with M r_0 of norm one nothing below can overflow.
    z, weight = (r, 1.0) if precondition is None else _scaled(precondition(r))
    zero, rz = jnp.zeros((), tree.dtype(r0)), tree.dot(r, z)
    state = CGRun(
        tree.zeros_like(r), r, z, rz, rz, norm_r0 / unit, jnp.asarray(0), code(Status.OK),
        zero, zero + jnp.inf, zero, zero, jnp.asarray(0), jnp.asarray(settle is None),
    )  # fmt: skip
    small = tree.eps(r0)
    settles = settle is not None and target is not None

    def product(s: CGRun) -> Tree:
        if first is None:
            return A.mv(s.p)
        return jax.lax.cond(s.step == 0, lambda: tree.scale(1 / weight, first), lambda: A.mv(s.p))

    def body(s: CGRun) -> CGRun:
        running = s.status == Status.OK  # a budget goes on after a failure, and the state stays as it is
        Ap = product(s)
        curvature, pp = dots((s.p, Ap), (s.p, s.p))
        s, status = _judge(s, Ap, curvature, jnp.sqrt(pp), small)
        # Past rounding the recursion only shrinks towards underflow: x stays as it is.
        alive = s.residual_norm > small**2
        status = jnp.where(running, jnp.where(alive, status, code(Status.OK)), s.status)
        ok = alive & (status == Status.OK)
        # Vectors stay as they are by the numbers before them: to choose between two vectors would cost as much again.
        alpha = jnp.where(ok, s.rz / jnp.where(ok, curvature, 1.0), 0.0)
        x = tree.axpy(alpha, s.p, s.x)
        r = tree.axpy(-alpha, Ap, s.r)
        z = r if precondition is None else tree.scale(1 / weight, precondition(r))
        y = tree.scale(divisor(s.largest), x)  # of about unit size: the squares of x itself might overflow
        rr, *others = dots((r, r), *([(y, y)] if settles else []), *([] if precondition is None else [(r, z)]))
        rz = rr if precondition is None else others[-1]
        beta = jnp.where(ok, rz / jnp.where(ok, s.rz, 1.0), 1.0)
        new = s._replace(
            x=x,
            r=r,
            p=tree.axpy(beta, s.p, tree.scale(jnp.where(ok, 1.0, 0.0), z)),
            rz=rz,
            pp=rz + beta**2 * s.pp,  # <M^-1 p, z> = <p, r> = 0 for the last p
            residual_norm=jnp.sqrt(rr),
            step=s.step + running,
            status=status,
        )
        return _mark(new, jnp.sqrt(others[0]) / divisor(s.largest), settle) if settles else new

    if target is None:
        end = repeat(body, state, steps)
        status = end.status
    else:
        goal = target / unit

        def unfinished(s: CGRun) -> Bool[Array, ""]:
            return (s.status == Status.OK) & ~((s.residual_norm <= goal) & s.settled)

        end = bounded_while(unfinished, body, state, steps)
        status = jnp.where(unfinished(end), code(Status.MAX_STEPS), end.status)
    at_once = (end.step == 1) & (end.status != Status.OK)
    x = tree.where(at_once, r0, tree.scale(unit, end.x))
    p = tree.where(end.status == Status.NONFINITE, r0, end.p)
    return end._replace(x=x, p=p, residual_norm=unit * end.residual_norm, status=status)


def _scaled(z: Tree) -> tuple[Tree, Float[Array, ""]]:
    weight = divisor(tree.norm(z))
    return tree.scale(1 / weight, z), weight


def dots(*pairs: tuple[Tree, Tree]) -> list[Float[Array, ""]]:
    """Inner products, of short vectors in one reduction: there it is their number that takes the time."""
    if tree.size(pairs[0][0]) > SHORT:
        return [tree.dot(a, b) for a, b in pairs]
    products = [jax.tree.leaves(jax.tree.map(jnp.multiply, a, b)) for a, b in pairs]
    stacks = [jnp.stack(of_leaf) for of_leaf in zip(*products, strict=True)]
    sums = [jnp.sum(stack, axis=tuple(range(1, stack.ndim))) for stack in stacks]
    return list(sum(sums[1:], sums[0]))


def _judge(s: CGRun, Ap: Tree, curvature, norm_p, small) -> tuple[CGRun, Int[Array, ""]]:
    """Status after the product ``A p``, and the state with the Rayleigh quotients it shows.

    Rounding makes ``p^T A p`` uncertain by ``eps |p| |A p|``, and a Rayleigh quotient below ``eps`` times the
    largest one met cannot be told from zero. That is judged where M has removed the scales of A, by
    ``p^T A p / p^T M^-1 p``. Negative is said where the quotients of A itself say it: a semidefinite matrix has
    ``A p = 0`` where ``p^T A p = 0`` (``|A p|^2 <= |A| p^T A p``); one that has not is negative elsewhere.
    """
    quotient = jnp.where(norm_p > 0, curvature / divisor(norm_p) ** 2, 0.0)
    largest = jnp.maximum(s.largest, quotient)
    scaled = jnp.maximum(s.largest_scaled, jnp.where(s.pp > 0, curvature / divisor(s.pp), 0.0))
    norm_Ap = _norm_in(jnp.maximum(jnp.abs(curvature) / divisor(norm_p), norm_p * largest), Ap)
    positive = curvature > small * jnp.maximum(norm_p * norm_Ap, s.pp * scaled)
    in_kernel = norm_Ap <= 10 * small**0.5 * norm_p * largest  # the largest quotient met is below |A|
    negative = (curvature < -small * norm_p * jnp.maximum(norm_Ap, norm_p * largest)) | ~in_kernel
    status = jnp.where(negative | (s.rz < 0), code(Status.NEGATIVE_CURVATURE), code(Status.SINGULAR))
    status = jnp.where(positive & (s.rz >= 0), code(Status.OK), status)
    status = jnp.where(jnp.isfinite(curvature), status, code(Status.NONFINITE))
    return s._replace(largest=largest, smallest=jnp.minimum(s.smallest, quotient), largest_scaled=scaled), status


def _norm_in(unit: Float[Array, ""], a: Tree) -> Float[Array, ""]:
    """``norm(a)`` by one pass, for a unit below which it need not be told from zero: no square overflows in it."""
    unit = divisor(unit)
    a = tree.scale(1 / unit, a)
    return unit * jnp.sqrt(tree.dot(a, a))


def _mark(s: CGRun, size, settle) -> CGRun:
    """Compare ``norm(x)`` with its value half of the iterations ago, and the residual with what x may lack.

    That is at most ``norm(r)`` over the smallest eigenvalue, for which the smallest Rayleigh quotient met stands,
    from above. A small residual alone tells nothing where the condition number is large.
    """
    due = s.step >= 2 * s.step_mark + 3
    settled = jnp.where(due, size - s.size_mark <= settle * size, s.settled)
    complete = s.residual_norm <= MARGIN * settle * s.smallest * size
    return s._replace(
        settled=settled | complete,
        size_mark=jnp.where(due, size, s.size_mark),
        step_mark=jnp.where(due, s.step, s.step_mark),
    )
