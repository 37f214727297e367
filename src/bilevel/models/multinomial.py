"""Multinomial (softmax) logistic regression with an intercept and one penalty per feature."""

from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel.certificates.constants import Constants
from bilevel.models.samples import Instance, Samples, designs, floating, mean, penalties, quadratic, spectrum
from bilevel.models.spectra import gram_range, longest_row
from bilevel.problems import Problem, minimization

# Of logsumexp: its Hessian diag(p) - p p^T, and its third derivative [h, h, h], the third central moment under p
# of a unit vector h, whose entries are within sqrt(2) of each other: at most sqrt(2)^3 max s (1 - s) (1 - 2 s).
LSE2 = 1 / 2
LSE3 = 2**0.5 / (3 * 3**0.5)


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


def constants(lam: LogPenalties, lower_data: Samples, upper_data: Samples) -> Constants:
    """Constants of :func:`loss` and :func:`upper`, for all w; weights not negative.

    With a constant feature for the intercepts, ``A(w)`` is the mean of ``x_i x_i^T (x) (diag(p_i) - p_i p_i^T)``
    plus the penalties, or for the intercepts the gauge, whose eigenvalue is ``1 / classes``. Where probabilities
    saturate the curvature of the intercepts vanishes, so that there is no ``mu`` for all w; but
    ``|D^3 logsumexp[h, h, u]| <= sqrt(2) |u| D^2 logsumexp[h, h]`` makes both levels self-concordant with
    ``sqrt(2) max_i |x_i|``. ``B(w)`` maps ``lam`` to ``penalty_j (shared + deviation_j) w_j``:
    ``|B(w)| <= sqrt(2) max(penalty) |w|``. Cost: O(n d^2 + d^3).
    """
    strongest = jnp.max(jnp.exp(lam["shared"] + lam["deviation"]))
    X, X_upper = _with_intercept(lower_data.X), _with_intercept(upper_data.X)
    gram, gram_upper = gram_range(X, lower_data.weights)[1], gram_range(X_upper, upper_data.weights)[1]
    longest = longest_row(X)
    return Constants(
        L=LSE2 * gram + jnp.maximum(strongest, 0.5), nu1=LSE3 * gram * longest, nu2=2**0.5 * strongest, B0=0.0,
        mu1=LSE2 * gram_upper, mu2=0.0, self_concordance=2**0.5 * jnp.maximum(longest, longest_row(X_upper)),
    )  # fmt: skip


def _with_intercept(X: Float[Array, "n d"]) -> Float[Array, "n d+1"]:
    return jnp.concatenate([X, jnp.ones_like(X[:, :1])], axis=1)


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
