"""Bounds by terms of a higher precision: against exact rational arithmetic, and where there is none."""

from dataclasses import replace
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel import tree
from bilevel.certificates.aposteriori import Certificate
from bilevel.certificates.double import has_double, rounded_up
from bilevel.models import ridge
from bilevel.sharpen import sharpen_bound
from bilevel.status import ProblemError
from certificates.instances import instance, with_constants
from families import FAMILIES, dense_truth, relative_distance

UNCERTAIN = 10 * np.finfo(np.float64).eps  # times the condition number: relative error of a dense truth


def compute(case, method=None, **options):
    return bl.hypergradient(
        *case[:3], lower_data=case.lower_data, upper_data=case.upper_data, method=method, on_failure="keep", **options
    )


def sharpened(case, h):
    return sharpen_bound(case.problem, case.lam, h, lower_data=case.lower_data, upper_data=case.upper_data)


def fractions(x):
    return np.vectorize(Fraction, otypes=[object])(np.asarray(x, np.float64))


def solve(A, b):
    """``A^-1 b`` by elimination; A is definite, so nothing has to be exchanged."""
    rows = np.concatenate([A, b[:, None]], axis=1)
    for i in range(len(b)):
        rows[i] = rows[i] / rows[i, i]
        for j in range(len(b)):
            if j != i:
                rows[j] = rows[j] - rows[j, i] * rows[i]
    return rows[:, -1]


def exact_hypergradient(case):
    """``-w v`` of ridge regression with one penalty per feature, as fractions."""
    (X, y), (Z, z) = ([fractions(data.X), fractions(data.y)] for data in (case.lower_data, case.upper_data))
    A = X.T @ X / len(y) + np.diag(fractions(case.lam))
    w = solve(A, X.T @ y / len(y))
    return -w * solve(A, Z.T @ (Z @ w - z) / len(z))


def squared_error(h, exact):
    return sum((fractions(h.grad) - exact) ** 2)


METHODS = {
    "loose": bl.AID(bl.GradientDescent(rtol=1e-2), bl.CG(rtol=1e-2)),
    "tight": bl.AID(bl.GradientDescent(rtol=1e-5), bl.CG(rtol=1e-5)),
    "refined": bl.AID(bl.LBFGS(), bl.CG(), refine=1),
    "exact": bl.Exact(),
    "unrolled": bl.ITD(steps=50),
    "automatic": None,
}


@pytest.mark.parametrize("condition", [10.0, 1e4, 1e7])
@pytest.mark.parametrize("method", METHODS)
def test_the_sharpened_bound_is_the_error(method, condition, dtype):
    """Also where that is rounding; never below, in exact arithmetic."""
    case = with_constants("ridge", 1, dtype, condition, n=5)
    h, exact = compute(case, METHODS[method]), exact_hypergradient(case)
    sharp = sharpened(case, h)
    bound, error = Fraction(float(sharp.bound)), squared_error(h, exact)
    assert sharp.proved
    assert sharp.bound.dtype == h.bound.dtype
    assert error <= bound**2 <= 1.01**2 * error
    assert int(sharp.error_info.matvecs) > int(h.error_info.matvecs)
    assert "proved" in sharp.explain()


@pytest.mark.parametrize("condition", [10.0, 1e4, 1e6])
@pytest.mark.parametrize("method", METHODS)
def test_bounds_of_float32_are_those_of_float64(method, condition):
    case = with_constants("ridge", 1, jnp.float32, condition, n=5)
    h, exact = compute(case, METHODS[method]), exact_hypergradient(case)
    bound, error = Fraction(float(h.bound)), squared_error(h, exact)
    assert h.proved
    assert h.bound.dtype == jnp.float32
    assert error <= bound**2 <= 4 * error


@pytest.mark.float64
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_of_every_family(family):
    """Above the uncertainty of the truth, to which rounding in float32 is no small error."""
    for condition in (1e1, 1e3, 1e5):
        case = with_constants(family, 3, jnp.float32, condition)
        truth = dense_truth(*case[:5])
        h = compute(case, bl.Exact())
        bound, true = float(h.bound) / float(tree.norm(truth.grad)), relative_distance(h.grad, truth.grad)
        assert h.proved
        assert true - UNCERTAIN * truth.condition <= bound <= 10 * true + 1e-6


@pytest.mark.float64
@pytest.mark.parametrize("family", FAMILIES)
def test_the_sharpened_bound_of_every_family(family):
    """No more above the error than the truth is uncertain."""
    case = with_constants(family, 3, jnp.float64, 1e4)
    truth = dense_truth(*case[:5])
    for method in (bl.Exact(), bl.AID(bl.Picard(steps=5), refine=1)):
        h = compute(case, method)
        sharp = sharpened(case, h)
        bound, true = float(sharp.bound) / float(tree.norm(truth.grad)), relative_distance(h.grad, truth.grad)
        assert sharp.proved
        assert abs(bound - true) <= UNCERTAIN * truth.condition + 0.5 * true


