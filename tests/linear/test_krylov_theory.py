"""What theory says of each iteration: finite termination, rates, optimality, exact preconditioners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operators import OPERATORS, N, residual, rhs, solve, spd, truth

import bilevel as bl
from bilevel.linear.neumann import Neumann
from bilevel.linear.normal_cg import NormalCG
from bilevel.linear.operator import from_matrix
from bilevel.status import ProblemError, Status

SOLVERS = {"CG": bl.CG(), "GMRES": bl.GMRES(), "Richardson": bl.Richardson(), "NormalCG": NormalCG()}


@pytest.mark.float64
@pytest.mark.parametrize("k", [N, N + 3, 3 * N])
def test_cg_reaches_the_dense_answer_in_n_steps(k, dtype):
    """Identity 1.9g, and further steps of a budget do no harm."""
    operator = spd(1e1)
    x = solve(bl.Dense(), operator, rhs(), dtype).x
    run = solve(bl.CG(), operator, rhs(), dtype, steps=k)
    assert run.status == Status.OK
    assert np.linalg.norm(run.x - x) <= 1e-12 * np.linalg.norm(x)


@pytest.mark.parametrize("operator", ["spd 1e1", "spd 1e3", "spd tiny", "spd huge"])
def test_cg_converges_as_fast_as_its_bound(operator, dtype):
    """``|x_k - x|_A <= 2 ((sqrt(kappa) - 1) / (sqrt(kappa) + 1))^k |x|_A``, and never rises."""
    operator = OPERATORS[operator]
    A, x = operator.matrix, truth(operator, rhs(), dtype)
    rate = (operator.condition**0.5 - 1) / (operator.condition**0.5 + 1)

    def energy(e):
        return (e @ A @ e) ** 0.5

    rounding = 10 * N * float(jnp.finfo(dtype).eps) * operator.condition**0.5 * energy(x)
    errors = [energy(np.float64(solve(bl.CG(), operator, rhs(), dtype, steps=k).x) - x) for k in range(N)]
    assert errors[0] == pytest.approx(energy(x))
    for k, error in enumerate(errors):
        assert error <= 2 * rate**k * energy(x) + rounding
        assert error <= errors[max(k - 1, 0)] + rounding


@pytest.mark.parametrize("operator", ["spd 1e1", "contraction", "rotation"])
def test_richardson_contracts(operator, dtype):
    operator = OPERATORS[operator]
    q = np.linalg.norm(np.eye(N) - operator.step * operator.matrix, 2)
    assert q < 1
    norm_b, rounding = np.linalg.norm(rhs()), 20 * N * float(jnp.finfo(dtype).eps) * np.linalg.norm(rhs())
    for k in (0, 1, 3, 10, 30):
        run = solve(bl.Richardson(), operator, rhs(), dtype, steps=k)
        assert residual(operator, rhs(), run.x, dtype) <= q**k * norm_b + rounding


@pytest.mark.parametrize("operator", ["spd 1e3", "contraction", "non-normal", "rotation, far"])
def test_gmres_is_optimal_over_the_krylov_space(operator, dtype):
    """``norm(b - A x_k)`` is the least over ``span(b, A b, ..., A^(k-1) b)``, hence never rises."""
    operator = OPERATORS[operator]
    A, b = operator.matrix, rhs()
    K, last, rounding = b[:, None], np.linalg.norm(b), 100 * N * float(jnp.finfo(dtype).eps) * np.linalg.norm(b)
    for k in range(1, 7):
        run = solve(bl.GMRES(), operator, b, dtype, steps=k)
        K = np.linalg.qr(K)[0]
        y = np.linalg.lstsq(A @ K, b, rcond=None)[0]
        least, r = np.linalg.norm(b - A @ K @ y), residual(operator, b, run.x, dtype)
        assert abs(r - least) <= rounding
        assert r <= last + rounding
        K, last = np.column_stack([K, A @ K[:, -1]]), r


@pytest.mark.parametrize("restart", [1, 4, 7])
def test_restarted_gmres_never_loses_ground(restart, dtype):
    last, rounding = np.linalg.norm(rhs()), 10 * N * float(jnp.finfo(dtype).eps) * np.linalg.norm(rhs())
    for k in range(1, 16, 2):
        run = solve(bl.GMRES(restart=restart), OPERATORS["contraction"], rhs(), dtype, steps=k)
        r = residual(OPERATORS["contraction"], rhs(), run.x, dtype)
        assert r <= last + rounding
        last = r
    assert last < 1e-2 * np.linalg.norm(rhs())


@pytest.mark.parametrize("operator", ["spd 1e1", "contraction", "non-normal", "rotation, far"])
def test_normal_cg_is_optimal_over_its_krylov_space(operator, dtype):
    """``norm(b - A x_k)`` is the least over the Krylov space of ``A^T A`` and ``A^T b``, and falls at its rate."""
    operator = OPERATORS[operator]
    A, b = operator.matrix, rhs()
    rate = (operator.condition - 1) / (operator.condition + 1)
    K, norm_b = (A.T @ b)[:, None], np.linalg.norm(b)
    rounding = 100 * N * float(jnp.finfo(dtype).eps) * norm_b * operator.condition
    for k in range(1, 6):
        run = solve(NormalCG(), operator, b, dtype, steps=k)
        K = np.linalg.qr(K)[0]
        y = np.linalg.lstsq(A @ K, b, rcond=None)[0]
        r = residual(operator, b, run.x, dtype)
        assert abs(r - np.linalg.norm(b - A @ K @ y)) <= rounding
        assert r <= 2 * rate**k * norm_b + rounding
        K = np.column_stack([K, A.T @ (A @ K[:, -1])])


def test_normal_cg_solves_where_gmres_stalls(dtype):
    """A cyclic shift: GMRES needs all n dimensions at once, all singular values are one."""
    shift = OPERATORS["non-normal"]._replace(matrix=np.roll(np.eye(N), 1, axis=0))
    assert solve(bl.GMRES(restart=N - 1), shift, np.eye(N)[0], dtype, rtol=1e-3).status == Status.STAGNATED
    run = solve(NormalCG(), shift, np.eye(N)[0], dtype, rtol=1e-3)
    assert (run.status, int(run.info.steps)) == (Status.OK, 1)


@pytest.mark.parametrize("operator", ["contraction", "rotation", "spd 1e1"])
def test_the_neumann_series(operator, dtype):
    """Identity 1.9e: ``Neumann(K)`` is the sum up to the K-th power, and Richardson's K + 1 steps from zero."""
    operator = OPERATORS[operator]
    J = np.eye(N) - operator.step * operator.matrix
    x = operator.step * sum(np.linalg.matrix_power(J, i) @ rhs() for i in range(7))
    series = solve(Neumann(terms=6), operator, rhs(), dtype, x0=np.ones(N))
    np.testing.assert_allclose(series.x, x, rtol=0, atol=20 * N * jnp.finfo(dtype).eps * np.linalg.norm(x))
    richardson = solve(bl.Richardson(steps=7), operator, rhs(), dtype)
    np.testing.assert_array_equal(series.x, richardson.x)
    assert series.info.residual_norm == richardson.info.residual_norm
    assert series.products == int(series.info.matvecs) == 7


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_exact_preconditioner_needs_one_step(solver, dtype):
    solver = SOLVERS[solver]
    operator = OPERATORS["spd 1e1" if solver.needs_symmetry else "contraction"]
    inverse = np.linalg.inv(operator.matrix)
    run = solve(solver, operator, rhs(), dtype, rtol=float(jnp.finfo(dtype).eps) ** 0.5, P=inverse)
    assert (run.status, int(run.info.steps)) == (Status.OK, 1)
    np.testing.assert_allclose(run.x, truth(operator, rhs(), dtype), rtol=1e2 * N * jnp.finfo(dtype).eps)


