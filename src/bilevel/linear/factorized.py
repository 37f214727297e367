"""A dense factorization kept as a preconditioner: exact for its matrix, and good for those near it."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool

from bilevel import tree
from bilevel.linear.dense import inverse_norm
from bilevel.linear.operator import LinearOperator

Tree = Any


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
    regular = inverse_norm(made, M[0]) * norm * jnp.finfo(M.dtype).eps < 1
    identity = (jnp.eye(len(M), dtype=M.dtype), jnp.arange(len(M)))  # either factor, and no pivoting
    factors = tuple(jnp.where(regular, x, y.astype(x.dtype)) for x, y in zip(factors, identity, strict=False))
    return replace(made, factors=factors, regular=regular)
