"""A solve with a factorization near the matrix: what it takes, what it reports, and where CG goes on."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operators import N, Operator, residual, rhs, solve, spd, truth, with_spectrum

from bilevel import tree
from bilevel.linear.cg import run_cg
from bilevel.linear.dense import condition
from bilevel.linear.factorized import factorize, solve_near
from bilevel.linear.operator import from_matrix
from bilevel.status import SolveInfo, Status

INDEFINITE = with_spectrum(np.concatenate([[-0.1], np.linspace(0.5, 1.0, N - 1)]))


def factorization(matrix, dtype):
    return factorize(from_matrix(jnp.asarray(matrix, dtype), symmetric=True, definite=True), jnp.zeros(N, dtype))


def near(A, b, x0, near, settle, *, preconditioner, rtol, steps):
    del x0, preconditioner
    return solve_near(A, b, near, rtol, settle, 10 * N if steps is None else steps)


def plain(A, b, x0, near, settle, *, preconditioner, rtol, steps):
    """What CG makes of the same request."""
    del x0, preconditioner
    run = run_cg(A, b, near, rtol * tree.norm(b), settle, 10 * N if steps is None else steps)
    return run.x, SolveInfo(run.step, run.step, run.residual_norm, run.status)


def run(kernel, M, settle, *args, **kwargs):
    def solver(A, b, x0, **request):
        return kernel(A, b, x0, M, settle, **request)

    return solve(jax.tree_util.Partial(solver), *args, **kwargs)


def changed(q: float) -> Operator:
    """A matrix by q away from ``spd(10)``, relative to it in all directions."""
    A = spd(1e1).matrix
    half = np.linalg.cholesky(A)
    return Operator(half @ (np.eye(N) + q * with_spectrum(np.linspace(-1, 1, N), 7)) @ half.T, True, True)


@pytest.mark.parametrize("settle", [None, 0.03])
@pytest.mark.parametrize(("q", "rtol"), [(0.0, 1e-3), (1e-3, 0.03), (1e-3, 1e-4), (0.3, 1e-3), (3.0, 1e-3)])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_it_is_cg_at_no_higher_cost(q, rtol, settle, scale, dtype):
    operator, b = changed(min(q, 0.9)), scale * rhs()
    M = factorization(np.eye(N) if q > 1 else spd(1e1).matrix, dtype)
    ours, cg = (run(kernel, M, settle, operator, b, dtype, rtol=rtol) for kernel in (near, plain))
    assert ours.status == cg.status == Status.OK
    assert ours.products == int(ours.info.matvecs) <= int(cg.info.matvecs)
    assert residual(operator, b, ours.x, dtype) <= 1.01 * rtol * np.linalg.norm(b)
    if settle is not None:
        x = truth(operator, b, dtype)
        assert np.linalg.norm(ours.x - x) <= 0.2 * np.linalg.norm(x)


def test_negative_curvature_is_seen(dtype):
    operator = Operator(INDEFINITE, True, True)
    M = factorization(INDEFINITE + 0.2 * np.eye(N), dtype)
    for settle in (None, 0.03):
        found = run(near, M, settle, operator, rhs(), dtype, rtol=0.014)
        assert found.status == Status.NEGATIVE_CURVATURE
        assert found.products == int(found.info.matvecs)


def test_a_right_hand_side_along_negative_curvature_is_no_solution(dtype):
    """There ``A M b`` is nearly b where M, wrongly, is negative, too: it is the curvature that tells."""
    A = np.diag(np.concatenate([[-1.0], np.ones(N - 1)]))
    M = jax.tree_util.Partial(jnp.multiply, jnp.asarray(np.diag(A), dtype))
    found = run(near, M, None, Operator(A, True, True), np.eye(N)[0], dtype, rtol=1e-3)
    assert found.status == Status.NEGATIVE_CURVATURE


def test_zero_takes_no_product_and_budgets_are_kept(dtype):
    operator, M = changed(1e-3), factorization(spd(1e1).matrix, dtype)
    nothing = run(near, M, 0.03, operator, np.zeros(N), dtype, rtol=1e-3)
    assert (nothing.status, nothing.products, int(nothing.info.matvecs)) == (Status.OK, 0, 0)
    assert not np.any(nothing.x)
    for steps in (0, 1, 2):
        cut = run(near, M, None, operator, rhs(), dtype, rtol=1e-12, steps=steps)
        assert (cut.status, cut.products) == (Status.MAX_STEPS, steps)
        assert int(cut.info.matvecs) == steps


def test_what_is_not_finite_is_left_to_cg(dtype):
    operator, M = changed(1e-3), factorization(spd(1e1).matrix, dtype)
    ours, cg = (run(kernel, M, 0.03, operator, np.full(N, np.nan), dtype, rtol=1e-3) for kernel in (near, plain))
    assert (ours.status, ours.products) == (cg.status, cg.products)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("number", [1.0, 10.0, 1e3])
def test_condition_is_that_of_the_matrix(number, scale, dtype):
    A = jnp.asarray(scale * spd(number).matrix, dtype)
    found = condition(partial(jnp.linalg.solve, A), jnp.linalg.norm(A, 2), A[0])
    assert 0.5 * number <= found <= 1.01 * number
    assert condition(lambda x: x * jnp.inf, jnp.linalg.norm(A, 2), A[0]) == jnp.inf