def test_a_bound_rounds_up():
    for bound in (0.1, 0.1 + 1e-12, 1.0, np.inf, np.nan, 1e-50):
        found = rounded_up(Certificate(np.float64(bound), jnp.asarray(True), jnp.asarray(3)), jnp.dtype("float32"))
        assert found.bound.dtype == jnp.float32
        assert not float(found.bound) < bound
        assert not float(found.bound) > bound * (1 + 2e-7) + 1e-44


def seen_through(change):
    """A ridge problem in float32 whose loss sees ``change(w)``."""
    case = with_constants("ridge", 0, jnp.float32)
    problem = bl.Problem(bl.minimization(lambda w, lam, data: ridge.loss(change(w), lam, data)), ridge.upper)
    return case._replace(problem=replace(problem, constants=ridge.constants))


def insists(w):
    """``w`` by a loop that carries float32 and no other type."""
    return jax.lax.fori_loop(0, 1, lambda _, x: x + w, jnp.zeros(w.shape, jnp.float32))


ROUNDED = [
    lambda w: w.astype(jnp.float32) * jnp.ones_like(w),
    lambda w: jax.jit(lambda x: x.astype(jnp.float16).astype(x.dtype))(w),
    lambda w: jax.lax.reduce_precision(w, 8, 23),
    insists,
]


def test_functions_of_numbers_have_values_in_float64():
    for change in (lambda w: w, lambda w: jnp.float32(0.5) * w + w / 2, lambda w: w * jnp.ones(w.shape, jnp.float32)):
        case = seen_through(change)
        assert has_double(instance(case), case.w0)


@pytest.mark.parametrize("change", ROUNDED)
def test_functions_that_round_keep_their_bound(change):
    """What is rounded in them no evaluation in float64 would see."""
    case, plain = seen_through(change), seen_through(lambda w: w)
    assert not has_double(instance(case), case.w0)
    h, fine = compute(case, bl.Exact()), compute(plain, bl.Exact())
    assert h.proved
    assert h.bound > 10 * fine.bound
    with pytest.raises(ProblemError, match=r"unknown in quadruple precision|cannot be evaluated in float64"):
        sharpened(case, h)


def test_functions_that_draw_are_other_functions_in_float64():
    def noisy(w):
        return w + 1e-3 * jax.random.normal(jax.random.key(0), w.shape, w.dtype)

    case = seen_through(noisy)
    assert not has_double(instance(case), case.w0)
    with pytest.raises(ProblemError, match="unknown in quadruple precision"):
        sharpened(case, compute(case, bl.Exact()))


def test_what_is_in_float64_already_is_left_alone(dtype):
    case = with_constants("ridge", 0, dtype)
    assert has_double(instance(case), case.w0) == (dtype == jnp.float32)


def test_x64_stays_as_it_is(dtype):
    before = jax.config.jax_enable_x64
    case = with_constants("ridge", 0, dtype)
    h = sharpened(case, compute(case))
    assert jax.config.jax_enable_x64 == before
    assert {x.dtype for x in (h.grad, h.bound, h.error, h.w)} == {jnp.dtype(dtype)}


def test_transformations_bound_in_their_own_precision():
    """Nothing can be evaluated beside a program."""
    case = with_constants("ridge", 1, jnp.float32, 1e4, n=5)
    eager, jitted = compute(case, bl.Exact()), jax.jit(lambda: compute(case, bl.Exact()))()
    assert np.allclose(eager.grad, jitted.grad, rtol=1e-2)
    assert eager.bound < 1e-2 * jitted.bound


def test_no_sharpened_bound_without_constants(dtype):
    case = with_constants("ridge", 0, dtype)
    h = compute(case)
    without = case._replace(problem=replace(case.problem, constants=None))
    with pytest.raises(ProblemError, match="needs a problem with constants"):
        sharpened(without, h)
    c = ridge.constants(case.lam, case.lower_data, case.upper_data)
    missing = case._replace(problem=replace(case.problem, constants=replace(c, nu1=None)))
    assert np.isnan(sharpened(missing, compute(missing)).bound)
    assert sharpened(missing, h).bound == h.bound
    estimated = case._replace(problem=replace(case.problem, constants=replace(c, estimated=("nu2",))))
    assert not sharpened(estimated, h).proved
    assert sharpened(estimated, h).bound > 0


def test_what_quadruple_precision_does_not_know_is_named(dtype):
    at = with_constants("ridge", 0, dtype)
    problem = bl.Problem(at.problem.lower, lambda w, lam, data: jnp.sum(jax.lax.lgamma(w)), constants=ridge.constants)
    h = compute(at)
    with pytest.raises(ProblemError, match="unknown in quadruple precision: digamma"):
        sharpened(at._replace(problem=problem), h)
