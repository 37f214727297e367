"""CG for exactly so many steps: no vector is chosen from two, and a failure leaves what it has found as it is."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import subjaxprs
from operators import N, Operator, rhs, solve, spd, with_spectrum

import bilevel as bl
from bilevel.linear.cg import run_cg
from bilevel.linear.operator import from_matrix
from bilevel.status import Status

STEPS = 2 * N
INDEFINITE = with_spectrum(np.concatenate([[-0.02], np.linspace(0.1, 1.0, N - 1)]))  # which some steps do not see
SINGULAR = with_spectrum(np.concatenate([np.zeros(N // 2), np.linspace(0.1, 1.0, N - N // 2)]))


def run(A, b, target):
    return run_cg(from_matrix(A, symmetric=True), b, lambda r: r, target, None, STEPS)


@partial(jax.jit, static_argnames="looks")
def both(A, b, looks):
    return run(A, b, 0.0 if looks else None)


@pytest.mark.parametrize("matrix", [INDEFINITE, SINGULAR, -np.eye(N), np.zeros((N, N))],
                         ids=["indefinite", "singular", "negative", "zero"])  # fmt: skip
def test_a_budget_that_fails_ends_as_a_loop_that_looks(matrix, dtype):
    A, b = jnp.asarray(matrix, dtype), jnp.asarray(rhs(), dtype)
    budget, expected = both(A, b, looks=False), both(A, b, looks=True)
    assert Status(int(expected.status)) in (Status.NEGATIVE_CURVATURE, Status.SINGULAR)
    assert int(expected.step) < STEPS
    assert (int(budget.status), int(budget.step)) == (int(expected.status), int(expected.step))
    for found, right in zip((budget.x, budget.p), (expected.x, expected.p), strict=True):
        np.testing.assert_allclose(found, right, rtol=0, atol=1e3 * float(jnp.finfo(dtype).eps) * np.abs(right).max())


def test_a_failure_in_a_batch_is_its_own(dtype):
    A = jnp.asarray(np.stack([INDEFINITE, spd(1e1).matrix]), dtype)
    found = jax.jit(jax.vmap(lambda A: run(A, jnp.asarray(rhs(), dtype), None)))(A)
    np.testing.assert_array_equal(found.status, [Status.NEGATIVE_CURVATURE, Status.OK])
    assert int(found.step[1]) == STEPS
    np.testing.assert_allclose(A[1] @ found.x[1], rhs(), rtol=1e3 * float(jnp.finfo(dtype).eps) ** 0.5)


def test_the_product_that_is_not_finite_reaches_nothing(dtype):
    A = np.eye(N)
    A[0, 0] = np.nan
    A, b = jnp.asarray(A, dtype), jnp.asarray(rhs(), dtype)
    for found in (both(A, b, looks=False), both(A, b, looks=True)):
        assert (int(found.status), int(found.step)) == (Status.NONFINITE, 1)
        np.testing.assert_array_equal(found.x, b)
        assert np.isfinite(found.p).all()  # zero times p may be added to x


@pytest.mark.parametrize("scale", [1e-20, 1e20])
@pytest.mark.parametrize(
    ("matrix", "status"),
    [(INDEFINITE, Status.NEGATIVE_CURVATURE), (SINGULAR, Status.SINGULAR), (-np.eye(N), Status.NEGATIVE_CURVATURE)],
    ids=["indefinite", "singular", "negative"],
)
def test_no_scale_hides_a_failure_in_float32(matrix, status, scale):
    """The squares of ``A p`` would be beyond the range of float32."""
    plain = solve(bl.CG(steps=STEPS), Operator(matrix, True, True), rhs(), jnp.float32)
    scaled = solve(bl.CG(steps=STEPS), Operator(scale * matrix, True, True), rhs(), jnp.float32)
    assert plain.status == scaled.status == status


def vector_choices(jaxpr):
    """Choices between arrays that are no scalars."""
    own = [e for e in jaxpr.eqns if e.primitive.name == "select_n" and e.outvars[0].aval.shape != ()]
    return own + [choice for inner in subjaxprs(jaxpr) for choice in vector_choices(inner)]


def test_no_vector_is_chosen_in_the_loop(dtype):
    A, b = jnp.asarray(spd(1e1).matrix, dtype), jnp.asarray(rhs(), dtype)
    jaxpr = jax.make_jaxpr(lambda b: bl.CG(steps=STEPS)(from_matrix(A, symmetric=True), b))(b).jaxpr
    (loop,) = [e for e in jaxpr.eqns if e.primitive.name == "while"]
    assert not vector_choices(loop.params["body_jaxpr"].jaxpr)
