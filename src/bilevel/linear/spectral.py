"""Spectra of symmetric operators from products: Lanczos; of any operator: power iteration."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel import tree
from bilevel.linear.operator import LinearOperator

Tree = Any

ESTIMATE_STEPS = 16  # Lanczos steps that give the largest eigenvalue within a few percent


def lanczos(A: LinearOperator, start: Tree, steps: int) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Lanczos tridiagonalization of a symmetric ``A``, with full reorthogonalization.

    Parameters
    ----------
    A
        Symmetric operator.
    start
        Any nonzero vector.
    steps
        Number m of steps; at most the dimension is useful.

    Returns
    -------
    diagonal, off_diagonal
        Both of shape (m,); ``off_diagonal[j]`` couples steps j and j+1, its last entry is the norm of the
        remainder. After an invariant subspace is exhausted, zeros. Cost: m matvecs, m vectors.

    References
    ----------
    Golub and Van Loan, Matrix Computations, 4th edition, Section 10.1.
    """
    unit = tree.scale(1 / tree.norm(start), start)
    basis = jax.tree.map(lambda x: jnp.zeros((steps, *x.shape), x.dtype).at[0].set(x), unit)
    tiny = 8 * tree.eps(start)

    def orthogonalize(basis, u):
        h = basis_dot(basis, u)
        return tree.sub(u, basis_combine(basis, h)), h

    def body(j, carry):
        basis, diagonal, off, scale = carry
        u = A.mv(jax.tree.map(lambda B: B[j], basis))
        u, h = orthogonalize(basis, u)
        u, correction = orthogonalize(basis, u)
        alpha, beta = h[j] + correction[j], tree.norm(u)
        scale = jnp.maximum(scale, jnp.abs(alpha) + beta)
        beta = jnp.where(beta > tiny * scale, beta, 0.0)
        following = tree.scale(jnp.where(beta > 0, 1 / jnp.where(beta > 0, beta, 1.0), 0.0), u)
        basis = jax.tree.map(lambda B, x: B.at[j + 1].set(x, mode="drop"), basis, following)
        return basis, diagonal.at[j].set(alpha), off.at[j].set(beta), scale

    zeros = jnp.zeros(steps, tree.dtype(start))
    _, diagonal, off, _ = jax.lax.fori_loop(0, steps, body, (basis, zeros, zeros, zeros[0]))
    return diagonal, off


def ritz_values(diagonal: Float[Array, " m"], off_diagonal: Float[Array, " m"]) -> Float[Array, " m"]:
    """Eigenvalues of the Lanczos matrix, ascending; they lie inside the spectrum of ``A``.

    Steps after the exhaustion of an invariant subspace repeat the first Ritz value's place with the first
    diagonal entry, which is a Rayleigh quotient and lies inside the spectrum as well.
    """
    return jnp.linalg.eigvalsh(_tridiagonal(diagonal, off_diagonal))


def largest_eigenvalue(A: LinearOperator, like: Tree, steps: int = ESTIMATE_STEPS) -> tuple[Float[Array, ""], int]:
    """Largest eigenvalue of a symmetric ``A`` from below, and the matvecs it took."""
    steps = min(steps, tree.size(like))
    return ritz_values(*lanczos(A, probe_vector(like), steps))[-1], steps


def extreme_eigenvalues(
    A: LinearOperator, like: Tree, steps: int = 2 * ESTIMATE_STEPS
) -> tuple[Float[Array, ""], Float[Array, ""], int]:
    """Estimates of the least and the largest eigenvalue of a symmetric ``A``, and the matvecs they took.

    The least is a Ritz value, from above: with m steps it cannot be told from about ``L / m^2`` where the
    spectrum is that wide. To the largest Ritz value its residual norm is added, which makes it an upper bound
    but for a start without any part in the last eigenvector.
    """
    steps = min(steps, tree.size(like))
    diagonal, off_diagonal = lanczos(A, probe_vector(like), steps)
    values, vectors = jnp.linalg.eigh(_tridiagonal(diagonal, off_diagonal))
    return values[0], values[-1] + off_diagonal[-1] * jnp.abs(vectors[-1, -1]), steps


def power_iteration(mv: Callable[[Tree], Tree], start: Tree, steps: int) -> Float[Array, ""]:
    """Modulus of the dominant eigenvalue, ``norm(M^m x) / norm(M^(m-1) x)`` averaged over the second half.

    The geometric mean over half of the steps evens out the rotation of a complex pair. Cost: ``steps``
    products.
    """

    def body(x, _):
        y = mv(x)
        growth = tree.norm(y)
        return tree.scale(1 / jnp.where(growth > 0, growth, 1.0), y), growth

    _, growth = jax.lax.scan(body, tree.scale(1 / tree.norm(start), start), length=steps)
    return jnp.exp(jnp.mean(jnp.log(growth[steps // 2 :])))


def probe_vector(like: Tree) -> Tree:
    """A fixed random direction, so that estimates are reproducible."""
    return tree.standard_normal(jax.random.key(0), like)


def basis_dot(basis: Tree, u: Tree) -> Float[Array, " m"]:
    """Inner products of every basis vector (leading axis) with ``u``."""
    products = jax.tree.map(lambda B, x: jnp.tensordot(B, x, x.ndim), basis, u)
    return sum(jax.tree.leaves(products))  # type: ignore[return-value]  # sum starts at the int 0


def basis_combine(basis: Tree, coefficients: Float[Array, " m"]) -> Tree:
    """``sum_j coefficients[j] basis[j]``."""
    return jax.tree.map(lambda B: jnp.tensordot(coefficients.astype(B.dtype), B, 1), basis)


def _tridiagonal(diagonal: Float[Array, " m"], off_diagonal: Float[Array, " m"]) -> Float[Array, "m m"]:
    """The Lanczos matrix, decoupled after an exhausted invariant subspace."""
    alive = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(off_diagonal[:-1] > 0).astype(bool)])
    diagonal = jnp.where(alive, diagonal, diagonal[0])
    return jnp.diag(diagonal) + jnp.diag(off_diagonal[:-1], 1) + jnp.diag(off_diagonal[:-1], -1)
