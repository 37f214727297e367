"""Laws of SGD: closed forms under additive noise, the error recursion, rates, and how it fails."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel import SGD, Constant, Decreasing, ProblemError, Sampler, Status
from bilevel.linear.rates import estimate_rates
from bilevel.solvers.sgd import jacobian_samples

MU = (1.0, 0.3, 0.05)
STEP, SIGMA = 0.8, 0.5
NOISE = Sampler(None, None)


def noisy_quadratic(w, lam, key):
    """``sum mu_j w_j^2 / 2`` with a gradient of independent noise ``SIGMA`` in every component."""
    noise = SIGMA * jax.random.normal(key, w.shape, w.dtype)
    return 0.5 * jnp.sum(jnp.asarray(MU, w.dtype) * w**2) + jnp.sum(noise * w) + 0.0 * lam


def least_squares(w, lam, data):
    X, y = data
    return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * lam * jnp.sum(w**2)


def table(n=40, d=3, seed=0, dtype=None):
    X, y = np.random.default_rng(seed).normal(size=(2, n, d))
    return jnp.asarray(X, dtype), jnp.asarray(y[:, 0], dtype)


def repeat(solver, loss, data, sampler, w0, runs, lam=1.0, seed=0):
    """Solutions of independent runs."""
    lower = bl.minimization(loss, step=STEP)

    @jax.jit
    @jax.vmap
    def solve(key):
        return solver(lower, lam, w0, data, sampler=sampler, key=key)

    return solve(jax.random.split(jax.random.key(seed), runs))


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_mean_and_variance_under_additive_noise(eta, dtype):
    """``E w_t = rho^t w_0``, ``Var w_t = (eta a sigma)^2 (1 - rho^2t) / (1 - rho^2)``, ``rho = 1 - eta a mu``."""
    t, runs = 25, 4000
    w0 = jnp.asarray([1.0, -2.0, 3.0], dtype)
    w, info = repeat(SGD(t, Constant(eta)), noisy_quadratic, jax.random.key(1), NOISE, w0, runs)
    rho = 1 - eta * STEP * np.array(MU)
    variance = (eta * STEP * SIGMA) ** 2 * (1 - rho ** (2 * t)) / (1 - rho**2)
    w = np.asarray(w, np.float64)
    np.testing.assert_array_less(np.abs(w.mean(0) - rho**t * w0), 4 * (variance / runs) ** 0.5)
    np.testing.assert_array_less(np.abs(w.var(0) / variance - 1), 4 * (2 / runs) ** 0.5)  # of Gaussian variances
    np.testing.assert_array_equal(info.steps, t)
    np.testing.assert_array_equal(info.matvecs, t)


@pytest.mark.parametrize(
    "schedule", [Constant(0.2), bl.from_rates(1 - STEP * 0.3, 3.0)], ids=["constant", "decreasing"]
)
def test_error_stays_below_the_recursion(schedule, dtype):
    """``e_{i+1} <= (1 - eta_i (1 - q^2)) e_i + eta_i^2 s1`` with constants that hold for rows drawn independently."""
    data, lam, w0 = table(dtype=dtype), 0.3, jnp.ones(3, dtype)
    X, y = np.asarray(data[0], float), np.asarray(data[1], float)
    n = len(y)
    rows = X[:, :, None] * X[:, None, :] + lam * np.eye(3)
    A = rows.mean(0)
    star = np.linalg.solve(A, X.T @ y / n)
    at_star = rows @ star - X * y[:, None]
    # Var[a F_z(w)] <= 2 a^2 E|F_z(w*)|^2 + 2 a^2 |E (A_z - A)^2| |w - w*|^2, |w - w*| <= |a F(w)| / (1 - q).
    eigenvalues = np.linalg.eigvalsh(A)
    a = 0.4 / eigenvalues[-1]
    q = 1 - a * eigenvalues[0]
    s1 = 2 * a**2 * np.mean(np.sum(at_star**2, 1)) / 2
    m1 = 2 * a**2 * np.linalg.norm(np.mean((rows - A) @ (rows - A), 0), 2) / 2
    s2 = m1 / (1 - q) ** 2
    schedule = Constant(1 / (1 + s2)) if isinstance(schedule, Constant) else bl.from_rates(q, s2)
    e = np.sum((1 - star) ** 2)
    for t in range(4000):
        e = (1 - schedule(t) * (1 - q**2)) * e + schedule(t) ** 2 * s1
    w, _ = repeat(SGD(4000, schedule, step=a), least_squares, data, Sampler(2, replace=True), w0, 100, lam=lam)
    squares = np.sum((np.asarray(w, float) - star) ** 2, 1)
    assert squares.mean() <= e
    assert squares.mean() > 0


def test_decreasing_steps_give_errors_of_one_over_t(dtype):
    """Log-log slope of the mean squared error -1 within a fifth, beyond the first steps."""
    schedule, w0 = bl.from_rates(1 - STEP * MU[-1]), jnp.ones(3, dtype)
    lower, ts = bl.minimization(noisy_quadratic, step=STEP), np.array([200, 800, 3200])

    @jax.jit
    @jax.vmap
    def solve(key, steps):
        return SGD(steps, schedule)(lower, 1.0, w0, jax.random.key(1), sampler=NOISE, key=key)[0]

    keys = jax.random.split(jax.random.key(0), 300)
    errors = [np.mean(np.sum(np.asarray(solve(keys, jnp.full(300, t))) ** 2, 1)) for t in ts]
    assert abs(np.polyfit(np.log(ts), np.log(errors), 1)[0] + 1) < 0.2


def test_kinds_of_problems_are_one_formula(dtype):
    """Gradient descent as minimization, as fixed point and as root: the same steps."""
    data, w0, key = table(dtype=dtype), jnp.ones(3, dtype), jax.random.key(0)
    gradient = jax.grad(least_squares)
    kinds = (
        bl.minimization(least_squares, step=0.1),
        bl.fixed_point(lambda w, lam, data: w - 0.1 * gradient(w, lam, data)),
        bl.root(lambda w, lam, data: 0.1 * gradient(w, lam, data)),
    )
    solver = SGD(50, Decreasing(10.0, 20.0))
    first, *others = (solver(lower, 0.1, w0, data, sampler=Sampler(7), key=key)[0] for lower in kinds)
    for other in others:
        np.testing.assert_allclose(first, other, rtol=100 * jnp.finfo(dtype).eps)


def test_vmapped_numbers_of_steps_are_those_of_single_runs(dtype):
    data, w0, lower = table(dtype=dtype), jnp.ones(3, dtype), bl.minimization(least_squares, step=0.1)

    @jax.jit
    def solve(steps):
        return SGD(steps, Constant(0.5))(lower, 0.1, w0, data, sampler=Sampler(7), key=jax.random.key(0))

    steps = jnp.array([0, 3, 40])
    w, info = jax.vmap(solve)(steps)
    np.testing.assert_array_equal(info.steps, steps)
    for single, t in zip(w, steps, strict=True):
        np.testing.assert_allclose(single, solve(t)[0], rtol=100 * jnp.finfo(dtype).eps)


def test_the_iterate_halfway_is_that_of_half_the_steps(dtype):
    lower, data, key = bl.minimization(least_squares, step=0.1), table(dtype=dtype), jax.random.key(0)
    solver = SGD(30, Decreasing(3.0, 3.0), 0.1)
    run = partial(solver.run, lower, 0.1, jnp.ones(3, dtype), data, Sampler(7), key)
    np.testing.assert_array_equal(jax.jit(partial(run, mark=11))().earlier, jax.jit(partial(run, steps=11))().x)


def _failure(case, dtype):
    """Solver, data, the step at which it fails and the status."""
    X, y = table(dtype=dtype)
    if case == "diverging":
        return SGD(1000, Constant(30.0)), (X, y), None, Status.DIVERGED
    if case == "schedule":
        return SGD(100, lambda i: jnp.where(i == 7, jnp.nan, 0.1)), (X, y), 7, Status.NONFINITE
    return SGD(100, Constant(0.5)), (X.at[0].set(jnp.nan), y), None, Status.NONFINITE


@pytest.mark.parametrize("case", ["diverging", "schedule", "data"])
def test_a_failing_run_stops_and_keeps_the_last_finite_iterate(case, dtype):
    solver, data, step, status = _failure(case, dtype)
    w0, lower = jnp.ones(3, dtype), bl.minimization(least_squares, step=0.1)

    @jax.jit
    def solve(steps):
        return solver(lower, 0.1, w0, data, sampler=Sampler(8), key=jax.random.key(0), steps=steps)

    w, info = solve(1000)
    assert info.status == status
    assert step is None or info.steps == step
    assert info.steps < 100
    assert jnp.all(jnp.isfinite(w))
    before, ended = solve(info.steps)
    assert ended.status == Status.OK
    np.testing.assert_array_equal(w, before)
    if case == "data":  # the first epoch has met the row
        assert info.steps < 5
    if case == "diverging":
        assert jnp.linalg.norm(w) > 1e-2 * jnp.finfo(dtype).eps ** -0.5


def test_other_runs_of_a_batch_are_not_touched_by_a_failure(dtype):
    lower, data, w0 = bl.minimization(least_squares, step=0.1), table(dtype=dtype), jnp.ones(3, dtype)

    @jax.jit
    def solve(eta):
        return SGD(200, Constant(eta))(lower, 0.1, w0, data, sampler=Sampler(8), key=jax.random.key(0))

    w, info = jax.vmap(solve)(jnp.asarray([0.5, 30.0], dtype))
    np.testing.assert_array_equal(info.status, [Status.OK, Status.DIVERGED])
    np.testing.assert_allclose(w[0], solve(jnp.asarray(0.5, dtype))[0], rtol=1000 * jnp.finfo(dtype).eps)


@pytest.mark.parametrize("replace", [False, True])
def test_estimated_rates_are_those_of_the_matrices(replace, dtype):
    """Few batches: q from the average of all of them, exactly; s2 within the noise of its 32 samples."""
    lam, (X, y) = 0.2, table(d=3, dtype=dtype)
    sampler = Sampler(4, replace=replace)
    lower, w = bl.minimization(least_squares), jnp.ones(3, dtype)
    rates = estimate_rates(
        jacobian_samples(lower, lam, w, (X, y), sampler), sampler.start((X, y), jax.random.key(0)), w
    )
    A = np.asarray(X.T @ X, float) / len(y) + lam * np.eye(3)
    least, largest = np.linalg.eigvalsh(A)[[0, -1]]
    if not replace:
        assert rates.q == pytest.approx(1 - least / largest, rel=1e-4)
        assert rates.step == pytest.approx(1 / largest, rel=1e-4)
    slices = np.asarray(X, float).reshape(10, 4, 3)
    of_slices = np.einsum("zbi,zbj->zij", slices, slices) / 4 + lam * np.eye(3)
    u = np.asarray(bl.linear.spectral.probe_vector(w), float)
    s2 = np.mean(np.sum(((of_slices - A) @ u) ** 2, 1)) / np.sum((A @ u) ** 2)
    assert 0.5 < rates.s2 / s2 < 2


def test_no_schedule_and_no_step_still_converge(dtype):
    """By estimates alone; fewer steps leave a larger error."""
    data, lam, w0 = table(dtype=dtype), 0.2, jnp.zeros(3, dtype)
    X, y = np.asarray(data[0], float), np.asarray(data[1], float)
    star = np.linalg.solve(X.T @ X / len(y) + lam * np.eye(3), X.T @ y / len(y))

    @jax.jit
    @jax.vmap
    def solve(key, steps):
        return SGD(steps)(bl.minimization(least_squares), lam, w0, data, sampler=Sampler(4, replace=True), key=key)[0]

    few, many = (
        np.mean(np.sum((np.asarray(solve(jax.random.split(jax.random.key(0), 50), jnp.full(50, t))) - star) ** 2, 1))
        for t in (100, 3200)
    )
    assert few / many > 16


def test_a_schedule_must_be_one(dtype):
    with pytest.raises(ProblemError, match="schedule must be"):
        SGD(schedule=0.1)(
            bl.minimization(least_squares, step=0.1), 0.1, jnp.ones(3, dtype), table(dtype=dtype),
            sampler=Sampler(4), key=jax.random.key(0),
        )  # fmt: skip
