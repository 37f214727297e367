"""Solutions of the families against scikit-learn, which scales its penalties by the number of samples."""

import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import models
from families import FAMILIES, dense_truth, relative_distance

linear_model = pytest.importorskip("sklearn.linear_model")
kernel_ridge = pytest.importorskip("sklearn.kernel_ridge")
pytestmark = pytest.mark.float64

PENALTY = 0.03


@pytest.fixture(params=[False, True], ids=["plain", "weighted"])
def weights(request):
    return lambda n: jnp.asarray(np.random.default_rng(1).uniform(0.2, 2.0, n)) if request.param else None


def _solution(name, lam, weights):
    case = FAMILIES[name](0)
    data = case.lower_data._replace(weights=weights(len(case.lower_data.y)))
    return data, dense_truth(case.problem, lam(case), case.w0, data, case.upper_data).w


def test_ridge(weights):
    data, w = _solution("ridge", lambda _: jnp.asarray(PENALTY), weights)
    peer = linear_model.Ridge(alpha=len(data.y) * PENALTY, fit_intercept=False, solver="cholesky")
    assert relative_distance(peer.fit(data.X, data.y, data.weights).coef_, w) < 1e-12


def test_logistic(weights):
    data, w = _solution("logistic", lambda _: jnp.asarray(PENALTY), weights)
    peer = _logistic(len(data.y), fit_intercept=False).fit(data.X, data.y, data.weights)
    assert relative_distance(peer.coef_[0], w) < 1e-6


def test_multinomial(weights):
    def lam(case):
        return {"shared": jnp.log(PENALTY), "deviation": jnp.zeros_like(case.lam["deviation"])}

    data, w = _solution("multinomial", lam, weights)
    peer = _logistic(len(data.y), fit_intercept=True).fit(data.X, data.y, data.weights)
    assert relative_distance(peer.coef_.T, w["coef"]) < 1e-6
    assert relative_distance(peer.intercept_ - peer.intercept_.mean(), w["intercept"]) < 1e-6
    assert abs(w["intercept"].sum()) < 1e-12


def test_kernel_ridge():
    case = FAMILIES["kernel_ridge"](0)
    scale = np.sqrt(np.asarray(case.lam["gamma"]))[None]  # gamma_j (x_j - z_j)^2 = (scale_j x_j - scale_j z_j)^2
    peer = kernel_ridge.KernelRidge(alpha=float(case.lam["beta"]), kernel="rbf", gamma=1.0)
    peer.fit(case.lower_data.X * scale, case.lower_data.y)
    w = models.kernel_ridge.solution(case.lam, case.lower_data)
    assert relative_distance(peer.dual_coef_, w) < 1e-12
    prediction = models.kernel_ridge.kernel(case.lam["gamma"], case.upper_data.X, case.upper_data.points) @ w
    assert relative_distance(peer.predict(case.upper_data.X * scale), prediction) < 1e-12


def _logistic(n, fit_intercept):
    return linear_model.LogisticRegression(
        C=1.0 / (n * PENALTY), fit_intercept=fit_intercept, solver="newton-cg", tol=1e-12, max_iter=1000
    )
