"""Contraction and noise of a stochastic map, estimated from products with its Jacobians.

Both come from averages over a few batches. The least eigenvalue of an average over some of the data lies in the mean
below, the largest above that of all of them, so that the steps derived are rather too small than too large.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel import tree
from bilevel.linear.operator import LinearOperator
from bilevel.linear.spectral import ESTIMATE_STEPS, extreme_eigenvalues, largest_eigenvalue, probe_vector
from bilevel.schedules import Decreasing, from_rates

Tree = Any
Product = Callable[[Tree, Any], tuple[Tree, Any]]

AVERAGED = 16  # batches whose average stands for the whole in the spectrum
SAMPLED = 32  # batches that give the variance


class Samples(NamedTuple):
    """Samples of the Jacobian of a residual.

    Attributes
    ----------
    product, transposed
        ``(x, stream) -> A_z x, stream`` and ``A_z^T x``; the same stream gives the same z.
    symmetric
        Whether ``A_z`` is symmetric.
    epoch
        Number of draws after which all data have been met, None where there is none.
    """

    product: Product
    transposed: Product
    symmetric: bool
    epoch: int | None


class Rates(NamedTuple):
    """``I - a A`` is a ``q``-contraction; samples have variance at most about ``s1 + s2 norm(a r)^2``."""

    step: Any
    q: Float[Array, ""]
    s2: Float[Array, ""]
    matvecs: int

    @property
    def schedule(self) -> Decreasing:
        """The decreasing steps of these rates."""
        return from_rates(self.q, self.s2)


def estimate_rates(samples: Samples, stream: Any, like: Tree, step: Any = None) -> Rates:
    """Rates of the map ``x - a (A_z x - b_z)``; a step that is not given becomes ``1 / L``.

    ``1 - q^2`` is kept above the square root of machine epsilon: where no contraction is seen, the schedule is constant
    for as many steps.

    Notes
    -----
    Cost: 32 Lanczos steps with the average of 16 batches, twice that for nonsymmetric samples, and 32 batches.
    """
    draws = AVERAGED if samples.epoch is None else min(AVERAGED, samples.epoch)

    def mean(product: Product) -> Callable[[Tree], Tree]:
        return lambda x: tree.scale(1 / draws, _totals(product, x, stream, draws)[0])

    A = LinearOperator(mean(samples.product), mean(samples.transposed), samples.symmetric)
    step, q, products = _contraction(A, like, step)
    q = jnp.minimum(q, jnp.sqrt(1 - tree.eps(like) ** 0.5))
    return Rates(step, q, _noise(samples, stream, like), products * draws + SAMPLED)


def _contraction(A: LinearOperator, like: Tree, step: Any) -> tuple[Any, Float[Array, ""], int]:
    """Step, ``norm(I - a A)`` and the products it took."""
    if A.symmetric:
        least, largest, products = extreme_eigenvalues(A, like)
        step = 1 / jnp.abs(largest) if step is None else step
        return step, jnp.maximum(jnp.abs(1 - step * least), jnp.abs(1 - step * largest)), products

    def gram(x: Tree) -> Tree:  # (I - a A)^T (I - a A) x
        y = tree.axpy(-step, A.mv(x), x)
        return tree.axpy(-step, A.mv_transpose(y), y)

    largest, products = largest_eigenvalue(LinearOperator(gram, gram, symmetric=True), like, 2 * ESTIMATE_STEPS)
    return step, jnp.sqrt(jnp.abs(largest)), 2 * products


def _noise(samples: Samples, stream: Any, like: Tree) -> Float[Array, ""]:
    """``s2 = E|A_z u - A u|^2 / |A u|^2`` for a random direction u, the distance to the solution.

    From the distance, not from the residual itself: noise that stays at the solution belongs to s1.
    """
    total, squares = _totals(samples.product, probe_vector(like), stream, SAMPLED)
    of_mean = tree.dot(total, total) / SAMPLED**2
    variance = jnp.maximum(squares - SAMPLED * of_mean, 0.0) / (SAMPLED - 1)
    # |mean|^2 holds a part of the variance; where that is nearly all of it, the ratio is as large as can be told.
    signal = jnp.maximum(of_mean - variance / SAMPLED, of_mean / SAMPLED)
    return jnp.where(variance > 0, variance / signal, 0.0)


def _totals(product: Product, x: Tree, stream: Any, draws: int) -> tuple[Tree, Float[Array, ""]]:
    """Sums of ``A_z x`` and of its squared norm over the next draws."""

    def body(carry: Any, _: None) -> Any:
        total, squares, stream = carry
        y, stream = product(x, stream)
        return (tree.add(total, y), squares + tree.dot(y, y), stream), None

    start = tree.zeros_like(x), jnp.zeros((), tree.dtype(x)), stream
    return jax.lax.scan(body, start, length=draws)[0][:2]
