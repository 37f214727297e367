"""The check finds planted faults, names the part that is wrong, and lets correct problems pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.check import check_hypergradient
from bilevel.checking.differences import differentiate, rounding_noise
from families import FAMILIES

N = 6


@jax.custom_jvp
def claimed(x, factor):
    """``x``, whose derivative is claimed to be ``factor``: 1 is right, 0 is a stop_gradient, 2 a wrong rule."""
    return x


@claimed.defjvp
def _(primals, tangents):
    (x, factor), (dx, _) = primals, tangents
    return claimed(x, factor), factor * dx


RIGHT = dict.fromkeys(("lower_w", "lower_lam", "upper_w", "upper_lam"), 1.0)


def loss(w, lam, data):
    c = data["claims"]
    fit = 0.5 * jnp.sum((data["X"] @ w - data["y"]) ** 2)
    return fit + 0.5 * jnp.sum(jnp.exp(claimed(lam, c["lower_lam"])) * claimed(w, c["lower_w"]) ** 2)


def upper(w, lam, data):
    c = data["claims"]
    return 0.5 * jnp.sum((claimed(w, c["upper_w"]) - data["y"]) ** 2) + jnp.sum(jnp.cos(claimed(lam, c["upper_lam"])))


def regression(dtype, **claims):
    rng = np.random.default_rng(0)
    X, y, target, lam = (jnp.asarray(rng.standard_normal(s), dtype) for s in ((9, N), 9, N, N))
    claims = {name: jnp.asarray(value, dtype) for name, value in {**RIGHT, **claims}.items()}
    return {
        "problem": bl.Problem(bl.minimization(loss), upper), "lam": 0.5 * lam, "w0": jnp.zeros(N, dtype),
        "lower_data": {"X": X, "y": y, "claims": claims}, "upper_data": {"y": target, "claims": claims},
    }  # fmt: skip


def names(parts):
    return {part.name for part in parts}


FAULTS = {
    "none": ({}, set()),
    "rule of the loss by lam": ({"lower_lam": 2.0}, {"finite differences", "cross derivative"}),
    "stop_gradient on lam in the loss": ({"lower_lam": 0.0}, {"finite differences", "cross derivative"}),
    "rule of the upper objective by lam": ({"upper_lam": 0.9}, {"finite differences", "direct term"}),
    "rule of the upper objective by w": ({"upper_w": 0.9}, {"finite differences", "upper gradient"}),
    "rule small enough to be overlooked": ({"lower_lam": 1.05}, {"finite differences", "cross derivative"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_derivative_is_named(fault, dtype):
    claims, expected = FAULTS[fault]
    check = check_hypergradient(**regression(dtype, **claims), method=bl.AID())
    assert names(check.wrong) == expected
    assert check.ok == (not expected)
    assert check.truth == "Exact"
    assert all(name in check.explain() for name in expected)


def test_a_wrong_rule_of_the_loss_by_w_is_named(dtype):
    """All solvers then solve another problem, with a Jacobian that is not even that of its residual."""
    check = check_hypergradient(**regression(dtype, lower_w=0.8), method=bl.AID())
    assert {"lower-level gradient", "Jacobian"} <= names(check.wrong)
    assert not names(check.wrong) & {"cross derivative", "upper gradient", "direct term"}
    assert not check.ok


BUDGETS = {
    "solution": bl.AID(bl.Picard(steps=3)),
    "adjoint": bl.AID(linear_solver=bl.CG(steps=2)),
}


@pytest.mark.parametrize("part", BUDGETS)
def test_too_few_steps_are_told_from_too_few_products(part, dtype):
    check = check_hypergradient(**regression(dtype), method=BUDGETS[part])
    assert names(check.wrong) == {"hypergradient", part}
    error = getattr(check, part).error
    assert error == pytest.approx(check.hypergradient.error, rel=0.01)  # the other part is solved far better
    assert (check.distance > 1e-3) == (part == "solution")


def affine_map(w, lam, data):
    return data["M"] @ claimed(w, data["claim"]) + lam


def affine(dtype, M, claim=1.0, symmetric=False):
    problem = bl.Problem(bl.fixed_point(affine_map, symmetric), lambda w, lam, data: 0.5 * jnp.sum((w - data) ** 2))
    lower_data = {"M": jnp.asarray(M, dtype), "claim": jnp.asarray(claim, dtype)}
    one = jnp.ones(N, dtype)
    target = jnp.linspace(0, 1, N, dtype=dtype)
    return {"problem": problem, "lam": one, "w0": one, "lower_data": lower_data, "upper_data": target}


TRIANGULAR = 0.5 * np.tri(N)
SYMMETRIC = 0.5 * np.exp(-np.abs(np.subtract.outer(np.arange(N), np.arange(N))))


def test_a_nonsymmetric_map_passes_and_a_false_promise_of_symmetry_does_not(dtype):
    method = bl.AID()
    assert check_hypergradient(**affine(dtype, TRIANGULAR), method=method).ok
    assert check_hypergradient(**affine(dtype, SYMMETRIC, symmetric=True), method=method).ok
    false = check_hypergradient(**affine(dtype, TRIANGULAR, symmetric=True), method=method)
    assert {"symmetry", "adjoint", "hypergradient"} <= names(false.wrong)
    assert not names(false.wrong) & {"finite differences", "Jacobian", "cross derivative", "solution"}


def test_a_wrong_jacobian_is_named(dtype):
    check = check_hypergradient(**affine(dtype, TRIANGULAR, claim=0.7), method=bl.AID())
    assert {"Jacobian", "finite differences"} <= names(check.wrong)
    assert not names(check.wrong) & {"cross derivative", "direct term", "upper gradient"}


def test_a_lower_level_that_is_not_solved_is_the_solution(dtype):
    """``w + 1`` has no fixed point; nothing raises."""
    check = check_hypergradient(**affine(dtype, np.eye(N)), method=bl.AID())
    assert "solution" in names(check.wrong)
    assert not check.ok
    assert "solution" in check.explain()


def diagonal_loss(w, lam, data):
    return 0.5 * jnp.sum((data["diagonal"] + claimed(lam, data["claim"]) ** 2) * w**2) - jnp.sum(w)


LARGE = bl.Problem(bl.minimization(diagonal_loss), lambda w, lam, data: 0.5 * jnp.mean((w - 1.0) ** 2))


@pytest.mark.parametrize("claim", [1.0, 0.0])
def test_a_large_problem_is_checked_by_finite_differences(claim, dtype):
    n = 2500
    data = {"diagonal": jnp.linspace(1, 3, n, dtype=dtype), "claim": jnp.asarray(claim, dtype)}
    check = check_hypergradient(
        LARGE, jnp.asarray(0.7, dtype), jnp.zeros(n, dtype), lower_data=data, method=bl.AID(refine=1)
    )
    expected = set() if claim else {"cross derivative", "finite differences"}
    assert check.truth == "finite differences"
    assert check.ok == (not expected)
    assert names(check.wrong) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_correct_families_pass(family, dtype):
    case = FAMILIES[family](3, dtype, n=12, condition=20.0)
    method = None if family == "ridge" else bl.AID(refine=1)  # the automatic one takes longest to compile
    check = check_hypergradient(*case[:3], lower_data=case.lower_data, upper_data=case.upper_data, method=method)
    assert check.ok, check.explain()
    assert not check.undecided
    assert check.differences.error < {"float32": 1e-2, "float64": 1e-5}[dtype.name]
    if dtype == jnp.float64 and np.isfinite(check.order):
        assert check.order == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("tol", [0.0, 1.0, float("nan")])
def test_a_wrong_tolerance_is_refused(tol, dtype):
    with pytest.raises(bl.ProblemError, match="tol must lie between 0 and 1, but is"):
        check_hypergradient(**regression(dtype), tol=tol)


@pytest.mark.float64
def test_central_differences_have_order_two_and_know_their_error():
    def f(t):
        return np.array([np.exp(t), np.sin(3 * t + 1), 1 / (2 + t), t**2 + t, 0.0])

    truth = np.array([1.0, 3 * np.cos(1), -0.25, 1.0, 0.0])
    eps = np.finfo(float).eps
    found = differentiate(f, rounding_noise(f, eps), lambda slope: 0 * slope, eps)
    assert found.order[:3] == pytest.approx(2, abs=0.1)
    assert np.isnan(found.order[3:]).all()
    assert (np.abs(found.slope - truth) <= found.error + 1e-15).all()
    assert (found.error <= 1e-9).all()


def test_noise_of_a_function_is_measured():
    rng = np.random.default_rng(0)
    noise = 1e-6

    def f(t):
        return np.array([3 * t + noise * rng.standard_normal() for _ in range(200)])

    measured = rounding_noise(f, np.finfo(float).eps)
    assert np.median(measured) == pytest.approx(noise, rel=0.3)
    found = differentiate(f, measured, lambda slope: 0 * slope, np.finfo(float).eps)
    assert np.mean(np.abs(found.slope - 3) <= found.error) > 0.95
