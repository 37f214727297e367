"""A budget is one of everything, and factorizations come where products have cost as much."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.lagrangian import Instance
from bilevel.solvers import NewtonCG, NewtonKrylov
from bilevel.solvers.lbfgs import LBFGS
from bilevel.status import Status, is_failure

SURROUNDINGS = 24  # evaluations of residuals, gradients and line searches around the solves that a budget cuts short
SIZE = 320  # more than are always factorized
CONDITION = 300.0


def loss(w, lam, data):
    """``1/2 <w, D w> - lam <1, w>``: ``w = lam / D``."""
    return 0.5 * jnp.sum(data * w**2) - lam * jnp.sum(w)


def upper(w, lam, data):
    return 0.5 * jnp.sum((w - data) ** 2)


def instance(n, dtype):
    D = jnp.asarray(np.geomspace(1, CONDITION, n), dtype)
    return Instance(bl.Problem(bl.minimization(loss), upper), jnp.asarray(1.0, dtype), D, jnp.zeros(n, dtype))


def call(at, w0, **options):
    problem, lam, lower_data, upper_data = at
    return bl.hypergradient(
        problem, lam, w0, lower_data=lower_data, upper_data=upper_data, on_failure="keep", **options
    )


def true_hypergradient(at):
    """``U' = sum_i lam / D_i^2``."""
    return float(np.sum(1 / np.asarray(at.lower_data, np.float64) ** 2))


@pytest.mark.parametrize(("n", "start"), [(40, "cold"), (SIZE, "cold"), (SIZE, "warm")])
def test_a_budget_holds_for_everything(n, start, dtype):
    at = instance(n, dtype)
    w0 = jnp.zeros(n, dtype)
    v0 = None if start == "cold" else jnp.ones(n, dtype)
    ended = []
    for most in (3, 40, 120, 2000):
        h = call(at, w0, v0=v0, tol=1e-3, max_matvecs=most)
        assert int(h.matvecs) <= most + SURROUNDINGS
        assert Status(int(h.status)) in (Status.OK, Status.TOLERANCE_UNMET)
        ended.append(bool(is_failure(h.status)))
        if not ended[-1]:
            assert abs(float(h.grad) - true_hypergradient(at)) <= 2e-3 * true_hypergradient(at)
    assert ended[0]
    assert not ended[-1]


def test_a_budget_holds_in_compiled_programs(dtype):
    at = instance(SIZE, dtype)
    compiled = jax.jit(lambda most: call(at, jnp.zeros(SIZE, dtype), tol=1e-3, max_matvecs=most))
    for most, ends in ((3, True), (60, True), (2000, False)):
        h = compiled(most)
        assert int(h.matvecs) <= most + SURROUNDINGS
        assert (Status(int(h.status)) == Status.TOLERANCE_UNMET) == ends


@pytest.mark.parametrize("solver", [NewtonCG, NewtonKrylov, LBFGS])
def test_a_solver_stops_at_its_budget(solver, dtype):
    at, w0 = instance(SIZE, dtype), jnp.zeros(SIZE, dtype)
    solve = jax.jit(lambda most: solver(max_matvecs=most)(at.problem.lower, at.lam, w0, at.lower_data, rtol=1e-4))
    for most in (10, 45):
        _, info = solve(most)
        assert Status(int(info.status)) == Status.MAX_STEPS
        assert most <= int(info.matvecs) <= most + SURROUNDINGS


def test_a_warm_start_factorizes_once_products_have_cost_as_much(dtype):
    at = instance(SIZE, dtype)
    h = call(at, jnp.zeros(SIZE, dtype), v0=jnp.ones(SIZE, dtype), tol=1e-3)
    assert "factorization" in h.method
    assert abs(float(h.grad) - true_hypergradient(at)) <= 1e-3 * true_hypergradient(at)


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_newton_ends_where_rounding_hides_all_progress(scale, dtype):
    """The gradient is rounded more coarsely than the tolerance asks for."""

    @partial(jax.custom_jvp)
    def rough(g):
        return g + 1e-3 * scale * jnp.sin(1e7 * g / scale)

    @rough.defjvp
    def _(primals, tangents):
        return rough(*primals), tangents[0]

    @jax.custom_jvp
    def noisy(w, data):
        return 0.5 * jnp.sum(data * (w - 1) ** 2)

    @noisy.defjvp
    def _(primals, tangents):
        w, data = primals
        return noisy(w, data), jnp.sum(rough(data * (w - 1)) * tangents[0])

    lower = bl.minimization(lambda w, lam, data: lam + noisy(w, data))
    data = scale * jnp.asarray(np.geomspace(1e-2, 1, 20), dtype)
    _, info = NewtonCG()(lower, jnp.asarray(scale, dtype), jnp.zeros(20, dtype), data, rtol=1e-7)
    assert Status(int(info.status)) in (Status.NO_DESCENT, Status.OK)
    assert int(info.steps) <= 100
