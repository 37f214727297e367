"""Bounds of stochastic hypergradients against a Monte-Carlo simulation of their own, in NumPy."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.certificates import stochastic
from bilevel.certificates.constants import Constants
from bilevel.certificates.noise import Noise, estimate_noise
from bilevel.certificates.stochastic import Recursion

N, D, RUNS = 64, 5, 2000
LAM, SPREAD = 0.5, 0.6  # the penalty, and by which part of it that of a sample is off
TIMES = (10, 40, 160, 640)
SAMPLES = (1, 10, np.inf)
KINDS = ("decreasing", "constant")


def loss(w, lam, data):
    """Ridge regression whose penalty is sampled, too: ``B_z = s_z w``."""
    X, y, s = data
    return jnp.mean((X @ w - y) ** 2 + lam * s * jnp.sum(w**2)) / 2


@pytest.fixture(scope="module")
def ridge():
    """Data, exact answers, and the constants of ``F_z = x (x w - y) + s lam w`` for batches of one sample."""
    rng = np.random.default_rng(0)
    X, V = rng.normal(size=(2, N, D))
    truth = rng.normal(size=D)
    y, z = (M @ truth + 0.5 * rng.normal(size=N) for M in (X, V))
    s = 1 + SPREAD * np.where(np.arange(N) % 2, 1.0, -1.0)
    A_z = X[:, :, None] * X[:, None, :] + LAM * s[:, None, None] * np.eye(D)
    A = A_z.mean(axis=0)
    w = np.linalg.solve(A, X.T @ y / N)
    H = V.T @ V / N
    g = H @ w - V.T @ z / N
    F_z = A_z @ w - X * y[:, None]
    # Var[F_z(w + d)] = s0 + 2 c d + d M d, which s1 + s2 |A d|^2 bounds for all d, whatever s2 > max eig A^-1 M A^-1.
    M = np.mean((A_z - A) @ (A_z - A), axis=0)
    c = np.mean((A_z - A) @ F_z[:, :, None], axis=0)[:, 0]
    s2 = 1.5 * np.linalg.eigvalsh(np.linalg.solve(A, np.linalg.solve(A, M).T)).max()
    s1 = np.mean(np.sum(F_z**2, axis=1)) + c @ np.linalg.solve(s2 * A @ A - M, c)
    mu, L = np.linalg.eigvalsh(A)[[0, -1]]
    return SimpleNamespace(
        X=X, y=y, s=s, V=V, z=z, A=A, A_z=A_z, F_z=F_z, H=H, w=w, g=g, grad=-w @ np.linalg.solve(A, g), mu=mu, L=L,
        s1=s1, s2=s2, m1=np.linalg.eigvalsh(M).max(),
    )  # fmt: skip


def constants(p, farthest, steepest):
    """Of the problem, where ``|w| <= farthest`` and ``|d_w U| <= steepest``; B(w) = w and ``B_z^T v = s_z <w, v>``."""
    known = Constants(
        mu=p.mu, L=p.L, nu1=0.0, nu2=1.0, mu1=np.linalg.norm(p.H, 2), mu2=0.0, D=np.linalg.norm(p.w), L_U=steepest,
        L_B=farthest,
    )  # fmt: skip
    return known, Noise(p.s1, p.s2, p.m1, m2=SPREAD**2 * farthest**2)


def schedules(r, kind):
    """Of both iterations: the decreasing default, or the greatest constant step over three."""
    both = r.lower, r.adjoint
    return [bl.from_rates(x.q, x.s2) if kind == "decreasing" else bl.Constant(1 / (3 * (1 + x.s2))) for x in both]


def sgd(p, rng, schedule, a, steps):
    """``w_steps`` of all runs."""
    w = np.zeros((RUNS, D))
    for i in range(steps):
        z = rng.integers(N, size=RUNS)
        F = p.X[z] * (np.sum(p.X[z] * w, axis=1) - p.y[z])[:, None] + LAM * p.s[z, None] * w
        w = w - schedule(i) * a * F
    return w


def adjoint(p, rng, schedule, a, steps, g):
    """``v_steps`` of all runs."""
    v = np.zeros((RUNS, D))
    for i in range(steps):
        z = rng.integers(N, size=RUNS)
        Av = p.X[z] * np.sum(p.X[z] * v, axis=1)[:, None] + LAM * p.s[z, None] * v
        v = v + schedule(i) * a * (g - Av)
    return v


@pytest.fixture(scope="module")
def simulated(ridge):
    """By kind of schedule and t = k: squared errors of all runs, gradients by J, and the rates with their schedules."""
    p, found = ridge, {}
    for kind in KINDS:
        for t in TIMES:
            rng = np.random.default_rng(t)
            first = stochastic.rates(*constants(p, 1.0, 1.0))  # the schedules do not depend on how far iterates go
            lower, upper = jax.tree.map(float, schedules(first, kind))
            a = 2 / (p.L + p.mu)
            w = sgd(p, rng, lower, a, t)
            g = w @ p.H - p.V.T @ p.z / N
            v = adjoint(p, rng, upper, a, t, g)
            exact = np.linalg.solve(p.A, g.T).T
            wv = np.sum(w * v, axis=1)
            grads = dict.fromkeys(SAMPLES, -wv)
            for J in SAMPLES[:-1]:
                grads[J] = -wv * np.mean(p.s[rng.integers(N, size=(RUNS, J))], axis=1)
            errors = np.sum((w - p.w) ** 2, axis=1), np.sum((v - exact) ** 2, axis=1)
            # The proof needs bounds of B and d_w U at w_t and w*; D is that of w*.
            reach = [max(np.linalg.norm(x, axis=1).max(), np.linalg.norm(y)) for x, y in ((w, p.w), (g, p.g))]
            found[kind, t] = stochastic.rates(*constants(p, *reach)), (lower, upper), errors, grads
    return found


def mean_and_error(x):
    return np.mean(x), np.std(x, ddof=1) / np.sqrt(len(x))


@pytest.mark.parametrize("kind", KINDS)
def test_no_squared_distance_is_above_its_bound(kind, simulated):
    ratios = []
    for t in TIMES:
        r, both, errors, _ = simulated[kind, t]
        for recursion, schedule, squared in zip((r.lower, r.adjoint), both, errors, strict=True):
            bound = float(stochastic.squared_distance(recursion, schedule, t))
            mean, error = mean_and_error(squared)
            assert mean + 4 * error <= bound
            ratios.append(bound / mean)
    assert max(ratios) < LOOSEST["distance"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_bias_and_no_mean_squared_error_is_above_its_bound(kind, simulated, ridge):
    worst = 0.0
    for t in TIMES:
        r, both, _, grads = simulated[kind, t]
        for J in SAMPLES:
            bound = stochastic.sid(r, t, t, J, *both)
            off = grads[J] - ridge.grad
            bias, error = mean_and_error(off)
            assert abs(bias) + 4 * error <= bound.bias
            mse, error = mean_and_error(off**2)
            assert mse + 4 * error <= bound.mse
            worst = max(worst, float(bound.mse) / mse)
    assert worst < LOOSEST["mse"]


LOOSEST = {"distance": 100, "mse": 3000}


def test_what_a_bound_is_made_of_cannot_be_left_out(simulated):
    """Without the noise of the map, or of the mixed derivative, errors are above."""
    t = TIMES[-1]
    r, both, errors, grads = simulated["constant", t]
    silent = Recursion(r.lower.q, 0.0, r.lower.s2, r.lower.start)
    assert np.mean(errors[0]) > 10 * stochastic.squared_distance(silent, both[0], t)
    single = np.var(grads[1]) - np.var(grads[np.inf])
    assert 0 < single <= 2 * r.mixed_noise * (r.adjoint_norm**2 + stochastic.squared_distance(r.adjoint, both[1], t))


def test_closed_forms_follow_their_recursion():
    """Constant steps give the recursion itself, decreasing ones more, and of order ``1 / t``."""
    r = Recursion(q=0.8, s1=0.3, s2=2.0, start=5.0)
    for schedule in (bl.Constant(1 / 3), bl.from_rates(r.q, r.s2), bl.Decreasing(12.0, 40.0)):
        e, recursion = r.start, [r.start]
        for i in range(3000):
            e = (1 - schedule(i) * (1 - r.q**2)) * e + schedule(i) ** 2 * r.s1
            recursion.append(e)
        bound = np.asarray(stochastic.squared_distance(r, schedule, np.arange(3001)))
        rounding = 1e4 * float(jnp.finfo(bound.dtype).eps)
        assert np.all(recursion <= bound * (1 + rounding))
        if isinstance(schedule, bl.Constant):
            np.testing.assert_allclose(bound, recursion, rtol=rounding)
        else:
            np.testing.assert_allclose(
                bound[3000] / bound[1000], (schedule.gamma + 1000) / (schedule.gamma + 3000), 1e-5
            )


def test_a_constant_map_is_solved_in_one_step():
    bound = stochastic.squared_distance(Recursion(q=0.0, s1=0.0, s2=0.0, start=5.0), bl.Constant(1.0), np.arange(3))
    np.testing.assert_array_equal(bound, [5.0, 0.0, 0.0])


def test_the_mean_of_the_adjoint_follows_the_map():
    for schedule in (bl.Constant(0.2), bl.Decreasing(3.0, 9.0)):
        product = np.cumprod([1.0, *(1 - float(schedule(j)) * 0.4 for j in range(500))])
        bound = np.asarray(stochastic.damping(0.6, schedule, np.arange(501)))
        assert np.all(product <= bound * (1 + 1e3 * jnp.finfo(bound.dtype).eps))
        assert np.all(bound <= 1.2 * product)


def test_a_schedule_that_may_diverge_has_no_bound():
    r = Recursion(q=0.8, s1=0.3, s2=2.0, start=5.0)
    for schedule in (bl.Constant(0.34), bl.Decreasing(1 / (1 - 0.8**2), 40.0), bl.Decreasing(12.0, 35.0)):
        assert jnp.isnan(stochastic.squared_distance(r, schedule, 10))
    with pytest.raises(bl.ProblemError, match="schedule is function"):
        stochastic.squared_distance(r, lambda i: 0.1, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_counts_give_the_accuracy(kind, ridge):
    r = stochastic.rates(*constants(ridge, 2.0, 2.0))
    for eps in (1.0, 0.1):
        plan = stochastic.counts(r, eps, kind)
        bound = stochastic.sid(r, plan.t, plan.k, plan.J, plan.lower, plan.adjoint)
        assert bound.mse <= eps**2 * (1 + 1e-3)
        fewer = stochastic.sid(r, 0.98 * plan.t, 0.98 * plan.k, 0.98 * plan.J, plan.lower, plan.adjoint)
        assert fewer.mse > eps**2 or kind == "constant"
    few, many = (stochastic.counts(r, eps, kind) for eps in (1e-1, 1e-2))
    np.testing.assert_allclose(many.J, 100 * few.J, rtol=0.01)
    assert 90 <= many.t / few.t <= (110 if kind == "decreasing" else 300)


def test_estimated_noise_is_that_of_the_samples(ridge, dtype):
    """A whole epoch of batches of one holds the exact moments, but for ``n / (n - 1)``."""
    p = ridge
    data = tuple(jnp.asarray(a, dtype) for a in (p.X, p.y, p.s))
    problem = bl.Problem(bl.minimization(loss), lambda w, _lam, _data: jnp.sum(w))
    w = jnp.asarray(p.w, dtype)
    found = estimate_noise(
        problem, jnp.asarray(LAM, dtype), w, data, sampler=bl.Sampler(1), key=jax.random.key(0), draws=N
    )
    epoch = N / (N - 1)
    at_w = np.mean(np.sum(p.F_z**2, axis=1))
    tolerance = 2e-3  # of power iteration; rounding in float32 is less
    np.testing.assert_allclose(found.s1, 2 * epoch * at_w, rtol=tolerance)
    np.testing.assert_allclose(found.m1, epoch * p.m1, rtol=10 * tolerance)
    np.testing.assert_allclose(found.m2, epoch * SPREAD**2 * p.w @ p.w, rtol=tolerance)
    for part in (1.0, 0.5, 0.25, 0.125):
        F_z = p.A_z @ ((1 - part) * p.w) - p.X * p.y[:, None]
        variance = np.mean(np.sum((F_z - F_z.mean(axis=0)) ** 2, axis=1))
        assert variance <= (found.s1 + found.s2 * np.sum(F_z.mean(axis=0) ** 2)) * 1.01
    assert 0 <= found.s2 <= p.s2


def test_a_missing_constant_is_named():
    with pytest.raises(bl.ProblemError, match="nu2"):
        stochastic.rates(Constants(mu=0.5, L=1.5, nu1=0.0, mu1=1.0), Noise(1.0, 1.0, 1.0, 1.0))
