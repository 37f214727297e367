"""The model families: closed forms, conditioning, derivatives, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from bilevel import models
from bilevel.models.samples import Samples, normal_contraction
from families import FAMILIES, dense_truth, relative_distance

CLOSED_FORMS = [name for name in FAMILIES if hasattr(getattr(models, name), "hypergradient")]
EXACTLY_CONDITIONED = ["ridge", "kernel_ridge", "biased_regularization", "hyper_representation", "affine"]
DECADES = [1e1, 1e2, 1e4, 1e6, 1e8]
EPS = np.finfo(np.float64).eps


@pytest.mark.float64
@pytest.mark.parametrize("condition", [10.0, 1e6])
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms_agree_with_dense_truth(name, condition):
    module, case = getattr(models, name), FAMILIES[name](1, condition=condition)
    truth = dense_truth(*case[:5])
    tolerance = 100 * EPS * truth.condition
    assert relative_distance(module.solution(case.lam, case.lower_data), truth.w) < tolerance
    grad = module.hypergradient(case.lam, case.lower_data, case.upper_data)
    assert jax.tree.structure(grad) == jax.tree.structure(case.lam)
    assert relative_distance(grad, truth.grad) < tolerance


@pytest.mark.float64
@pytest.mark.parametrize("penalty", ["plain", "log"])
def test_ridge_with_one_penalty_and_weights(penalty):
    case = FAMILIES["ridge"](3)
    weights = jnp.asarray(np.random.default_rng(0).uniform(0.0, 2.0, len(case.lower_data.y)))
    data = [samples._replace(weights=weights) for samples in (case.lower_data, case.upper_data)]
    lam = jnp.asarray(0.3 if penalty == "plain" else np.log(0.3))
    truth = dense_truth(models.ridge.problem(penalty), lam, case.w0, *data)
    closed = models.ridge.hypergradient(jnp.asarray(0.3), *data)
    chain = 1.0 if penalty == "plain" else 0.3  # d penalty / d lam
    assert closed.shape == ()
    assert relative_distance(chain * closed, truth.grad) < 100 * EPS * truth.condition


@pytest.mark.float64
def test_log_penalties_of_logistic_regression_obey_the_chain_rule():
    case = FAMILIES["logistic"](3)
    plain = dense_truth(*case[:5])
    logarithm = dense_truth(models.logistic.problem("log"), jnp.log(case.lam), *case[2:5])
    assert relative_distance(logarithm.grad, case.lam * plain.grad) < 100 * EPS * plain.condition


@pytest.mark.float64
@pytest.mark.parametrize("name", FAMILIES)
def test_central_differences_converge_to_the_truth_at_second_order(name):
    case = FAMILIES[name](2)
    flat, unravel = ravel_pytree(case.lam)
    rng = np.random.default_rng(0)
    direction = jnp.abs(flat) * rng.choice([-1.0, 1.0], flat.size)
    slope = float(ravel_pytree(dense_truth(*case[:5]).grad)[0] @ direction)

    def value(lam):
        w = dense_truth(case.problem, unravel(lam), *case[2:5]).w
        return float(case.problem.upper(w, unravel(lam), case.upper_data))

    def error(h):
        return abs((value(flat + h * direction) - value(flat - h * direction)) / (2 * h) - slope)

    coarse, fine = error(2e-2), error(1e-2)
    assert fine < 1e-2 * abs(slope)
    if name == "biased_regularization":  # U(w(lam)) is quadratic in lam: central differences are exact
        assert coarse < 1e-10 * abs(slope)
    else:
        assert 3.7 < coarse / fine < 4.3


@pytest.mark.float64
@pytest.mark.parametrize("condition", DECADES)
@pytest.mark.parametrize("name", FAMILIES)
def test_condition_number_is_what_was_asked_for(name, condition):
    actual = dense_truth(*FAMILIES[name](4, condition=condition)[:5]).condition
    if name in EXACTLY_CONDITIONED:
        assert abs(actual / condition - 1) < 100 * EPS * condition + 1e-12
    else:
        assert condition / 5 < actual < 4 * condition


@pytest.mark.parametrize("condition", [1.0, 7.0, 1e3])
@pytest.mark.parametrize("n", [2, 3, 10])
def test_normal_contraction(n, condition):
    M = normal_contraction(np.random.default_rng(n), n, condition)
    q = (condition - 1) / (condition + 1)
    assert abs(np.linalg.norm(M, 2) - q) < 1e-13
    assert np.linalg.norm(M @ M.T - M.T @ M) < 1e-13
    assert abs(np.linalg.cond(np.eye(n) - M) / condition - 1) < 1e-11


@pytest.mark.parametrize("name", FAMILIES)
def test_dtype_is_kept(name):
    case = FAMILIES[name](5, dtype=jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves((case.lam, case.w0))} == {jnp.dtype("float32")}
    residual = jax.eval_shape(case.problem.lower.residual, case.w0, case.lam, case.lower_data)
    upper = jax.eval_shape(jax.grad(case.problem.upper, argnums=(0, 1)), case.w0, case.lam, case.upper_data)
    assert {leaf.dtype for leaf in jax.tree.leaves((residual, upper))} == {jnp.dtype("float32")}
    if name in CLOSED_FORMS:
        grad = getattr(models, name).hypergradient(case.lam, case.lower_data, case.upper_data)
        assert {leaf.dtype for leaf in jax.tree.leaves(grad)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_follow_their_seed(name):
    first, again, other = (ravel_pytree(FAMILIES[name](seed)[1:5])[0] for seed in (6, 6, 7))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", ["ridge", "logistic", "multinomial"])
def test_weights_select_rows(name):
    case = FAMILIES[name](8)
    n = len(case.lower_data.y)
    mask = np.random.default_rng(0).random(n) < 0.6
    weights = jnp.asarray(mask * n / mask.sum(), case.lower_data.X.dtype)
    w = jax.tree.map(lambda leaf: leaf + 0.5, case.w0)
    masked = case.lower_data._replace(weights=weights)
    selected = Samples(case.lower_data.X[mask], case.lower_data.y[mask])
    for function in (case.problem.lower.function, case.problem.upper):
        np.testing.assert_allclose(
            function(w, case.lam, masked), function(w, case.lam, selected), rtol=20 * jnp.finfo(weights.dtype).eps
        )


@pytest.mark.parametrize("margin", [-1e4, 1e4])
def test_logistic_losses_are_finite_and_exact_at_extreme_margins(margin):
    data = Samples(jnp.ones((1, 1)), jnp.ones(1))
    loss, slope = jax.value_and_grad(models.logistic.upper)(jnp.full(1, margin), jnp.zeros(1), data)
    assert (loss, slope[0]) == (max(-margin, 0.0), min(np.sign(margin), 0.0) if margin < 0 else 0.0)
    w = models.multinomial.Weights(coef=jnp.array([[0.0, margin]]), intercept=jnp.zeros(2))
    classes = Samples(data.X, jnp.ones(1, int))
    assert models.multinomial.cross_entropy(w, classes) == max(-margin, 0.0)
