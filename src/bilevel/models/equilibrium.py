"""Equilibrium model: the state of every sample is the fixed point of one tanh layer."""

from typing import Any, TypedDict

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel.models import multinomial
from bilevel.models.samples import Instance, Samples, floating, normal_contraction
from bilevel.problems import Problem, fixed_point


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
