"""Laws of the stochastic algorithms, all on the noisy quadratic with its dense solution, on pytrees."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import noisy_quadratic as quadratic
import numpy as np
import pytest

import bilevel as bl
from bilevel import Sampler, Status
from bilevel.algorithms import (
    ALSET,
    BSA,
    FSLA,
    MRBO,
    MSTSA,
    SABA,
    SOBA,
    SRBA,
    SUSTAIN,
    TTSA,
    VRBO,
    AmIGO,
    StocBiO,
)
from bilevel.algorithms.oracles import Point
from bilevel.schedules import Constant, Decreasing

BATCH, EVERYTHING = Sampler(8), Sampler(quadratic.ROWS)
EPOCH = 2 * quadratic.ROWS
# Steps and ratios step / outer_step from the grids of the public benchmark, with its ten inner steps and ten products.
STEPS = {
    SOBA: (0.25, 0.316), SABA: (0.125, 0.316), SRBA: (0.125, 0.316), AmIGO: (0.125, 0.316), ALSET: (0.25, 0.316),
    BSA: (0.25, 0.316), TTSA: (0.25, 0.316), StocBiO: (0.125, 0.316), SUSTAIN: (0.25, 0.316), MSTSA: (0.25, 0.316),
    MRBO: (0.125, 0.1), VRBO: (0.25, 0.316), FSLA: (0.25, 0.316),
}  # fmt: skip
# With ten of either 20 epochs of these few rows are eight steps of VRBO.
COUNTS = {VRBO: {"inner_steps": 2, "terms": 6}}
ALGORITHMS = {
    kind.__name__: kind(BATCH, step, step / ratio, **COUNTS.get(kind, {})) for kind, (step, ratio) in STEPS.items()
}
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)


def assert_same(one, other):
    """Bit for bit, random keys included."""
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


@every_algorithm
def test_twenty_epochs_divide_the_squared_gradient_by_a_hundred(algorithm):
    """In most of five runs: VRBO, which makes few steps in so many rows, misses it in one of eight."""
    left = []
    for key in range(5):
        result = quadratic.optimize(algorithm, samples=20 * EPOCH, key=key)
        assert result.status is Status.OK
        assert all(leaf.dtype == quadratic.DTYPE for leaf in jax.tree.leaves((result.w, result.lam)))
        left.append(quadratic.squared_gradient(result.lam))
    assert np.median(left) < 1e-2 * quadratic.squared_gradient(quadratic.LAM0)


def traced(run):
    """What ``run()`` gives, and how often it traced the losses."""
    before = len(quadratic.TRACES)
    return run(), len(quadratic.TRACES) - before


@every_algorithm
def test_one_key_is_one_run(algorithm):
    """However it is looked at, and however it is cut in two; and no stretch of it compiles anew."""
    whole = quadratic.optimize(algorithm, steps=40)
    half, of_checks = traced(lambda: quadratic.optimize(algorithm, steps=15))
    assert half.history.step[-1] == 15
    watched, again = traced(lambda: quadratic.optimize(algorithm, steps=40, evaluate_every=100))
    assert len(watched.history) > len(whole.history)
    assert again == of_checks
    assert_same(whole.state, watched.state)
    assert_same(whole.state, quadratic.optimize(algorithm, steps=25, state=half.state).state)
    other = quadratic.optimize(algorithm, steps=40, key=1)
    assert not np.array_equal(quadratic.flat(other.lam), quadratic.flat(whole.lam))


@pytest.mark.float64
@pytest.mark.parametrize("name", ["SABA", "SRBA"])
def test_variance_reduction_converges_linearly(name):
    result = quadratic.optimize(ALGORITHMS[name], steps=2500)
    assert quadratic.squared_gradient(result.lam) < 1e-20


def squared_gradients(algorithm, runs, steps):
    """Mean over independent runs from the optimum of ``|grad h|^2`` after every step: shape (steps,)."""
    oracles = quadratic.oracles(algorithm.sampler)
    start = Point(quadratic.W0, quadratic.W0, quadratic.as_lam(quadratic.OPTIMUM))
    hessian = quadratic.HESSIAN

    @jax.jit
    @jax.vmap
    def run(key):
        def step(state, _):
            state = algorithm.update(oracles, state)
            return state, jnp.sum((hessian @ (quadratic.flat(state.lam) - quadratic.OPTIMUM)) ** 2)

        return jax.lax.scan(step, algorithm.init(oracles, start, key), length=steps)[1]

    return np.mean(run(jax.random.split(jax.random.key(0), runs)), axis=0)


@pytest.mark.float64
def test_soba_falls_with_its_steps():
    """``E |grad h(lam_t)|^2 ~ gamma_t = gamma_0 / sqrt(t + 1)``: the slope is -1/2.

    Near the solution the iterates are a linear recursion with independent noise, whose covariance S at constant steps
    solves ``gamma (M S + S M^T) = gamma^2 N`` up to ``O(gamma^2)``: proportional to gamma. It follows steps that shrink
    by a part ``1 / (2 t)`` a step where it relaxes faster, at the rate ``2 gamma_t mu``: for t far above
    ``1 / (4 gamma_0 mu)^2``, which with ``rho_0 mu_H = 0.08`` and ``gamma_0 mu_h = 0.19`` is 10.
    Draws are independent: by epochs their noise averages out within an epoch, and the slope is steeper.
    """
    algorithm = SOBA(Sampler(8, replace=True), 0.5, 0.75)
    squares = squared_gradients(algorithm, runs=32, steps=4096)
    edges = 2 ** np.arange(7, 13)
    means = [squares[begin : 2 * begin].mean() for begin in edges[:-1]]
    slope = np.polyfit(np.log(edges[:-1]), np.log(means), 1)[0]
    assert slope == pytest.approx(-0.5, rel=0.2)


ETA, FLOOR_TERMS = 0.8, 4
DETERMINISTIC = {
    "ALSET": ALSET(EVERYTHING, Constant(0.5), Constant(0.5), ETA, FLOOR_TERMS),
    "StocBiO": StocBiO(EVERYTHING, 0.5, 0.5, ETA, FLOOR_TERMS),
    "MRBO": MRBO(EVERYTHING, Constant(0.5), Constant(0.5), 0.5, ETA, FLOOR_TERMS),
    "VRBO": VRBO(EVERYTHING, 0.5, 0.5, ETA, FLOOR_TERMS, period=1000),
}


@cache
def floor():
    """The limit of truncated Neumann series of all rows, and ``|grad h|^2`` there."""
    limit = quadratic.as_lam(quadratic.neumann_limit(ETA, FLOOR_TERMS))
    return quadratic.flat(limit), quadratic.squared_gradient(limit)


@pytest.mark.float64
@pytest.mark.parametrize("algorithm", DETERMINISTIC.values(), ids=DETERMINISTIC)
def test_neumann_series_end_at_the_floor_of_their_bias(algorithm):
    """With all rows in a batch nothing is random, and the floor is met to rounding."""
    limit, square = floor()
    lam = quadratic.optimize(algorithm, steps=400).lam
    np.testing.assert_allclose(quadratic.flat(lam), limit, rtol=1e-9)
    assert quadratic.squared_gradient(lam) == pytest.approx(square, rel=1e-7)


CORRECTED = {
    "MRBO": (DETERMINISTIC["MRBO"], {"momentum": 1.0}),
    "FSLA": (FSLA(EVERYTHING, 0.5, 0.5), {"momentum": 1.0}),
    "SRBA": (SRBA(EVERYTHING, 0.25, 0.25, period=1000), {"period": 1}),
}


@pytest.mark.parametrize(("algorithm", "plain"), CORRECTED.values(), ids=CORRECTED)
def test_corrections_by_all_rows_are_exact(algorithm, plain):
    """``d + new - old`` then is the present value, whatever the momentum and the period: the run is the plain one."""
    corrected, uncorrected = (
        quadratic.flat(quadratic.optimize(a, steps=12).lam) for a in (algorithm, replace(algorithm, **plain))
    )
    scale = float(jnp.max(jnp.abs(quadratic.flat(quadratic.LAM0))))
    np.testing.assert_allclose(corrected, uncorrected, atol=100 * jnp.finfo(quadratic.DTYPE).eps * scale)


# Their lengths p stay random: steps that fall like 1/t, and their mean.
FALLING = Decreasing(8.0, 16.0)
RANDOM = {
    "BSA": BSA(EVERYTHING, Constant(0.5), FALLING, ETA, FLOOR_TERMS),
    "TTSA": TTSA(EVERYTHING, Constant(0.5), FALLING, ETA, FLOOR_TERMS),
    "SUSTAIN": SUSTAIN(EVERYTHING, Constant(0.5), FALLING, 0.5, ETA, FLOOR_TERMS),
    "MSTSA": MSTSA(EVERYTHING, Constant(0.5), FALLING, 0.5, ETA, FLOOR_TERMS),
}


@pytest.mark.float64
@pytest.mark.parametrize("algorithm", RANDOM.values(), ids=RANDOM)
def test_series_of_random_length_end_at_the_floor_of_their_mean(algorithm):
    """With all rows in a batch the lengths alone are random, and steps like ``1 / t`` take their noise to zero."""
    limit, square = floor()
    lam = quadratic.optimize(algorithm, steps=4000, lam0=quadratic.as_lam(quadratic.OPTIMUM)).lam
    assert quadratic.squared_gradient(lam) == pytest.approx(square, rel=0.2)
    assert np.linalg.norm(quadratic.flat(lam) - limit) < 0.1 * np.linalg.norm(quadratic.OPTIMUM - limit)


M, B = np.array([[0.5, 0.3], [-0.3, 0.4]]), np.array([[1.0], [0.5]])


def affine_map(w, lam, offsets):
    """A nonsymmetric contraction: ``w(lam) = (I - M)^{-1} (B lam + mean offset)``."""
    return jnp.asarray(M, w.dtype) @ w + jnp.asarray(B, w.dtype) @ lam + jnp.mean(offsets, axis=0)


def distance(w, lam, targets):
    return 0.5 * jnp.mean(jnp.sum((w[None] - targets) ** 2, axis=-1))


@pytest.mark.parametrize(
    "algorithm",
    [SOBA(Sampler(64), Constant(0.5), Constant(0.05)), SRBA(Sampler(8), 0.5, 0.05)],
    ids=lambda algorithm: type(algorithm).__name__,
)
def test_fixed_points_take_the_transpose(algorithm, dtype):
    """One lam for a target of two entries, so that the adjoint is not zero at the least-squares solution."""
    rng = np.random.default_rng(0)
    offsets, targets = rng.normal(size=(2, 64, 2))
    slope, constant = np.linalg.solve(np.eye(2) - M, B), np.linalg.solve(np.eye(2) - M, offsets.mean(axis=0))
    best = np.linalg.lstsq(slope, targets.mean(axis=0) - constant)[0]
    result = bl.optimize(
        bl.Problem(bl.fixed_point(affine_map), distance), jnp.zeros(1, dtype), jnp.zeros(2, dtype), algorithm=algorithm,
        steps=1000, evaluate_every=10**9, key=jax.random.key(0),
        lower_data=jnp.asarray(offsets, dtype), upper_data=jnp.asarray(targets, dtype),
    )  # fmt: skip
    np.testing.assert_allclose(result.lam, best, atol=1e3 * jnp.finfo(dtype).eps)


@pytest.mark.parametrize("kind", [MRBO, SRBA])
def test_divergence_is_told_with_its_step(kind):
    result = quadratic.optimize(kind(BATCH, 100.0, 100.0), steps=5000)
    assert result.status is Status.DIVERGED
    last = result.history.step[-1]
    assert 0 < last < 5000
    assert f"step {last}:" in result.explain()
    assert np.all(np.isfinite(np.concatenate([quadratic.flat(result.lam), quadratic.flat(result.w)])))


def samples_per_step(algorithm):
    return int(quadratic.optimize(algorithm, steps=1).history.samples[-1])


def test_costs_are_those_of_the_docstrings():
    """In batches of 8 rows; T = 10 inner steps, 10 adjoint steps, 10 products; refreshes read all rows."""
    assert samples_per_step(ALGORITHMS["SOBA"]) == 8 * 2
    assert samples_per_step(ALGORITHMS["AmIGO"]) == 8 * (10 + 10 + 1 + 1)
    assert samples_per_step(ALGORITHMS["StocBiO"]) == 8 * (10 + 11 + 1)
    assert samples_per_step(ALGORITHMS["ALSET"]) == 8 * (10 + 2 + 1)
    assert samples_per_step(ALGORITHMS["MRBO"]) == 8 * (11 + 1)
    assert samples_per_step(ALGORITHMS["FSLA"]) == 8 * (3 + 2)
    assert samples_per_step(ALGORITHMS["SRBA"]) == EPOCH
    assert samples_per_step(ALGORITHMS["VRBO"]) == (6 + 1) * quadratic.ROWS + 8 * (2 + 1) * (6 + 1)
    # A refresh, then a period of batches that cost as much, then a refresh: the default period is a pass over the data.
    period = EPOCH // 16
    samples = quadratic.optimize(ALGORITHMS["SRBA"], steps=period + 1).history.samples[-1]
    assert samples == EPOCH + (period - 1) * 16 + EPOCH
