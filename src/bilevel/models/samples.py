"""What the families share: their data, the terms of their losses, and draws of known conditioning."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

Tree = Any


class Samples(NamedTuple):
    """A table of samples.

    Attributes
    ----------
    X
        Features, one row a sample.
    y
        Targets: real numbers, labels in {-1, +1}, or class indices 0, 1, ..., as the family asks.
    weights
        Weight of every sample in the mean ``sum_i s_i l_i / n``; None for ones. Weights of mean one keep the
        scale of the loss: 0/1 weights that select m of n rows are multiplied by n / m.
    """

    X: Float[Array, "n d"]
    y: Shaped[Array, " n"]
    weights: Float[Array, " n"] | None = None


class BiasedSamples(NamedTuple):
    """Regression samples with a fixed strength ``beta`` of the quadratic regularizer."""

    X: Float[Array, "n d"]
    y: Float[Array, " n"]
    beta: Float[Array, ""]


class Instance(NamedTuple):
    """One draw of a family: hyperparameters, starting point, and the data of the two levels."""

    lam: Tree
    w0: Tree
    lower_data: Tree
    upper_data: Tree


def mean(losses: Float[Array, " n"], weights: Float[Array, " n"] | None = None) -> Float[Array, ""]:
    """``sum_i s_i l_i / n``."""
    return jnp.mean(losses if weights is None else weights * losses)


def half_squares(z: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """``1/2 (z - y)^2``, the loss of ridge regression on each row."""
    return 0.5 * jnp.square(z - y)


def squared_error(
    prediction: Float[Array, " n"], y: Float[Array, " n"], weights: Float[Array, " n"] | None = None
) -> Float[Array, ""]:
    """``1/(2n) sum_i s_i (prediction_i - y_i)^2``."""
    return mean(half_squares(prediction, y), weights)


def quadratic(w: Float[Array, "..."], penalties: Float[Array, "..."]) -> Float[Array, ""]:
    """``1/2 sum_j penalties_j w_j^2``; one penalty for all where it is a scalar."""
    return 0.5 * jnp.sum(penalties * jnp.square(w))


def floating(value: Any, dtype: Any = None) -> Float[Array, "..."]:
    """Array of ``dtype``, or of the default floating dtype where it is None."""
    return jnp.asarray(value, jnp.result_type(float) if dtype is None else dtype)


def orthonormal(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Random n x d matrix, n >= d, with orthonormal columns."""
    return np.linalg.qr(rng.standard_normal((n, d)))[0]


def spectrum(rng: np.random.Generator, d: int, condition: float) -> np.ndarray:
    """Random symmetric d x d matrix with eigenvalues from ``1 / condition`` to 1, a geometric sequence."""
    Q = orthonormal(rng, d, d)
    return (Q * np.geomspace(1.0, 1.0 / condition, d)) @ Q.T


def penalties(rng: np.random.Generator, d: int, condition: float) -> np.ndarray:
    """Random penalties below the least eigenvalue of :func:`spectrum`: the rest is a Gram matrix."""
    return rng.uniform(0.25, 0.75, d) / condition


def designs(rng: np.random.Generator, n: int, gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Training features with ``X^T X / n = gram``, and Gaussian validation features of that covariance."""
    d = len(gram)
    if n < d:
        raise ValueError(f"A Gram matrix of full rank needs n >= d samples, but n is {n} and d is {d}.")
    root = np.linalg.cholesky(gram).T
    return np.sqrt(n) * orthonormal(rng, n, d) @ root, rng.standard_normal((n, d)) @ root


def normal_contraction(rng: np.random.Generator, n: int, condition: float) -> np.ndarray:
    """Random normal, nonsymmetric n x n matrix M, n >= 2, of 2-norm q < 1 with ``cond(I - M) = condition``.

    With ``q = (condition - 1) / (condition + 1)`` the eigenvalues are ``q``, ``-q`` and complex pairs inside
    that circle, so the singular values ``|1 - eigenvalue|`` of ``I - M`` run from ``1 - q`` to ``1 + q``.
    """
    q = (condition - 1.0) / (condition + 1.0)
    T = np.zeros((n, n))
    T[0, 0], T[1, 1] = q, -q
    for i in range(2, n - 1, 2):
        radius, angle = q * rng.uniform(0.2, 0.95), rng.uniform(0.0, np.pi)
        c, s = radius * np.cos(angle), radius * np.sin(angle)
        T[i : i + 2, i : i + 2] = [[c, -s], [s, c]]
    Q = orthonormal(rng, n, n)
    return Q @ T @ Q.T


def regression(
    rng: np.random.Generator, n: int, gram: np.ndarray, dtype: Any = None
) -> tuple[Samples, Samples, np.ndarray]:
    """Training and validation samples of ``y = X w + noise``, and that ``w``."""
    w = rng.standard_normal(len(gram))
    tables = [(X, X @ w + 0.1 * rng.standard_normal(n)) for X in designs(rng, n, gram)]
    lower, upper = (Samples(floating(X, dtype), floating(y, dtype)) for X, y in tables)
    return lower, upper, w
