"""A dense factorization kept as a preconditioner: exact for its matrix, and good for those near it."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from bilevel import tree
from bilevel.linear.cg import MARGIN, dots, run_cg
from bilevel.linear.dense import condition
from bilevel.linear.operator import LinearOperator, divisor
from bilevel.loops import bounded_while
from bilevel.status import SolveInfo, Status, code

Tree = Any

PROMISE = 4.0  # a second refinement is taken to leave at most so many times the square of what the first left


@tree.record
@dataclass(frozen=True)
class Factorized:
    """``M r = A^{-1} r`` by the factors of a dense ``A``; made by :func:`factorize`.

    A pytree: it passes through ``jit`` and can be carried from one upper-level step to the next. Built for the
    transposed operator it solves with the transpose of its matrix.
    """

    factors: tuple[Array, ...]  # the Cholesky factor, or LU and its pivots
    regular: Bool[Array, ""]  # whether the matrix was regular to rounding, and definite where it must be
    transposed: bool = field(default=False, metadata={"static": True})

    def __call__(self, r: Tree) -> Tree:
        """``M r``."""
        flat, unravel = ravel_pytree(r)
        if len(self.factors) == 1:
            return unravel(jax.scipy.linalg.cho_solve((self.factors[0], True), flat))
        return unravel(jax.scipy.linalg.lu_solve(self.factors, flat, trans=int(self.transposed)))

    def build(self, A: LinearOperator, like: Tree) -> tuple["Factorized", int]:
        """Itself, for ``A`` or for its transpose."""
        del like
        return replace(self, transposed=A.transposed), 0


def factorize(A: LinearOperator, like: Tree) -> Factorized:
    """Factorization of the dense ``A``: Cholesky where it must be positive definite, else LU.

    Parameters
    ----------
    A
        The operator; whether it or its transpose is given makes no difference.
    like
        A vector of its space.

    Returns
    -------
    Factorized
        A preconditioner for ``A``, ``A.T`` and operators close to them. Where ``A`` is singular to rounding, or must
        be positive definite and is not, it is the identity, and ``regular`` is False: a solver then sees the
        curvature of ``A`` as without it.

    Notes
    -----
    Cost: n matvecs as one block, n^2 memory, O(n^3) operations. A product with it takes O(n^2).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bilevel as bl
    >>> from bilevel.linear.factorized import factorize
    >>> from bilevel.linear.operator import from_matrix
    >>> b = jnp.ones(2)
    >>> near = factorize(from_matrix(jnp.array([[2.0, 1.0], [0.0, 3.0]])), b)
    >>> x, info = bl.GMRES(preconditioner=near)(from_matrix(jnp.array([[2.1, 1.0], [0.0, 3.0]])), b, rtol=1e-3)
    >>> print(x.round(3), info.matvecs)
    [0.317 0.333] 3
    """
    M = (A.T if A.transposed else A).dense(like)
    norm = jnp.max(jnp.sum(jnp.abs(M), axis=1))
    factors = (jnp.linalg.cholesky(M),) if A.symmetric and A.definite else jax.scipy.linalg.lu_factor(M)
    made = Factorized(factors, jnp.asarray(True), transposed=A.transposed)
    regular = condition(made, norm, M[0]) * jnp.finfo(M.dtype).eps < 1
    identity = (jnp.eye(len(M), dtype=M.dtype), jnp.arange(len(M)))  # either factor, and no pivoting
    factors = tuple(jnp.where(regular, x, y.astype(x.dtype)) for x, y in zip(factors, identity, strict=False))
    return replace(made, factors=factors, regular=regular)


class _Refined(NamedTuple):
    """A solution in units of ``norm(b)``, as judged by the rules of CG."""

    x: Tree
    r: Tree
    first: Tree  # A M b
    residual_norm: Float[Array, ""]
    done: Bool[Array, ""]
    promising: Bool[Array, ""]  # one refinement more will do
    steps: Int[Array, ""]


def solve_near(
    A: LinearOperator, b: Tree, near: Factorized, rtol: Any, settle: Any, steps: Any
) -> tuple[Tree, SolveInfo]:
    """Solve ``A x = b`` for a definite A that may be nearly the matrix factorized: M alone, refined once, or else CG.

    ``x = M b`` or ``x + M (b - A x)`` will do where CG would stop there, with the ``rtol`` and ``settle`` of
    :class:`~bilevel.linear.cg.CG`, at a fraction of its operations on short vectors. Cost: that of CG, which is given
    the first product, and one matvec where a refinement came to less than it had promised.
    """
    norm = tree.norm(b)
    unit = divisor(norm)
    rhs, zero = tree.scale(1 / unit, b), tree.zeros_like(b)

    def refine(s: _Refined) -> _Refined:
        x = tree.add(s.x, near(s.r))
        Ax = A.mv(x)
        r = tree.sub(rhs, Ax)
        xx, curvature, rr = dots((x, x), (x, Ax), (r, r))
        size, residual_norm = jnp.sqrt(xx), jnp.sqrt(rr)
        positive = curvature > tree.eps(b) * size  # norm(A x) is about one

        def enough(residual_norm: Float[Array, ""]) -> Bool[Array, ""]:
            settled = True if settle is None else residual_norm * size <= MARGIN * settle * curvature
            return positive & (residual_norm <= rtol) & settled

        first = tree.where(s.steps == 0, Ax, s.first)
        promising = enough(PROMISE * residual_norm**2)
        return _Refined(x, r, first, residual_norm, enough(residual_norm), promising, s.steps + 1)

    begin = _Refined(zero, rhs, zero, norm / unit, jnp.asarray(False), norm != 0, jnp.asarray(0))
    s = bounded_while(lambda s: ~s.done & s.promising, refine, begin, jnp.minimum(steps, 2))

    def by_cg() -> tuple[Tree, SolveInfo]:
        run = run_cg(A, b, near, rtol * norm, settle, steps, s.first)
        return run.x, SolveInfo(run.step, s.steps + jnp.maximum(run.step - 1, 0), run.residual_norm, run.status)

    def as_it_is() -> tuple[Tree, SolveInfo]:
        return tree.scale(unit, s.x), SolveInfo(s.steps, s.steps, unit * s.residual_norm, code(Status.OK))

    return jax.lax.cond(s.done, as_it_is, by_cg)
