"""``covtype``: one penalty per class of softmax regression of forest cover types.

100000 of the 581012 rows: those of ``covtype/covtype_100k.npz`` in the folder that ``BILEVEL_DATA`` names, or where
that is not set as many at random of what scikit-learn downloads and checks. The published runs took all rows.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from sklearn.datasets import fetch_covtype
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from bilevel.data.errors import DataError
from bilevel.experiments.mnist import VARIABLE
from bilevel.models.multinomial import row_losses
from bilevel.models.samples import quadratic
from bilevel.problems import Problem, minimization
from bilevel.racing.task import TEST_ERROR, Task, by_automatic_method

ROWS, FEATURES, CLASSES = 100_000, 54, 7
QUICK = 6000
START = -2.0  # of every entry of lam


class Labeled(NamedTuple):
    """Rows of features, and their classes."""

    X: Float[Array, "n d"]
    y: Int[Array, " n"]


def make(seed: int, quick: bool) -> Task:
    """l2 penalties ``exp(lam_c)``: w starts at zero, lam at -2; 64, 16 and 20 % of the rows for the three sets."""
    X, y = _table(seed)
    train, valid, test = _sets(X[: QUICK if quick else None], y[: QUICK if quick else None], seed)
    problem = Problem(minimization(loss), cross_entropy)
    return Task(
        "covtype", f"penalties of softmax regression, {len(train.y)} and {len(valid.y)} rows, {FEATURES} features, "
        f"{CLASSES} classes", problem, jnp.full(CLASSES, START, jnp.float32),
        jnp.zeros((FEATURES, CLASSES), jnp.float32), train, valid,
        metric=lambda w, _lam: float(error_rate(w, test)), metric_name=TEST_ERROR,
        judge=by_automatic_method(problem, train, valid, double=True), logarithmic=False,
    )  # fmt: skip


def loss(w: Float[Array, "d c"], lam: Float[Array, " c"], data: Labeled) -> Float[Array, ""]:
    """``mean_i (logsumexp z_i - z_i[y_i]) + 1/2 sum_c exp(lam_c) |w_c|^2`` with ``z = X w``."""
    return cross_entropy(w, lam, data) + quadratic(w, jnp.exp(lam)[None])


def cross_entropy(w: Float[Array, "d c"], _lam: Any, data: Labeled) -> Float[Array, ""]:
    """``mean_i (logsumexp z_i - z_i[y_i])``."""
    return jnp.mean(losses(w, data))


def losses(w: Float[Array, "d c"], data: Labeled) -> Float[Array, " n"]:
    """``logsumexp z_i - z_i[y_i]`` on every row."""
    return row_losses(data.X @ w, jax.nn.one_hot(data.y, w.shape[1], dtype=w.dtype))


@jax.jit
def error_rate(w: Float[Array, "d c"], data: Labeled) -> Float[Array, ""]:
    """The part of the rows whose class is not the most probable one."""
    return jnp.mean(jnp.argmax(data.X @ w, axis=1) != data.y, dtype=w.dtype)


def standardized(*sets: tuple[np.ndarray, np.ndarray]) -> tuple[Labeled, ...]:
    """Features less their means, over their deviations, of the first set."""
    scaler = StandardScaler().fit(sets[0][0])
    return tuple(Labeled(jnp.asarray(scaler.transform(X), jnp.float32), jnp.asarray(y, jnp.int32)) for X, y in sets)


def _sets(X: np.ndarray, y: np.ndarray, seed: int) -> tuple[Labeled, ...]:
    known, test = train_test_split(np.arange(len(y)), test_size=0.2, random_state=seed)
    train, valid = train_test_split(known, test_size=0.2, random_state=seed)
    return standardized(*((X[rows], y[rows]) for rows in (train, valid, test)))


def _table(seed: int) -> tuple[np.ndarray, np.ndarray]:
    root = os.environ.get(VARIABLE)
    if not root:
        X, y = (np.asarray(part) for part in fetch_covtype(return_X_y=True, random_state=seed, shuffle=True))
        return X[:ROWS], y[:ROWS] - 1
    path = Path(root) / "covtype" / "covtype_100k.npz"
    try:
        with np.load(path) as arrays:
            X, y = arrays["X"].astype(np.float64), arrays["y"]
    except FileNotFoundError as error:
        raise DataError(f"{path}: expected a sample of covtype, but there is no such file") from error
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read as arrays X and y: {error}") from error
    if X.ndim != 2 or X.shape[1] != FEATURES or len(X) != len(y) or len(set(np.unique(y))) != CLASSES:
        raise DataError(f"{path}: expected rows of {FEATURES} features with {CLASSES} classes, but found {X.shape}")
    return X, y
