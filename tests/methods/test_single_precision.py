"""Single precision is a help of the automatic method, never its verdict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.automatic.single import in_single, linearized, refined_solve
from bilevel.automatic.start import factorize_at
from bilevel.lagrangian import Instance
from bilevel.status import Status

N = 320  # above the size that is factorized at once

pytestmark = pytest.mark.float64


def loss(w, lam, data):
    H, b, scale = data
    return scale * (0.5 * w @ (H @ w) + 0.5 * lam * jnp.sum(w**2) - b @ w)


def upper(w, lam, data):
    return 0.5 * jnp.sum((w - data) ** 2)


def case(condition, n=N):
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))[0]
    H = Q @ np.diag(np.logspace(-np.log10(condition), 0, n)) @ Q.T
    return jnp.asarray((H + H.T) / 2), jnp.asarray(Q @ np.ones(n)), jnp.ones(n)


def truth(H, b, t, lam):
    A = np.asarray(H) + lam * np.eye(len(H))
    w = np.linalg.solve(A, b)
    return -w @ np.linalg.solve(A, w - t)


def instance(condition, lam=1e-9, function=loss):
    H, b, t = case(condition)
    return Instance(bl.Problem(bl.minimization(function), upper), jnp.asarray(lam), (H, b, jnp.asarray(1.0)), t)


def insists(w, lam, data):
    """The same loss, but of a captured array of float64: it cannot be had in float32."""
    return loss(w, lam, data) + jnp.sum(np.zeros(N) * w)


@pytest.mark.parametrize("scale", [1.0, 1e-60, 1e60])
@pytest.mark.parametrize("function", [loss, insists])
def test_right_where_single_precision_fails(scale, function):
    """Losses out of its range, and functions that cannot be evaluated in it."""
    H, b, t = case(1e3)
    problem = bl.Problem(bl.minimization(function), upper)
    data = (H, b, jnp.asarray(scale))
    h = bl.hypergradient(problem, 1e-3, jnp.zeros(N), lower_data=data, upper_data=t, tol=1e-8)
    true = truth(H, b, t, 1e-3)
    assert abs(float(h.grad) - true) <= 1e-8 * abs(true)


def test_only_minimizations_in_float64_have_a_copy():
    w, at = jnp.zeros(N), instance(10.0)
    assert in_single(at, w).lower_data[0].dtype == jnp.float32
    assert in_single(instance(10.0, function=insists), w) is None
    assert in_single(at, w.astype(jnp.float32)) is None
    root = bl.Problem(bl.root(jax.grad(loss), symmetric=True), upper)
    assert in_single(at._replace(problem=root), w) is None


@pytest.mark.parametrize("rtol", [1e-2, 1e-5, 1e-9])
def test_refinement_reaches_residuals_of_double_precision(rtol):
    at, w = instance(1e3), jnp.zeros(N)
    _, A = at.linearize(w)
    b = jnp.asarray(np.random.default_rng(1).normal(size=N))
    x, info = refined_solve(linearized(in_single(at, w), w), A, b, rtol)
    assert info.status == Status.OK
    assert jnp.linalg.norm(b - A.mv(x)) <= rtol * jnp.linalg.norm(b)
    np.testing.assert_allclose(info.residual_norm, jnp.linalg.norm(b - A.mv(x)), rtol=1e-6)


def test_refinement_gives_up_where_single_precision_sees_nothing():
    at, w = instance(1e10, lam=0.0), jnp.zeros(N)
    _, A = at.linearize(w)
    _, info = refined_solve(linearized(in_single(at, w), w), A, jnp.ones(N), 1e-6)
    assert Status(int(info.status)).failed


@pytest.mark.parametrize(("condition", "close"), [(1e3, 1e-3), (1e10, 1e-5)])
def test_factorization_comes_from_double_precision_where_single_is_singular(condition, close):
    """Relative error of a solve: eps cond(A) of float32 at condition 1e3, of float64 at 1e10."""
    at, w = instance(condition, lam=0.0), jnp.zeros(N)
    near = factorize_at(at, w, in_single(at, w))
    x = jnp.asarray(np.random.default_rng(2).normal(size=N))
    assert near.regular
    error = jnp.linalg.norm(near(at.lower_data[0] @ x) - x)
    assert error <= close * jnp.linalg.norm(x)
