"""Laws of SID: unbiased in the limit, errors of 1/t and 1/J, an error estimate that covers, loud failures."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import bilevel as bl
from bilevel import CG, SGD, SID, Constant, ConvergenceError, NewtonCG, ProblemError, Sampler, Status, tree
from bilevel import StochasticRichardson as Richardson
from bilevel.methods.stochastic import statistical_error

ROWS, FEATURES = 60, 3
DRAWN = Sampler(4, replace=True)


def ridge(w, lam, data):
    """The l2 penalty, too, is a mean over rows of different weights: the mixed derivative has a variance."""
    X, y, weight = data
    return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * jnp.exp(lam) * jnp.mean(weight) * jnp.sum(w**2)


def logistic(w, lam, data):
    X, y, weight = data
    return jnp.mean(jax.nn.softplus(-y * (X @ w))) + 0.5 * jnp.exp(lam) * jnp.mean(weight) * jnp.sum(w**2)


def validation(w, lam, data):
    X, y, _ = data
    return 0.5 * jnp.mean((X @ w - y) ** 2)


def draw(dtype, seed):
    rng = np.random.default_rng(seed)
    X, weight = rng.normal(size=(ROWS, FEATURES)), rng.exponential(size=ROWS)
    y = np.sign(X @ np.array([1.0, -1.0, 0.5]) + rng.normal(size=ROWS))
    return tuple(jnp.asarray(x, dtype) for x in (X, y, weight))


LOSSES = {"ridge": ridge, "logistic": logistic}
LAM = {"ridge": -1.0, "logistic": -2.5}


@pytest.fixture(scope="module")
def case(dtype):
    """``case(name)``: problem, arguments of hypergradient, and the exact hypergradient."""

    def of(name):
        problem = bl.Problem(bl.minimization(LOSSES[name]), validation)
        arguments = {"lower_data": draw(dtype, 0), "upper_data": draw(dtype, 1)}
        lam, w0 = jnp.asarray(LAM[name], dtype), jnp.zeros(FEATURES, dtype)
        truth = bl.hypergradient(problem, lam, w0, **arguments, method=bl.Exact()).grad
        return (problem, lam, w0), arguments, truth

    return of


# With a = 0.5 and 2 the maps contract by 0.6; the noise of 4 rows is about as large as the residual.
RATES, STEP = bl.from_rates(0.7, 1.0), {"ridge": 0.5, "logistic": 2.0}


def sid(steps, **fields):
    """Steps and schedules by estimates."""
    return SID(**{"sampler": DRAWN, "solver": SGD(steps), "linear_solver": Richardson(steps), **fields})


def given(steps, name="ridge", **fields):
    """Steps and schedules given: less to compile and to compute."""
    solvers = {"solver": SGD(steps, RATES, STEP[name]), "linear_solver": Richardson(steps, RATES, STEP[name])}
    return sid(steps, **{**solvers, "runs": 1, **fields})


def readout(case, method, runs=100, seed=0):
    at, arguments, truth = case
    return bl.monte_carlo(*at, **arguments, method=method, key=jax.random.key(seed), runs=runs, truth=truth)


@pytest.mark.parametrize("name", LOSSES)
def test_errors_of_one_over_t_around_the_truth(case, name):
    """Exact mixed derivative: slope of the mean squared error -1 within a fifth, in the end no bias to be seen."""
    steps = np.array([100, 400, 1600])
    results = [readout(case(name), given(int(t), name)) for t in steps]
    slope = np.polyfit(np.log(steps), np.log([r.mse for r in results]), 1)[0]
    assert abs(slope + 1) < 0.2
    assert abs(results[-1].bias) < 4 * results[-1].standard_error
    assert results[-1].standard_error < 0.02 * tree.norm(case(name)[2])


def test_plateau_of_one_over_j(case):
    """``mse = c / J + mse of the exact mixed derivative`` for independent samples."""
    exact, one, ten = (readout(case("ridge"), given(400, jacobian_samples=J), 400) for J in (None, 1, 10))
    plateau = one.mse - exact.mse
    spread = 4 * np.hypot(np.hypot(ten.mse_standard_error, one.mse_standard_error / 10), exact.mse_standard_error)
    assert abs(ten.mse - exact.mse - plateau / 10) < spread < plateau / 10
    assert abs(one.bias) < 4 * one.standard_error


@pytest.mark.parametrize(("name", "sampler"), [("logistic", DRAWN), ("ridge", Sampler(7))])
def test_the_estimated_error_covers(case, name, sampler):
    """In at least the stated part of 60 runs, but for chances of 1e-4."""
    at, arguments, truth = case(name)
    method = sid(600, sampler=sampler)

    @jax.jit
    @jax.vmap
    def run(key):
        h = bl.hypergradient(*at, **arguments, method=method, key=key)
        return h.grad, h.error, h.status

    grads, errors, status = run(jax.random.split(jax.random.key(7), 60))
    assert jnp.all(status <= Status.UNRESOLVED)
    true = jnp.abs(grads - truth)
    assert jnp.sum(true <= errors) >= scipy.stats.binom.ppf(1e-4, 60, method.confidence)
    assert jnp.median(errors) < 20 * jnp.median(true)  # not by being large


def test_the_estimated_error_is_bias_plus_students_interval(dtype):
    grads, with_half = jnp.asarray([[1.0, 5.0], [3.0, 5.0]], dtype), jnp.asarray([[1.0, 2.0], [3.0, 0.0]], dtype)
    # Mean difference (0, 4). Variances 2 and 0 of the runs, 0 and 2 of the differences: two standard errors of 1.
    expected = 4 + 2**0.5 * scipy.stats.t(1).interval(0.9)[1]
    assert statistical_error(grads, with_half, 0.9) == pytest.approx(expected, rel=1e-5)


def test_one_key_one_result_also_compiled_and_batched(case, dtype):
    at, arguments, _ = case("logistic")

    def run(key):
        return bl.hypergradient(*at, **arguments, method=given(50, "logistic", runs=2), key=key)

    key = jax.random.key(0)
    eager, again, other = run(key), run(key), run(jax.random.key(1))
    assert eager.grad == again.grad != other.grad
    for h in (jax.jit(run)(key), jax.tree.map(lambda x: x[0], jax.vmap(run)(key[None]))):
        np.testing.assert_allclose(h.grad, eager.grad, rtol=1e4 * jnp.finfo(dtype).eps)
        np.testing.assert_allclose(h.error, eager.error, rtol=1e4 * jnp.finfo(dtype).eps)
    assert "2 runs, error at 95% confidence" in eager.explain()


def test_costs_are_counted_in_batches(case):
    """With steps and schedules given nothing else is spent: R t, R (k + J), R (k / 2 + J)."""
    at, arguments, _ = case("ridge")
    solvers = {"solver": SGD(30, Constant(0.5), 0.1), "linear_solver": Richardson(20, Constant(0.5), 0.1)}
    for J, evaluations in ((5, 5), (None, ROWS / 4)):
        method = sid(0, **solvers, jacobian_samples=J, runs=3)
        h = bl.hypergradient(*at, **arguments, method=method, key=jax.random.key(0), on_failure="keep")
        assert (h.lower.steps, h.adjoint.steps, h.error_info.steps) == (30, 20, 10)
        assert h.lower.matvecs == 3 * 30
        assert h.adjoint.matvecs == 3 * (20 + evaluations)
        assert h.error_info.matvecs == 3 * (10 + evaluations)


DETERMINISTIC = {"lower": {"solver": NewtonCG()}, "adjoint": {"linear_solver": CG()},
                 "both": {"solver": NewtonCG(), "linear_solver": CG(), "jacobian_samples": 200}}  # fmt: skip


@pytest.mark.parametrize("place", DETERMINISTIC)
def test_deterministic_solvers_take_either_place(case, place):
    at, arguments, truth = case("logistic")
    method = replace(given(1000, "logistic", runs=8), **DETERMINISTIC[place])
    h = bl.hypergradient(*at, **arguments, method=method, key=jax.random.key(2))
    assert abs(h.grad - truth) <= h.error
    assert h.relative_error < 0.5


def test_maps_that_are_not_symmetric(dtype):
    """``w = E[M_z] w / 2 + lam b`` by estimated steps: ``v`` solves the transposed system."""
    rng = np.random.default_rng(0)
    M, b, c = rng.normal(size=(12, 3, 3)) / 3 + np.diag([0.5, 0.5], 1), rng.normal(size=3), rng.normal(size=3)
    lower = bl.fixed_point(lambda w, lam, M: 0.5 * jnp.mean(M, 0) @ w + lam * jnp.asarray(b, dtype))
    problem = bl.Problem(lower, lambda w, lam, data: jnp.sum(jnp.asarray(c, dtype) * w))
    truth = c @ np.linalg.solve(np.eye(3) - 0.5 * M.mean(0), b)  # linear in lam
    at = problem, jnp.asarray(1.0, dtype), jnp.zeros(3, dtype)
    method = sid(400, sampler=Sampler(3, replace=True), runs=40)
    h = bl.hypergradient(*at, lower_data=jnp.asarray(M, dtype), method=method, key=jax.random.key(0))
    assert abs(h.grad - truth) < h.error < 0.1 * abs(truth)


def test_the_upper_level_can_be_sampled(case):
    """``d_w U`` afresh at each step, ``value`` from J batches: still unbiased."""
    (problem, lam, w0), arguments, truth = case("ridge")
    method = given(400, upper_sampler=DRAWN, jacobian_samples=20)
    result = readout(((problem, lam, w0), arguments, truth), method)
    assert abs(result.bias) < 4 * result.standard_error
    h = bl.hypergradient(problem, lam, w0, **arguments, method=replace(method, runs=50), key=jax.random.key(1))
    exact = bl.hypergradient(problem, lam, w0, **arguments, method=bl.Exact())
    assert abs(h.value - exact.value) < 0.2 * exact.value  # 4000 rows: a standard error below 0.05


def test_monte_carlo_in_chunks(case, dtype):
    at, arguments, truth = case("ridge")
    whole, parts = (
        bl.monte_carlo(*at, **arguments, method=given(20), key=jax.random.key(0), runs=10, truth=truth, chunk=c)
        for c in (10, 4)
    )
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e4 * jnp.finfo(dtype).eps)
    np.testing.assert_allclose(whole.mse, whole.variance * 9 / 10 + whole.bias**2, rtol=1e4 * jnp.finfo(dtype).eps)


def test_divergence_is_loud_and_tells_the_step(case):
    at, arguments, _ = case("ridge")
    method = given(500, runs=2, solver=SGD(500, Constant(100.0), 0.5))
    with pytest.raises(ConvergenceError) as caught:
        bl.hypergradient(*at, **arguments, method=method, key=jax.random.key(0))
    h = caught.value.result
    assert h.status == Status.DIVERGED
    assert 0 < h.lower.steps < 100
    assert f"lower level: {int(h.lower.steps)} steps" in h.explain()
    assert jnp.all(jnp.isfinite(h.w))


def test_nan_in_the_data_is_loud(case):
    at, arguments, _ = case("ridge")
    X, *others = arguments["lower_data"]
    bad = {**arguments, "lower_data": (X.at[5, 0].set(jnp.nan), *others)}
    with pytest.raises(ConvergenceError, match="NONFINITE"):
        bl.hypergradient(*at, **bad, method=given(500, runs=2), key=jax.random.key(0))
    h = jax.jit(lambda key: bl.hypergradient(*at, **bad, method=given(500, runs=2), key=key))(jax.random.key(0))
    assert jnp.isnan(h.grad)
    with pytest.raises(ConvergenceError, match="At least one of 3 runs"):
        bl.monte_carlo(*at, **bad, method=given(500), key=jax.random.key(0), runs=3)


KEY = jax.random.key(0)
BAD = {
    "no key": (sid(5), None, "SID draws random samples: give key="),
    "no spread": (sid(5, runs=1), KEY, r"SID\(runs=1\) has no spread"),
    "no run": (sid(5, runs=0), KEY, "runs of SID must be at least 1, but is 0"),
    "confidence": (sid(5, confidence=0.5), KEY, "confidence of SID must be at least 0.8 and below 1, but is 0.5"),
    "no sample": (sid(5, jacobian_samples=0), KEY, "jacobian_samples must be at least 1 or None, but is 0"),
    "nothing sampled": (sid(5, solver=NewtonCG(), linear_solver=CG()), KEY, "samples nothing: use AID"),
    "large batch": (sid(5, sampler=Sampler(61)), KEY, "at most the number of rows, 60, but is 61"),
    "large upper batch": (sid(5, upper_sampler=Sampler(61)), KEY, "at most the number of rows, 60, but is 61"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_a_sentence(case, name):
    at, arguments, _ = case("ridge")
    method, key, sentence = BAD[name]
    with pytest.raises(ProblemError, match=sentence):
        bl.hypergradient(*at, **arguments, method=method, key=key)
