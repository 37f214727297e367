"""The problems of ``benchmarks/first_call.py``: functions in JAX, data in NumPy alone.

Every row is a lower-level function ``(w, lam, data)``, an upper objective, and what it is given; no library's names
stand here, so that all libraries are handed the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp, softplus


@dataclass(frozen=True)
class Row:
    """One problem: ``lower`` is a loss, or a map where ``kind`` is ``"fixed_point"``.

    ``upper`` takes all of ``w``. With ``members``, ``lower`` is that of one member: ``member_axes`` are the
    ``in_axes`` of ``jax.vmap`` for ``(w, lam, lower_data)``.
    """

    name: str
    title: str
    lower: Callable[..., Any]
    upper: Callable[..., Any]
    sample: Callable[[int], dict[str, Any]]  # of a seed: lam, w0, lower_data, upper_data in NumPy
    kind: str = "minimization"
    members: int | None = None
    member_axes: Any = None
    dense: bool = False  # whether hand-written code would factorize


def whole(row: Row) -> Callable[..., Any]:
    """The lower-level loss of all members as one scalar, for libraries that know of no members."""
    if row.members is None:
        return row.lower

    def total(w, lam, data):
        return jax.vmap(row.lower, in_axes=row.member_axes)(w, lam, data).sum()

    return total


# Logistic regression, one penalty per feature.


def logistic(w, lam, data):
    X, y = data
    return jnp.mean(softplus(-y * (X @ w))) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


def logistic_validation(w, _lam, data):
    X, y = data
    return jnp.mean(softplus(-y * (X @ w)))


def logistic_sample(n: int, d: int, condition: float) -> Callable[[int], dict[str, Any]]:
    """As many validation as training rows; the Hessian at zero has about this condition number."""

    def sample(seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        spectrum = np.geomspace(1.0, 1.0 / condition, d)
        turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
        root = 2.0 * turn * np.sqrt(spectrum)  # psi''(0) = 1/4
        w = rng.standard_normal(d)
        w *= 1.5 / np.linalg.norm(root.T @ w)
        tables = []
        for _ in range(2):
            X = rng.standard_normal((n, d)) @ root.T
            tables.append((X, np.where(X @ w + rng.logistic(size=n) > 0, 1.0, -1.0)))
        lam = np.log(0.5 / condition) + 0.3 * rng.standard_normal(d)
        return {"lam": lam, "w0": np.zeros(d), "lower_data": tables[0], "upper_data": tables[1]}

    return sample


# Multinomial logistic regression on ten classes.


def multinomial(w, lam, data):
    return (
        cross_entropy(w, data) + 0.5 * jnp.sum(jnp.exp(lam)[:, None] * w["coef"] ** 2) + 5e-4 * jnp.sum(w["bias"] ** 2)
    )


def cross_entropy(w, data):
    X, Y = data  # classes one-hot
    z = X @ w["coef"] + w["bias"][None]
    return jnp.mean(logsumexp(z, axis=1) - jnp.sum(z * Y, axis=1))


def multinomial_validation(w, _lam, data):
    return cross_entropy(w, data)


def multinomial_sample(n: int, d: int, classes: int) -> Callable[[int], dict[str, Any]]:
    """Classes around their centers, features of falling size."""

    def sample(seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        sizes = np.geomspace(1.0, 0.1, d)
        centers = rng.standard_normal((classes, d)) * 0.6
        tables = []
        for _ in range(2):
            labels = rng.integers(classes, size=n)
            X = (centers[labels] + rng.standard_normal((n, d))) * sizes
            tables.append((X, np.eye(classes)[labels]))
        w0 = {"coef": np.zeros((d, classes)), "bias": np.zeros(classes)}
        lam = np.log(1e-3) + 0.3 * rng.standard_normal(d)
        return {"lam": lam, "w0": w0, "lower_data": tables[0], "upper_data": tables[1]}

    return sample


# Ridge regression, one penalty per feature; a dense quadratic.


def ridge(w, lam, data):
    X, y = data
    return jnp.mean((X @ w - y) ** 2) + jnp.sum(jnp.exp(lam) * w**2)


def ridge_validation(w, _lam, data):
    X, y = data
    return jnp.mean((X @ w - y) ** 2)


def ridge_sample(n: int, d: int) -> Callable[[int], dict[str, Any]]:
    def sample(seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        mix = np.linalg.qr(rng.standard_normal((d, d)))[0] * np.geomspace(1.0, 0.05, d)
        w = rng.standard_normal(d)
        tables = []
        for _ in range(2):
            X = rng.standard_normal((n, d)) @ mix.T
            tables.append((X, X @ w + rng.standard_normal(n)))
        lam = np.log(1e-3) + 0.3 * rng.standard_normal(d)
        return {"lam": lam, "w0": np.zeros(d), "lower_data": tables[0], "upper_data": tables[1]}

    return sample


def quadratic(w, lam, data):
    H, b = data
    return 0.5 * jnp.sum(w * (H @ w)) + 0.5 * jnp.sum(jnp.exp(lam) * w**2) - jnp.sum(b * w)


def quadratic_upper(w, _lam, data):
    return 0.5 * jnp.sum((w - data) ** 2)


def quadratic_sample(d: int, condition: float) -> Callable[[int], dict[str, Any]]:
    def sample(seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
        H = (turn * np.geomspace(1.0, 1.0 / condition, d)) @ turn.T
        lam = np.log(1.0 / condition) + 0.3 * rng.standard_normal(d)
        data = ((H + H.T) / 2, rng.standard_normal(d))
        return {"lam": lam, "w0": np.zeros(d), "lower_data": data, "upper_data": rng.standard_normal(d)}

    return sample


# A task of iMAML: a small network held near the meta-parameters.

PROXIMAL = 2.0


def task(w, lam, data):
    near = sum(jnp.sum((a - b) ** 2) for a, b in zip(jax.tree.leaves(w), jax.tree.leaves(lam), strict=True))
    return network_loss(w, data) + 0.5 * PROXIMAL * near


def task_validation(w, _lam, data):
    return network_loss(w, data)


def network_loss(w, data):
    X, y = data
    hidden = jnp.tanh(X @ w["W1"] + w["b1"][None])
    hidden = jnp.tanh(hidden @ w["W2"] + w["b2"][None])
    return jnp.mean((hidden @ w["W3"] - y) ** 2)


def task_sample(n: int, d: int, width: int) -> Callable[[int], dict[str, Any]]:
    def sample(seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        lam = {
            "W1": rng.standard_normal((d, width)) / d**0.5, "b1": 0.1 * rng.standard_normal(width),
            "W2": rng.standard_normal((width, width)) / width**0.5, "b2": 0.1 * rng.standard_normal(width),
            "W3": rng.standard_normal(width) / width**0.5,
        }  # fmt: skip
        slope = rng.standard_normal(d)
        tables = []
        for _ in range(2):
            X = rng.standard_normal((n, d))
            tables.append((X, 2.0 * np.sin(X @ slope)))
        return {"lam": lam, "w0": lam, "lower_data": tables[0], "upper_data": tables[1]}

    return sample


# An equilibrium network: all rows of a batch at once.


def equilibrium(w, lam, data):
    return jnp.tanh(w @ lam["A"] + data @ lam["B"] + lam["c"][None])


def equilibrium_upper(w, _lam, data):
    return 0.5 * jnp.mean(jnp.sum((w[:, : data.shape[1]] - data) ** 2, axis=1))


def equilibrium_sample(batch: int, d: int, h: int, radius: float) -> Callable[[int], dict[str, Any]]:
    """``norm(A)`` is the ``radius``, and so the map contracts."""

    def sample(seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        A = rng.standard_normal((h, h))
        A *= radius / np.linalg.norm(A, 2)
        lam = {"A": A, "B": rng.standard_normal((d, h)) / d**0.5, "c": 0.1 * rng.standard_normal(h)}
        return {
            "lam": lam, "w0": np.zeros((batch, h)), "lower_data": rng.standard_normal((batch, d)),
            "upper_data": rng.standard_normal((batch, 10)),
        }  # fmt: skip

    return sample


# Five folds of a logistic regression: one X, a weight of every row in every fold, an intercept.


def fold(w, lam, data):
    X, y, weights = data
    return jnp.sum(weights * fold_row_losses(w, X, y)) + 0.5 * jnp.sum(jnp.exp(lam) * w[:-1] ** 2) + 5e-4 * w[-1] ** 2


def fold_row_losses(w, X, y):
    return softplus(-y * (X @ w[:-1] + w[-1]))


def folds_validation(w, _lam, data):
    X, y, weights = data  # those of the rows left out
    losses = jax.vmap(fold_row_losses, in_axes=(0, None, None))(w, X, y)
    return jnp.mean(jnp.sum(weights.T * losses, axis=1))


def folds_sample(n: int, d: int, folds: int) -> Callable[[int], dict[str, Any]]:
    def sample(seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        mix = np.linalg.qr(rng.standard_normal((d, d)))[0] * np.geomspace(1.0, 0.2, d)
        X = rng.standard_normal((n, d)) @ mix.T
        w = rng.standard_normal(d) * (rng.random(d) < 0.1)
        w *= 3.0 / np.linalg.norm(X @ w) * n**0.5
        y = np.where(X @ w + rng.logistic(size=n) > 0, 1.0, -1.0)
        out = np.arange(n)[:, None] % folds == np.arange(folds)[None]
        train, valid = (mask / mask.sum(axis=0) for mask in (~out, out))
        lam = np.log(1e-2) + 0.3 * rng.standard_normal(d)
        return {"lam": lam, "w0": np.zeros((folds, d + 1)), "lower_data": (X, y, train), "upper_data": (X, y, valid)}

    return sample


ROWS = {
    row.name: row
    for row in (
        Row("logistic-5000x500", "logistic, 5000 x 500, condition 364", logistic, logistic_validation,
            logistic_sample(5000, 500, 364)),
        Row("logistic-20000x200", "logistic, 20000 x 200, condition 1362", logistic, logistic_validation,
            logistic_sample(20000, 200, 1362)),
        Row("logistic-500x50", "logistic, 500 x 50, condition 100", logistic, logistic_validation,
            logistic_sample(500, 50, 100), dense=True),
        Row("logistic-2000x2000", "logistic, 2000 x 2000, condition 120", logistic, logistic_validation,
            logistic_sample(2000, 2000, 120)),
        Row("multinomial", "multinomial, 2000 x 100, 10 classes", multinomial, multinomial_validation,
            multinomial_sample(2000, 100, 10)),
        Row("ridge", "ridge, 2000 x 300", ridge, ridge_validation, ridge_sample(2000, 300)),
        Row("quadratic", "quadratic, 1000 unknowns, condition 1000", quadratic, quadratic_upper,
            quadratic_sample(1000, 1000)),
        Row("imaml", "iMAML task, network of 3 layers, 2,120 weights", task, task_validation, task_sample(50, 10, 40)),
        Row("equilibrium", "fixed-point network, 200 units, batch 64", equilibrium, equilibrium_upper,
            equilibrium_sample(64, 50, 200, 0.9), kind="fixed_point"),
        Row("folds", "five folds of logistic regression, 496 weights each", fold, folds_validation,
            folds_sample(1000, 495, 5), members=5, member_axes=(0, None, (None, None, 1))),
    )
}  # fmt: skip
