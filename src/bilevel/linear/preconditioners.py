"""Preconditioners from one block of products: the diagonal, and a randomized low-rank approximation.

Blocks of products are far cheaper than the same products one after the other (one pass over the data serves
all), so that a preconditioner pays early. What is built is a pytree and again a preconditioner, which builds
itself at no cost: keep it across solves, and across operators that are close.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from bilevel import tree
from bilevel.linear.operator import LinearOperator, divisor
from bilevel.status import ProblemError

Tree = Any


@tree.record
@dataclass(frozen=True)
class DiagonalPreconditioner:
    """``M r = inverse * r``, entry by entry; made by :class:`Jacobi`."""

    inverse: Tree

    def __call__(self, r: Tree) -> Tree:
        """``M r``."""
        return jax.tree.map(jnp.multiply, self.inverse, r)

    def build(self, A: LinearOperator, like: Tree) -> tuple["DiagonalPreconditioner", int]:
        """Itself: ``A`` and ``A^T`` have one diagonal."""
        del A, like
        return self, 0


@tree.record
@dataclass(frozen=True)
class Jacobi:
    """One over the diagonal of ``A``, estimated from products with random signs.

    With K vectors ``v`` of independent signs, ``mean(v * A v)`` has the mean ``diag(A)``; the variance of entry i
    is ``sum_{j != i} A_ij^2 / K``. Estimates below their standard error are put there, so that noise never makes an
    entry of M large; for a symmetric ``A`` the diagonal is taken for that of a definite one and M is positive.

    Parameters
    ----------
    probes
        Number K of products; with None, or n and more, the diagonal is exact, by n unit vectors.

    Notes
    -----
    Cost: ``min(probes, n)`` matvecs as one block, which takes that many vectors of memory.

    References
    ----------
    Bekas, Kokiopoulou and Saad 2007, "An estimator for the diagonal of a matrix".
    """

    probes: int | None = field(default=32, metadata={"static": True})

    def build(self, A: LinearOperator, like: Tree) -> tuple[DiagonalPreconditioner, int]:
        """Estimate the diagonal of ``A`` on the space of ``like``."""
        n, dtype = tree.size(like), tree.dtype(like)
        probes = n if self.probes is None else min(self.probes, n)
        if probes == n:
            diagonal, noise = jnp.diag(A.dense(like)), jnp.zeros(n, dtype)
        else:
            V = jax.random.rademacher(jax.random.key(0), (n, probes), dtype)
            samples = V * A.block(V, like)
            diagonal, noise = jnp.mean(samples, axis=1), _standard_error(samples)
        size = jnp.maximum(jnp.abs(diagonal), noise)
        size = jnp.where(size == 0, divisor(jnp.max(size)), size)
        inverse = jnp.where((diagonal < 0) & (not A.symmetric), -1.0, 1.0).astype(dtype) / size
        return DiagonalPreconditioner(ravel_pytree(like)[1](inverse)), probes


def _standard_error(samples: Float[Array, "n k"]) -> Float[Array, " n"]:
    """Standard error of the means of the rows, safe from overflow of the squares."""
    unit = divisor(jnp.max(jnp.abs(samples)))
    k = samples.shape[1]
    return unit * jnp.std(samples / unit, axis=1) / max(k - 1, 1) ** 0.5


@tree.record
@dataclass(frozen=True)
class NystromPreconditioner:
    """``M r = r / tail + U ((1 / head - 1 / tail) * (U^T r))``; made by :class:`Nystrom`.

    ``head`` approximates eigenvalues of ``A``, ``U`` their eigenvectors, ``tail`` stands for all others.
    """

    U: Float[Array, "n r"]
    head: Float[Array, " r"]
    tail: Float[Array, ""]

    def __call__(self, r: Tree) -> Tree:
        """``M r``."""
        flat, unravel = ravel_pytree(r)
        return unravel(flat / self.tail + self.U @ ((1 / self.head - 1 / self.tail) * (flat @ self.U)))

    def build(self, A: LinearOperator, like: Tree) -> tuple["NystromPreconditioner", int]:
        """Itself."""
        del A, like
        return self, 0


@tree.record
@dataclass(frozen=True)
class Nystrom:
    """Randomized Nystrom preconditioner for a symmetric positive definite ``A`` with few large eigenvalues.

    For a random ``V`` of ``rank`` columns, ``H = A - shift I`` and ``Y = H V``, the Nystrom approximation
    ``Y (V^T Y)^+ Y^T = U diag(h) U^T`` lies below H; let ``E`` be what it lacks, ``t = h_rank`` its smallest
    eigenvalue, and with the complement of U filled up at the height of t

        P = U diag(h + shift) U^T + (t + shift) (I - U U^T),      M = P^{-1}.

    From above, ``A = U diag(h) U^T + shift I + E <= P + E <= (1 + |E| / (t + shift)) P``, since ``P >= t + shift``.
    From below, ``P <= U diag(h) U^T + shift I + t I <= A + t I <= (1 + t / mu) A``, with ``mu`` the smallest
    eigenvalue of A. So ``cond(M A) <= (1 + |E| / (t + shift)) (1 + t / mu)``, whatever the eigenvalues above
    the tail: with a flat tail about ``2 + 2 |E| / mu``.

    Parameters
    ----------
    rank
        Number of products and of vectors kept; somewhat more than there are large eigenvalues.
    shift
        A known multiple of the identity inside ``A``, such as a ridge penalty; default zero. With it, eigenvalues
        of H that decay below it need no vectors.

    Notes
    -----
    Cost: ``rank`` matvecs as one block, O(n rank^2) operations; a product with M takes O(n rank). Directions in
    which H is zero or negative to rounding are left to the tail: the solver sees the curvature of A itself.

    Raises
    ------
    ProblemError
        The operator is not symmetric.

    References
    ----------
    Frangella, Tropp and Udell 2021, arXiv 2110.02820, Algorithm 2.1 and Section 5.
    """

    rank: int = field(default=32, metadata={"static": True})
    shift: Any = None

    def build(self, A: LinearOperator, like: Tree) -> tuple[NystromPreconditioner, int]:
        """Approximate ``A`` on the space of ``like``."""
        if not A.symmetric:
            raise ProblemError(
                "Nystrom needs a symmetric operator, but this one is not known to be: use Jacobi or a dense "
                "factorization, or pass symmetric=True to the problem if it is symmetric."
            )
        n, dtype = tree.size(like), tree.dtype(like)
        rank, shift = min(self.rank, n), jnp.asarray(0.0 if self.shift is None else self.shift, dtype)
        V = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (n, rank), dtype))[0]
        U, h = _nystrom(V, A.block(V, like) - shift * V)
        head = h + shift
        # What cannot be told from zero beside the largest eigenvalue is left to the tail.
        kept = head > n * jnp.finfo(dtype).eps * jnp.max(head)
        tail = jnp.where(kept.any(), jnp.min(jnp.where(kept, head, jnp.inf)), 1.0)
        return NystromPreconditioner(U, jnp.where(kept, head, tail), tail), rank


def _nystrom(V: Float[Array, "n r"], Y: Float[Array, "n r"]) -> tuple[Float[Array, "n r"], Float[Array, " r"]]:
    """Orthonormal ``U`` and ``h >= 0`` with ``U diag(h) U^T = Y (V^T Y)^+ Y^T`` for ``Y = H V``.

    The small shift ``nu`` keeps the small matrix regular and is taken off again (Algorithm 2.1); its eigenvalues,
    not its Cholesky factors, so that an indefinite H does not break it.
    """
    size = divisor(jnp.max(jnp.abs(Y)))
    Y = Y / size
    eps = jnp.finfo(Y.dtype).eps
    nu = eps * jnp.linalg.norm(Y)
    Y = Y + nu * V
    core = V.T @ Y
    g, S = jnp.linalg.eigh((core + core.T) / 2)
    positive = g > eps * jnp.max(jnp.abs(g))
    B = Y @ (S * jnp.where(positive, 1 / jnp.sqrt(jnp.where(positive, g, 1.0)), 0.0)[None, :])
    U, sigma, _ = jnp.linalg.svd(B, full_matrices=False)
    return U, size * jnp.maximum(sigma**2 - nu, 0.0)
