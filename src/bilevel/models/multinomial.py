"""Multinomial (softmax) logistic regression with an intercept and one penalty per feature."""

from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel.models.samples import Instance, Samples, designs, floating, mean, penalties, quadratic, spectrum
from bilevel.problems import Problem, minimization


class Weights(TypedDict):
    """Coefficients, a column for each class, and intercepts."""

    coef: Float[Array, "d classes"]
    intercept: Float[Array, " classes"]


class LogPenalties(TypedDict):
    """``log penalty_j = shared + deviation_j``: what all features share, and how each departs from it."""

    shared: Float[Array, ""]
    deviation: Float[Array, " d"]


def loss(w: Weights, lam: LogPenalties, data: Samples) -> Float[Array, ""]:
    """``1/n sum_i (logsumexp z_i - z_i[y_i]) + 1/2 sum_jc penalty_j w_jc^2 + 1/2 mean(b)^2``.

    Here ``z = X w + b``, and the intercepts b are not penalized. The last term only fixes their common
    shift, which changes no probability: without it the problem is singular; at the solution it is zero.
    """
    strengths = jnp.exp(lam["shared"] + lam["deviation"])
    gauge = 0.5 * jnp.square(jnp.mean(w["intercept"]))
    return cross_entropy(w, data) + quadratic(w["coef"], strengths[:, None]) + gauge


def upper(w: Weights, _lam: LogPenalties, data: Samples) -> Float[Array, ""]:
    """``1/n sum_i (logsumexp z_i - z_i[y_i])``."""
    return cross_entropy(w, data)


def cross_entropy(w: Weights, data: Samples) -> Float[Array, ""]:
    """``1/n sum_i (logsumexp z_i - z_i[y_i])`` with ``z = X w + b``."""
    z = data.X @ w["coef"] + w["intercept"][None]
    chosen = jax.nn.one_hot(data.y, z.shape[1], dtype=z.dtype)
    return mean(row_losses(z, chosen), data.weights)


def row_losses(z: Float[Array, "... classes"], chosen: Float[Array, "... classes"]) -> Float[Array, "..."]:
    """``logsumexp z - z[y]`` on each row, the classes y one-hot."""
    return jax.nn.logsumexp(z, axis=-1) - jnp.sum(chosen * z, axis=-1)


def problem() -> Problem:
    """Tune the penalties of multinomial logistic regression on validation samples.

    Both data are :class:`~bilevel.models.samples.Samples` with class indices as ``y``.
    """
    return Problem(minimization(loss), upper)


def zeros(d: int, classes: int, dtype: Any = None) -> Weights:
    """Zero weights, the starting point."""
    return Weights(coef=floating(np.zeros((d, classes)), dtype), intercept=floating(np.zeros(classes), dtype))


def sample(seed: int, n: int, d: int, condition: float = 10.0, dtype: Any = None, classes: int = 3) -> Instance:
    """Random instance with n >= d training and n validation samples.

    At ``w = 0`` the condition number of A is between a third of ``condition`` and ``condition`` (from 4 on):
    there the penalties, between one and three times ``1 / condition``, are its least eigenvalues.
    """
    rng = np.random.default_rng(seed)
    condition = max(condition / 4.0, 1.0)
    strengths = penalties(rng, d, condition)
    gram = classes * (spectrum(rng, d, condition) - np.diag(strengths))  # softmax'' at 0 is (I - 11^T/c) / c
    w = rng.standard_normal((d, classes))
    w *= 1.5 / np.sqrt(np.einsum("ic,ij,jc->c", w, gram, w))
    lower_data, upper_data = (_labeled(rng, X, w, dtype) for X in designs(rng, n, gram))
    shared = np.mean(np.log(strengths))
    lam = LogPenalties(shared=floating(shared, dtype), deviation=floating(np.log(strengths) - shared, dtype))
    return Instance(lam, zeros(d, classes, dtype), lower_data, upper_data)


def _labeled(rng: np.random.Generator, X: np.ndarray, w: np.ndarray, dtype: Any) -> Samples:
    scores = X @ w + rng.gumbel(size=(len(X), w.shape[1]))
    return Samples(floating(X, dtype), jnp.asarray(np.argmax(scores, axis=1)))
