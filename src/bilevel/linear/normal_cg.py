"""Conjugate gradients on the normal equations, for any nonsingular system (Hestenes and Stiefel 1952)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel import tree
from bilevel.linear.operator import LinearOperator, divisor, request, start, transpose
from bilevel.linear.rounds import Round, rounds
from bilevel.loops import bounded_while, full_length_loop
from bilevel.status import SolveInfo, Status, code

Tree = Any

ROUNDING = 4  # A^T r below so many eps sqrt(n) |A| |r| cannot be told from zero


@tree.record
@dataclass(frozen=True)
class NormalCG:
    """Conjugate gradients on ``A^T A x = A^T b`` for any nonsingular ``A``, symmetric or not.

    Step k minimizes ``norm(b - A x)`` over the Krylov space of ``A^T A``, at the rate of CG with the condition
    number ``kappa`` of A in place of its root: ``norm(r_k) <= 2 ((kappa - 1) / (kappa + 1))^k norm(r_0)``. That is
    slower than CG or GMRES where they work well, and sure where GMRES stalls: the eigenvalues may lie anywhere, only
    the singular values count. The recursion is on ``r = b - A x``, with ``A^T r`` taken anew in each step (CGLS),
    which loses no accuracy to the squared condition number. With a preconditioner M, an approximate inverse of A, it
    runs on ``A M y = b``, ``x = M y``.

    Parameters
    ----------
    steps
        Iterations. Without ``rtol`` exactly so many run; with it, at most (default ``10 n + 100``).
    rtol
        Stop at ``norm(b - A x) <= rtol * norm(b)``, checked on the true residual. Default, where ``steps`` is
        not given either: the square root of machine epsilon.
    preconditioner
        A :class:`~bilevel.linear.operator.Preconditioner`; JAX must be able to transpose what it builds.

    Notes
    -----
    Cost: two matvecs a step, one with ``A^T`` and one with ``A``; one more for a warm start, one per check of the
    true residual (``rtol`` only), and those of the preconditioner. Memory: four vectors. Statuses: ``SINGULAR``
    (``A^T r = 0`` to rounding while ``r`` is not small), ``MAX_STEPS``, ``STAGNATED``, ``NONFINITE``. Negative
    curvature is not seen.

    References
    ----------
    Bjorck, Numerical Methods for Least Squares Problems, SIAM 1996, Algorithm 7.4.1.
    """

    steps: int | None = field(default=None, metadata={"static": True})
    rtol: Any = None
    preconditioner: Any = None

    needs_symmetry = False

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
        precondition_transpose = _identity if ask.preconditioner is None else transpose(ask.preconditioner, b)
        x, r, matvecs = start(A, b, x0)
        matvecs += ask.matvecs

        def run(r: Tree, target: Any, steps: Any) -> _Run:
            return _cgls(A, r, ask.precondition, precondition_transpose, target, steps)

        if ask.budget:
            end = run(r, None, ask.steps)
            return tree.add(x, end.x), SolveInfo(end.step, matvecs + 2 * end.step, end.residual_norm, end.status)

        def iterate(r: Tree, steps: Any) -> Round:
            end = run(r, ask.target, steps)
            return Round(end.x, end.step, end.status)

        x, info = rounds(iterate, A, b, x, r, ask.target, ask.steps, products=2)
        return x, info.plus(matvecs)


class _Run(NamedTuple):
    """State of the iteration, ``x`` the correction to the start, in units of ``norm(r_0)``.

    With ``g = M^T A^T r``, the direction ``p`` is in units of ``norm(g)``: no square of the scale of A appears.
    """

    x: Tree
    r: Tree
    p: Tree
    norm_g: Float[Array, ""]
    residual_norm: Float[Array, ""]
    largest: Float[Array, ""]  # norm of A M from below
    step: Int[Array, ""]
    status: Int[Array, ""]


def _cgls(A: LinearOperator, r0: Tree, precondition, precondition_transpose, target, steps) -> _Run:
    """CGLS on ``A M y = r0`` from zero until the recursive residual is below ``target`` (None: exactly ``steps``)."""
    unit = divisor(tree.norm(r0))
    r = tree.scale(1 / unit, r0)
    zero, nothing = jnp.zeros((), tree.dtype(r0)), tree.zeros_like(r)
    state = _Run(nothing, r, nothing, zero + 1, tree.norm(r), zero, jnp.asarray(0), code(Status.OK))
    small = tree.eps(r0)
    rounding = ROUNDING * small * tree.size(r0) ** 0.5

    def reached(s: _Run):
        return jnp.asarray(False) if target is None else s.residual_norm <= target / unit

    def body(s: _Run) -> _Run:
        g = precondition_transpose(A.mv_transpose(s.r))
        norm_g = tree.norm(g)
        p = tree.axpy(norm_g / s.norm_g, s.p, tree.scale(1 / divisor(norm_g), g))
        Mp = precondition(p)
        q = A.mv(Mp)
        norm_q, norm_p = tree.norm(q), divisor(tree.norm(p))
        largest = jnp.maximum(s.largest, jnp.maximum(norm_g / divisor(s.residual_norm), norm_q / norm_p))
        # Least norm of M^T A^T r over the combinations of all iterates (LSMR): unlike norm(g) it never rises again.
        regular = norm_g / norm_p > rounding * largest * s.residual_norm
        status = jnp.where(regular, code(Status.OK), code(Status.SINGULAR))
        status = jnp.where(jnp.isfinite(norm_g) & jnp.isfinite(norm_q), status, code(Status.NONFINITE))
        # Past rounding the recursion only shrinks towards underflow: x stays as it is.
        alive = s.residual_norm > small**2
        status = jnp.where(alive, status, code(Status.OK))
        ok = alive & (status == Status.OK)
        # The step norm(g)^2 / norm(q)^2 in two factors: XLA turns a / q / q into a / (q q), which may overflow.
        length, inverse = jnp.where(ok, norm_g / divisor(norm_q), 0.0), 1 / divisor(norm_q)
        r = tree.where(ok, tree.axpy(-length, tree.scale(inverse, q), s.r), s.r)
        x = tree.where(ok, tree.axpy(length, tree.scale(inverse, Mp), s.x), s.x)
        return _Run(x, r, p, divisor(norm_g), tree.norm(r), largest, s.step + 1, status)

    loop = full_length_loop if target is None else bounded_while
    end = loop(lambda s: (s.status == Status.OK) & ~reached(s), body, state, steps)
    ran_out = (end.status == Status.OK) & ~reached(end) & (target is not None)
    status = jnp.where(ran_out, code(Status.MAX_STEPS), end.status)
    return end._replace(x=tree.scale(unit, end.x), residual_norm=unit * end.residual_norm, status=status)


def _identity(x: Tree) -> Tree:
    return x