def test_a_preconditioner_that_cannot_be_transposed_is_refused(dtype):
    A = jnp.asarray(OPERATORS["contraction"].matrix, dtype)
    host = jax.ShapeDtypeStruct(A[0].shape, dtype)
    for opaque in (lambda r: r * r, lambda r: jax.pure_callback(np.asarray, host, r)):
        with pytest.raises(ProblemError, match="transpose"):
            NormalCG()(from_matrix(A), A[0], preconditioner=opaque)


def test_a_diagonal_preconditioner_pays(dtype):
    scales = np.geomspace(1.0, 30.0, N)
    A = scales[:, None] * spd(2.0).matrix * scales
    operator = OPERATORS["spd 1e1"]._replace(matrix=A)
    plain = solve(bl.CG(), operator, rhs(), dtype, rtol=1e-3)
    better = solve(bl.CG(), operator, rhs(), dtype, rtol=1e-3, P=np.diag(1 / np.diag(A)))
    assert plain.status == better.status == Status.OK
    assert int(better.info.steps) < int(plain.info.steps)


def test_richardson_estimates_a_step_where_it_can(dtype):
    """Symmetric, no step: one over the largest eigenvalue, its products counted."""
    operator = OPERATORS["spd 1e1"]
    run = solve(bl.Richardson(), operator._replace(step=None), rhs(), dtype, rtol=1e-3)
    known = solve(bl.Richardson(), operator, rhs(), dtype, rtol=1e-3)
    assert run.status == Status.OK
    assert run.products == int(run.info.matvecs) == int(run.info.steps) + N
    assert abs(int(run.info.steps) - int(known.info.steps)) <= 1


def test_settle_waits_for_the_solution(dtype):
    """A loose tolerance is met long before the solution has grown; ``settle`` sees the growth."""
    operator = spd(1e3)
    x = truth(operator, rhs(), dtype)
    loose = solve(bl.CG(), operator, rhs(), dtype, rtol=0.5)
    settled = solve(bl.CG(settle=0.05), operator, rhs(), dtype, rtol=0.5)
    assert settled.status == Status.OK
    assert int(settled.info.steps) > int(loose.info.steps)
    assert np.linalg.norm(settled.x) >= 0.9 * np.linalg.norm(x) > np.linalg.norm(loose.x)


@pytest.mark.float64
@pytest.mark.parametrize("condition", [1e1, 1e4, 1e7])
def test_a_settled_solution_is_right_whatever_the_condition_number(condition, dtype):
    """Within a fifth on ``x = A^(-1/5) z``, whose small eigenvectors make most of x and almost nothing of ``A x``."""
    operator = spd(condition, n=40)
    values, Q = np.linalg.eigh(operator.matrix)
    x = Q @ (values**-0.2 * rhs(40))
    run = solve(bl.CG(settle=0.03), operator, operator.matrix @ x, dtype, rtol=0.03)
    assert run.status == Status.OK
    assert np.linalg.norm(run.x - x) <= 0.2 * np.linalg.norm(x)
