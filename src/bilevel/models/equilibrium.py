"""Equilibrium model: the state of every sample is the fixed point of one tanh layer."""

from typing import Any, TypedDict

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel.certificates.constants import Constants
from bilevel.models import multinomial
from bilevel.models.samples import Instance, Samples, floating, normal_contraction
from bilevel.models.spectra import gram_range, greatest_singular_value, longest_row
from bilevel.problems import Problem, fixed_point

TANH2 = 4 / (3 * 3**0.5)  # max |tanh''|


class Parameters(TypedDict):
    """The layer, and the linear readout of its states. A contraction where ``|A|_2 < 1``."""

    A: Float[Array, "h h"]
    B: Float[Array, "h p"]
    c: Float[Array, " h"]
    coef: Float[Array, "h classes"]
    intercept: Float[Array, " classes"]


def fp_map(w: Float[Array, "n h"], lam: Parameters, data: Samples) -> Float[Array, "n h"]:
    """``w_i -> tanh(A w_i + B x_i + c)`` for every sample i."""
    return jnp.tanh(w @ lam["A"].T + data.X @ lam["B"].T + lam["c"][None])


def upper(w: Float[Array, "n h"], lam: Parameters, data: Samples) -> Float[Array, ""]:
    """Mean cross-entropy of ``softmax(coef^T w_i + intercept)``: the states are a classifier's features."""
    readout = multinomial.Weights(coef=lam["coef"], intercept=lam["intercept"])
    return multinomial.cross_entropy(readout, Samples(w, data.y, data.weights))


def problem() -> Problem:
    """Train layer and readout of an equilibrium model.

    Both data are the same :class:`~bilevel.models.samples.Samples`, with class indices as ``y``.

    References
    ----------
    Grazzi, Franceschi, Pontil, Salzo (2020), arXiv 2006.16218, Section 3.2.
    """
    return Problem(fixed_point(fp_map), upper)


def constants(lam: Parameters, lower_data: Samples, upper_data: Samples) -> Constants:
    """Constants of the map and of :func:`upper`, for all w, where ``q = |A| < 1``; weights not negative.

    ``A(w)`` has a block ``I - diag(tanh'(z_i)) A`` for every sample, ``z_i = A w_i + B x_i + c``:
    ``nu1 = max|tanh''| |A| max_j |A_j|`` with the rows A_j. With ``u_i = (w_i, x_i, 1)`` and ``P = (A, B, c)``,
    ``B(w)`` maps dP to the rows ``-tanh'(z_i) dP u_i``, so ``|B(w)| <= |[X, 1]| + |w|``. Against the solution,
    ``diag(tanh'(z)) dP (w_i - w_i*)`` and ``(tanh'(z) - tanh'(z*)) dP u_i*`` give
    ``nu2 = 1 + max|tanh''| max_j |A_j| max_i |u_i*|``; there ``|w_i*|`` is at most ``sqrt(h)`` and
    ``|B x_i + c| / (1 - q)``. With the readout R and its probabilities p, whose derivative is at most 1/2,
    ``mu1 = max_i (s_i / n) |R|^2 / 2``, and ``d_(coef, intercept) U = sum_i (s_i / n) (w_i, 1) (p_i - onehot)^T``
    gives ``mu2^2 = sum_i (s_i / n)^2 (sqrt(2) + |R| |(w_i*, 1)| / 2)^2``. Cost: O(n (h + p)^2 + h^3).
    """
    X, n = lower_data.X, len(lower_data.y)
    q, row, R = greatest_singular_value(lam["A"]), longest_row(lam["A"]), greatest_singular_value(lam["coef"])
    drive = jnp.sum(jnp.square(X @ lam["B"].T + lam["c"][None]), axis=1)
    squares = jnp.minimum(len(lam["c"]), drive / jnp.square(jnp.maximum(1 - q, 0.0)))  # |w_i*|^2
    u = jnp.sqrt(jnp.max(squares + jnp.sum(jnp.square(X), axis=1) + 1))
    inputs = jnp.concatenate([X, jnp.ones_like(X[:, :1])], axis=1)
    share = (jnp.ones(n, X.dtype) if upper_data.weights is None else upper_data.weights) / n
    readout = share * (2**0.5 + 0.5 * R * jnp.sqrt(squares + 1))
    return Constants(
        mu=1 - q, L=1 + q, q=q, nu1=TANH2 * q * row, nu2=1 + TANH2 * row * u,
        B0=jnp.sqrt(n * gram_range(inputs)[1]), mu1=0.5 * jnp.max(share) * R**2, mu2=jnp.linalg.norm(readout),
    )  # fmt: skip


def sample(
    seed: int, n: int, d: int, condition: float = 10.0, dtype: Any = None, features: int = 5, classes: int = 3
) -> Instance:
    """Random instance with n samples and d states each, so that w has n d entries.

    ``I - A`` has this condition number, which bounds that of the problem: where tanh saturates the map
    contracts more. Along its least contracting direction u, ``w = a u``, the state solves
    ``(1 - q) a + a^3 sum(u^4) / 3 = drive`` with ``sum(u^4)`` near ``3 / d``: a drive of order
    ``(1 - q)^{3/2} d^{1/2}`` keeps both terms in play.
    """
    rng = np.random.default_rng(seed)
    drive = min(np.sqrt(d) * (2.0 / (condition + 1.0)) ** 1.5, 1.0)  # q = (condition - 1) / (condition + 1)
    lam = Parameters(
        A=floating(normal_contraction(rng, d, condition), dtype),
        B=floating(rng.standard_normal((d, features)) / np.sqrt(features), dtype),
        c=floating(drive * rng.standard_normal(d), dtype),
        coef=floating(rng.standard_normal((d, classes)) / np.sqrt(d), dtype),
        intercept=floating(0.1 * rng.standard_normal(classes), dtype),
    )
    X = drive * rng.standard_normal((n, features))
    data = Samples(floating(X, dtype), jnp.asarray(rng.integers(classes, size=n)))
    return Instance(lam, floating(np.zeros((n, d)), dtype), data, data)
