"""The automatic method meets its tolerance, whatever the family, the start and the size of the gradient."""

import jax
import jax.numpy as jnp
import pytest
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel.status import Status
from families import FAMILIES

CONDITIONS = {"float64": 1e3, "float32": 20.0}


def norm(a):
    return float(jnp.linalg.norm(ravel_pytree(a)[0]))


def distance(a, b):
    return norm(jax.tree.map(jnp.subtract, a, b))


def spent(h):
    return int(h.matvecs)


@pytest.mark.parametrize("family", FAMILIES)
def test_meets_the_tolerance_from_cold_and_warm_starts(family, dtype):
    condition = CONDITIONS[dtype.name]
    case = FAMILIES[family](7, dtype, n=14, condition=condition)
    data = {"lower_data": case.lower_data, "upper_data": case.upper_data}
    exact = bl.hypergradient(*case[:3], method=bl.Exact(), **data)
    floor = 20 * float(jnp.finfo(dtype).eps) * condition * float(exact.scale)
    for tol in (1e-2, 1e-4, 1e-7) if dtype == jnp.float64 else (1e-2, 1e-3):
        cold = bl.hypergradient(*case[:3], tol=tol, **data)
        assert distance(cold.grad, exact.grad) <= tol * norm(exact.grad)
        assert float(cold.relative_error) <= tol
        warm = bl.hypergradient(*case[:2], cold.w, v0=cold.v, tol=tol, **data)
        assert distance(warm.grad, exact.grad) <= tol * norm(exact.grad)
        assert spent(warm) < spent(cold)
    again = bl.hypergradient(*case[:2], exact.w, v0=exact.v, tol=1e-2, **data)
    assert distance(again.grad, exact.grad) <= floor
    assert int(again.adjoint.matvecs) == 0


def quadratic(n, dtype):
    """A minimization with Hessian M + lam I, its solution and a hypergradient in closed form."""
    M = jnp.asarray(jnp.eye(n) + jnp.outer(jnp.linspace(0.1, 1, n), jnp.linspace(0.1, 1, n)), dtype)
    b = jnp.linspace(-1, 1, n, dtype=dtype) + 0.3

    def loss(w, lam, data):
        return data * (0.5 * w @ (M @ w) + 0.5 * lam * (w @ w) - b @ w)

    H = M + jnp.eye(n, dtype=dtype)
    w = jnp.linalg.solve(H, b)
    return bl.minimization(loss), w, -jnp.vdot(w, jnp.linalg.solve(H, w - 1))


def distance_to_target(w, lam, data):
    return 0.5 * jnp.sum((w - data) ** 2)


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e8])
def test_scaled_losses_give_the_same_hypergradient(scale, dtype):
    lower, _, truth = quadratic(30, dtype)
    problem = bl.Problem(lower, distance_to_target)
    h = bl.hypergradient(
        problem, 1.0, jnp.zeros(30, dtype), lower_data=jnp.asarray(scale, dtype), upper_data=jnp.ones(30, dtype)
    )
    assert abs(float(h.grad - truth)) <= 1e-4 * abs(float(truth))
    assert Status(int(h.status)) == Status.OK


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-7])
def test_vanishing_gradients_are_no_failures(tol, dtype):
    """At a perfect fit the adjoint vanishes; where two terms cancel only their difference does."""
    lower, w, truth = quadratic(30, dtype)
    one, start, eps = jnp.asarray(1.0, dtype), jnp.zeros(30, dtype), float(jnp.finfo(dtype).eps)
    fit = bl.Problem(lower, distance_to_target)
    h = bl.hypergradient(fit, one, start, lower_data=one, upper_data=w, tol=tol)
    assert abs(float(h.grad)) <= max(1e-7, 1e3 * eps)
    assert not Status(int(h.status)).failed

    def cancelling(w, lam, data):
        return distance_to_target(w, lam, 1.0) - data * lam

    h = bl.hypergradient(bl.Problem(lower, cancelling), one, start, lower_data=one, upper_data=truth, tol=tol)
    assert abs(float(h.grad)) <= 1e3 * max(eps, tol * eps**0.5) * abs(float(truth))
    assert not Status(int(h.status)).failed


def test_a_budget_of_matvecs_ends_the_work(dtype):
    lower, _, _ = quadratic(30, dtype)
    args = bl.Problem(lower, distance_to_target), 1.0, jnp.zeros(30, dtype)
    data = {"lower_data": jnp.asarray(1.0, dtype), "upper_data": jnp.ones(30, dtype)}
    with pytest.raises(bl.ConvergenceError, match="TOLERANCE_UNMET") as caught:
        bl.hypergradient(*args, max_matvecs=5, **data)
    free = bl.hypergradient(*args, **data)
    cut = caught.value.result
    assert int(cut.lower.matvecs + cut.adjoint.matvecs) < int(free.lower.matvecs + free.adjoint.matvecs)


def test_explains_itself_in_words(dtype):
    lower, _, _ = quadratic(30, dtype)
    h = bl.hypergradient(
        bl.Problem(lower, distance_to_target), 1.0, jnp.zeros(30, dtype),
        lower_data=jnp.asarray(1.0, dtype), upper_data=jnp.ones(30, dtype),
    )  # fmt: skip
    text = h.explain()
    assert "automatic" in text
    assert f"{float(h.error):.1e}" in text
    assert f"{int(h.lower.matvecs)} matvecs" in text
    assert Status.OK.sentence in text


@pytest.mark.float64
@pytest.mark.parametrize("n", [20, 400])
def test_a_problem_in_single_precision_stays_so_with_x64_enabled(n):
    lower, _, truth = quadratic(n, jnp.float32)
    h = bl.hypergradient(
        bl.Problem(lower, distance_to_target), jnp.float32(1.0), jnp.zeros(n, jnp.float32),
        lower_data=jnp.float32(1.0), upper_data=jnp.ones(n, jnp.float32), tol=1e-3,
    )  # fmt: skip
    assert h.grad.dtype == h.w.dtype == h.error.dtype == jnp.float32
    assert abs(float(h.grad - truth)) <= 1e-3 * abs(float(truth))


def test_a_budget_that_ends_the_first_round_leaves_what_was_found(dtype):
    """However little may be spent, value and gradient are those of the w and v that come back."""
    lower, _, _ = quadratic(400, dtype)
    problem = bl.Problem(lower, distance_to_target)
    one, target = jnp.ones((), dtype), jnp.ones(400, dtype)
    h = bl.hypergradient(
        problem, one, jnp.zeros(400, dtype), lower_data=one, upper_data=target, max_matvecs=3, on_failure="keep"
    )
    assert Status(int(h.status)) == Status.TOLERANCE_UNMET
    assert float(h.value) == pytest.approx(float(distance_to_target(h.w, one, target)), rel=1e-5)
    mixed = jax.grad(lambda lam: lower.pairing(h.v, h.w, lam, one))(one)
    assert float(h.grad) == pytest.approx(-float(mixed), rel=1e-4, abs=1e-6)
