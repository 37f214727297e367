"""The problem of the benchmarks, in NumPy alone: logistic regression with one penalty per feature.

    w(lam) = argmin_w 1/n sum_i psi(y_i x_i^T w) + 1/2 sum_j lam_j w_j^2,   psi(u) = log(1 + e^-u),
    U(w)   = 1/n sum_i psi(y'_i x'_i^T w) on as many validation samples.

Every library reads the same arrays from one file, and is compared with the same dense solution.
"""

from dataclasses import asdict, dataclass, fields

import numpy as np

PENALTY = 1e-2


@dataclass(frozen=True)
class Inputs:
    """Arrays of one problem; ``step`` is that of gradient descent on the lower level."""

    X: np.ndarray
    y: np.ndarray
    X_valid: np.ndarray
    y_valid: np.ndarray
    lam: np.ndarray
    w0: np.ndarray
    step: np.ndarray

    def astype(self, dtype):
        """The same inputs, rounded."""
        return Inputs(**{name: array.astype(dtype) for name, array in asdict(self).items()})

    def save(self, path):
        np.savez(path, **asdict(self))

    @classmethod
    def load(cls, path):
        with np.load(path) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def draw(n, d):
    """Random inputs in float64; the same at every call."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal(d)
    (X, y), (X_valid, y_valid) = (_table(rng, n, w) for _ in range(2))
    largest = np.linalg.eigvalsh(X.T @ X)[-1]
    step = np.asarray(1.0 / (largest / (4 * n) + PENALTY))  # psi'' <= 1/4
    return Inputs(X, y, X_valid, y_valid, np.full(d, PENALTY), np.zeros(d), step)


def reference(inputs):
    """The hypergradient in float64: Newton's method and one dense solve for the adjoint."""
    at = inputs.astype(np.float64)
    w = at.w0
    for _ in range(100):
        change = np.linalg.solve(_hessian(w, at), _gradient(w, at.X, at.y) + at.lam * w)
        w = w - change
        if np.linalg.norm(change) <= 1e-13 * np.linalg.norm(w):
            break
    v = np.linalg.solve(_hessian(w, at), _gradient(w, at.X_valid, at.y_valid))
    return -w * v


def distance(grad, truth):
    """``norm(grad - truth) / norm(truth)``."""
    return float(np.linalg.norm(np.asarray(grad, np.float64) - truth) / np.linalg.norm(truth))


def _table(rng, n, w):
    """Random samples with labels in {-1, +1}."""
    X = rng.standard_normal((n, len(w)))
    return X, np.where(X @ w + rng.logistic(size=n) > 0, 1.0, -1.0)


def _sigmoid(u):
    return np.exp(-np.logaddexp(0.0, -u))


def _gradient(w, X, y):
    return -(y * _sigmoid(-y * (X @ w))) @ X / len(y)


def _hessian(w, at):
    u = at.X @ w
    return (at.X.T * (_sigmoid(u) * _sigmoid(-u) / len(u))) @ at.X + np.diag(at.lam)
