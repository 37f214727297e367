"""The quickstart against the same run in plain NumPy, and against the best single penalty."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
from scipy.special import expit

pytestmark = pytest.mark.float64

STEPS, TRAINING, BACKWARD, STEP, RATE, MOMENTUM, FLOOR = 1000, 100, 10, 0.1, 1.0, 0.9, 1e-8


@pytest.fixture(scope="module")
def quickstart():
    path = Path(__file__).parents[2] / "examples" / "quickstart.py"
    spec = importlib.util.spec_from_file_location("quickstart", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def curve(quickstart):
    return quickstart.tune(*quickstart.draw(), steps=STEPS)[0]


def test_the_curve_is_that_of_the_same_run_in_numpy(quickstart, curve):
    np.testing.assert_allclose(curve, reference(*quickstart.draw()), rtol=0, atol=1e-6)


def test_it_ends_below_the_best_single_penalty_of_the_same_training(quickstart, curve):
    (X, y), valid = quickstart.draw()

    def single(log_penalty):
        return mean_loss(training(np.full(X.shape[1], np.exp(log_penalty)), X, y)[-1], *valid)

    grid = np.linspace(np.log(FLOOR), np.log(10.0), 60)
    best = grid[np.argmin([single(point) for point in grid])]
    width = grid[1] - grid[0]
    between = scipy.optimize.minimize_scalar(single, bounds=(best - width, best + width), method="bounded")
    assert curve[-1] < min(single(best), between.fun) - 2e-3


def reference(train, valid):
    """Validation losses of the steps: GD on w from zero, truncated reverse mode, momentum on lam."""
    X, y = train
    n, d = X.shape
    lam, momentum, values = np.ones(d), np.zeros(d), []
    for _ in range(STEPS + 1):
        path = training(lam, X, y)
        values.append(mean_loss(path[-1], *valid))
        p = mean_loss_gradient(path[-1], *valid)
        gradient = np.zeros(d)
        for w in path[-2 : -2 - BACKWARD : -1]:
            gradient -= STEP * w * p  # (d_lam Phi)^T p with d_lam Phi = -step diag(w)
            s = expit(X @ w)
            p = p - STEP * (X.T @ (s * (1 - s) * (X @ p)) / n + lam * p)  # (I - step H(w)) p
        momentum = MOMENTUM * momentum + gradient
        lam = np.maximum(lam - RATE * momentum, FLOOR)
    return np.array(values)


def training(lam, X, y):
    """The iterates of gradient descent from zero."""
    path = [np.zeros(len(lam))]
    for _ in range(TRAINING):
        path.append(path[-1] - STEP * loss_gradient(path[-1], lam, X, y))
    return path


def loss_gradient(w, lam, X, y):
    return mean_loss_gradient(w, X, y) + lam * w


def mean_loss_gradient(w, X, y):
    return -X.T @ (y * expit(-y * (X @ w))) / len(y)


def mean_loss(w, X, y):
    return np.mean(np.logaddexp(0.0, -y * (X @ w)))
