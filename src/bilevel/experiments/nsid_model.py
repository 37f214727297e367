"""The elastic net of ``nsid``: the problem, its data, and its hypergradient in closed form."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bilevel.models.samples import Samples, floating, squared_error
from bilevel.problems import Problem, composite
from bilevel.prox import elastic_net

REFERENCE_STEPS = 20_000  # of the map, to find the support


class Penalties(NamedTuple):
    """``lam``: weights of the norms."""

    l1: Any
    l2: Any


class Step(NamedTuple):
    """Extreme eigenvalues of ``X^T X / n``, of which the step is made."""

    mu: Any
    L: Any

    def at(self, l2: Any) -> Any:
        """``2 / (L + mu + 2 l2)``."""
        return 2 / (self.L + self.mu + 2 * l2)

    def q(self, l2: Any) -> Any:
        """Contraction factor of the map with it: of the gradient step, over that of the prox."""
        step = self.at(l2)
        return max(abs(1 - step * self.mu), abs(1 - step * self.L)) / (1 + step * l2)


class Data(NamedTuple):
    """Lower-level data: rows, and what the step is made of."""

    rows: Any  # Samples
    step: Any  # Step


BATCH_AXES = Data(0, None)


def smooth(w: Float[Array, " p"], _lam: Penalties, data: Data) -> Float[Array, ""]:
    """``|X w - y|^2 / (2 n)``."""
    return squared_error(data.rows.X @ w, data.rows.y, None)


def upper(w: Float[Array, " p"], _lam: Penalties, data: Samples) -> Float[Array, ""]:
    """The same of validation rows."""
    return squared_error(data.X @ w, data.y, None)


def _prox(u: Float[Array, " p"], lam: Penalties, step: Any) -> Float[Array, " p"]:
    return elastic_net(u, lam.l1, lam.l2, step)


PROBLEM = Problem(composite(smooth, _prox, lambda lam, data: data.step.at(lam.l2)), upper)


class Case(NamedTuple):
    """The elastic net at one ``lam``, with its hypergradient and its solution's support."""

    lam: Penalties
    lower_data: Data
    upper_data: Samples
    truth: Float[np.ndarray, " 2"]
    support: Bool[np.ndarray, " p"]


def independent(rng: np.random.Generator) -> tuple[Samples, Samples]:
    """100 training and 240 validation rows of 100 independent features, 30 of which tell, with noise 0.1."""
    X = rng.standard_normal((340, 100))
    y = X @ _weights(rng) + 0.1 * rng.standard_normal(340)
    return _split(X, y, 100)


def correlated(rng: np.random.Generator, train: int) -> tuple[Samples, Samples]:
    """Training rows and 2.4 times as many for validation; the 30 features that tell are mixtures, with noise 0.01."""
    X = rng.standard_normal((train + train * 12 // 5, 100))
    mixing = rng.standard_normal((30, 30))
    X[:, :30] = X[:, :30] @ (mixing / np.linalg.norm(mixing, 2))
    y = X @ _weights(rng) + 0.01 * rng.standard_normal(len(X))
    return _split(X, y, train)


def _weights(rng: np.random.Generator) -> Float[np.ndarray, " p"]:
    """``|N(0, 1)|`` for the first 30 features, zero for the others."""
    return np.concatenate([np.abs(rng.standard_normal(30)), np.zeros(70)])


def _split(X: np.ndarray, y: np.ndarray, train: int) -> tuple[Samples, Samples]:
    first, second = slice(train), slice(train, None)
    return Samples(floating(X[first]), floating(y[first])), Samples(floating(X[second]), floating(y[second]))


def make_case(l1: float, l2: float, train: Samples, valid: Samples) -> Case:
    """The closed form: ``dw_S/dl1 = -A^-1 sign(w_S)``, ``dw_S/dl2 = -A^-1 w_S``, ``A = X_S^T X_S / n + l2 I``."""
    spectrum = np.linalg.eigvalsh(np.asarray(train.X.T @ train.X) / len(train.y))
    data = Data(train, Step(*(floating(max(value, 0.0)) for value in spectrum[[0, -1]])))
    lam = Penalties(floating(l1), floating(l2))
    w = np.asarray(_iterate(lam, data, REFERENCE_STEPS))
    S = w != 0
    X, V = np.asarray(train.X)[:, S], np.asarray(valid.X)[:, S]
    A = X.T @ X / len(X) + l2 * np.eye(int(S.sum()))
    w_S = np.linalg.solve(A, X.T @ np.asarray(train.y) / len(X) - l1 * np.sign(w[S]))
    v = np.linalg.solve(A, V.T @ (V @ w_S - np.asarray(valid.y)) / len(V))
    return Case(lam, data, valid, -np.array([np.sign(w_S) @ v, w_S @ v]), S)


@jax.jit
def _iterate(lam: Penalties, data: Data, steps: Any) -> Float[Array, " p"]:
    """``w`` after so many steps of the map from zero."""
    w0 = jnp.zeros_like(data.rows.X[0])
    return jax.lax.fori_loop(0, steps, lambda _, w: PROBLEM.lower.function(w, lam, data), w0)


def identification(case: Case, last: int) -> int:
    """Step from which on, up to ``last``, the support of the iterates is that of the solution; else ``last + 1``."""
    w0 = jnp.zeros_like(case.lower_data.rows.X[0])

    def advance(w: Array, _: None) -> tuple[Array, Array]:
        w = PROBLEM.lower.function(w, case.lam, case.lower_data)
        return w, jnp.all((w != 0) == case.support)

    _, right = jax.lax.scan(advance, w0, length=last)
    wrong = np.flatnonzero(~np.asarray(right))
    return int(wrong[-1]) + 2 if wrong.size else 1
