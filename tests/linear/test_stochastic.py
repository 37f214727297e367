"""Laws of the stochastic iteration and of stochastic Richardson: mean, errors, carrying on, failure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import Constant, Decreasing, Status, StochasticRichardson
from bilevel.linear.rates import Samples
from bilevel.linear.stochastic import StochasticSystem, begin, proceed

N = 4


def system(dtype, symmetric=False, noise=0.3, scale=1.0):
    """``A_z = A + noise``, ``b_z = b + noise``, and the arrays A, b."""
    rng = np.random.default_rng(0)
    M = rng.normal(size=(N, N))
    M = 0.6 * (M + M.T if symmetric else M) / np.linalg.norm(M + M.T if symmetric else M, 2)
    A, b = scale * (np.eye(N) - M), rng.normal(size=N)

    def sample(stream):
        key, draws = stream
        of_A, of_b = jax.random.split(jax.random.fold_in(key, draws))
        E = noise * jax.random.normal(of_A, (N, N), dtype)
        A_z = jnp.asarray(A, dtype) + (E + E.T if symmetric else E)
        return A_z, jnp.asarray(b, dtype) + noise * jax.random.normal(of_b, (N,), dtype), (key, draws + 1)

    def residual(x, stream):
        A_z, b_z, stream = sample(stream)
        return b_z - A_z @ x, stream

    def product(x, stream):
        A_z, _, stream = sample(stream)
        return A_z @ x, stream

    def transposed(x, stream):
        A_z, _, stream = sample(stream)
        return A_z.T @ x, stream

    samples = Samples(product, transposed, symmetric, epoch=None)
    return StochasticSystem(lambda key: (key, jnp.asarray(0)), residual, samples, 1.0), A, b


@pytest.mark.parametrize("schedule", [Constant(0.3), Decreasing(5.0, 15.0)])
def test_the_mean_follows_the_iteration_without_noise(schedule, dtype):
    """``E x_{j+1} = E x_j + eta_j (b - A E x_j)`` exactly, for independent samples: within 4 standard errors."""
    of_samples, A, b = system(dtype)
    solver, runs = StochasticRichardson(20, schedule), 4000

    @jax.jit
    @jax.vmap
    def solve(key):
        return solver(of_samples, jnp.zeros(N, dtype), key=key)[0]

    x = np.asarray(solve(jax.random.split(jax.random.key(0), runs)), np.float64)
    mean = np.zeros(N)
    for j in range(20):
        mean = mean + schedule(j) * (b - A @ mean)
    standard_error = x.std(0) / runs**0.5
    np.testing.assert_array_less(np.abs(x.mean(0) - mean), 4 * standard_error)
    assert np.all(standard_error < 0.05 * np.linalg.norm(mean))  # sees a wrong recursion


@pytest.mark.parametrize("symmetric", [True, False])
def test_estimated_schedules_converge(symmetric, dtype):
    """The mean squared error falls like ``1 / k``: by 16 of steps, within a factor of 2."""
    of_samples, A, b = system(dtype, symmetric, noise=0.1)

    @jax.jit
    @jax.vmap
    def solve(key, steps):
        return StochasticRichardson(steps)(of_samples, jnp.zeros(N, dtype), key=key)

    keys, exact = jax.random.split(jax.random.key(0), 60), np.linalg.solve(A, b)
    few, many = (np.mean(np.sum((np.asarray(solve(keys, jnp.full(60, k))[0]) - exact) ** 2, 1)) for k in (100, 1600))
    assert 8 < few / many < 32


def test_a_run_can_be_carried_on(dtype):
    """In one go or in two, bit for bit."""
    of_samples, _, _ = system(dtype)
    start = begin(jnp.ones(N, dtype), of_samples.start(jax.random.key(0)))
    go = jax.jit(lambda run, until: proceed(of_samples.residual, Decreasing(5.0, 15.0), 1.0, run, until))
    whole, parts = go(start, 30), go(go(start, 11), 30)
    np.testing.assert_array_equal(whole.x, parts.x)
    assert whole.steps == parts.steps == 30


def test_a_warm_start_at_the_solution_stays(dtype):
    of_samples, A, b = system(dtype, noise=0.0)
    exact = jnp.asarray(np.linalg.solve(A, b), dtype)
    x, info = StochasticRichardson(50, Constant(0.5))(of_samples, exact, exact, key=jax.random.key(0))
    np.testing.assert_allclose(x, exact, rtol=100 * jnp.finfo(dtype).eps)
    assert info.status == Status.OK


def test_divergence_stops_with_the_last_finite_iterate(dtype):
    of_samples, _, _ = system(dtype, scale=-5.0)  # repelling
    solve = jax.jit(lambda steps: StochasticRichardson(steps, Constant(0.5))(
        of_samples, jnp.zeros(N, dtype), key=jax.random.key(0)
    ))  # fmt: skip
    x, info = solve(1000)
    assert info.status == Status.DIVERGED
    assert 3 < info.steps < 100
    assert info.matvecs == info.steps + 1
    np.testing.assert_array_equal(x, solve(info.steps)[0])
    assert jnp.all(jnp.isfinite(x))
