"""What theory says of each iteration: finite termination, rates, optimality, exact preconditioners."""

import jax.numpy as jnp
import numpy as np
import pytest
from operators import OPERATORS, N, residual, rhs, solve, spd, truth

import bilevel as bl
from bilevel.status import Status


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


@pytest.mark.parametrize("solver", [bl.CG(), bl.GMRES(), bl.Richardson()], ids=["CG", "GMRES", "Richardson"])
def test_an_exact_preconditioner_needs_one_step(solver, dtype):
    operator = OPERATORS["spd 1e1" if solver.needs_symmetry else "contraction"]._replace(step=1.0)
    inverse = np.linalg.inv(operator.matrix)
    run = solve(solver, operator, rhs(), dtype, rtol=float(jnp.finfo(dtype).eps) ** 0.5, P=inverse)
    assert (run.status, int(run.info.steps)) == (Status.OK, 1)
    np.testing.assert_allclose(run.x, truth(operator, rhs(), dtype), rtol=1e2 * N * jnp.finfo(dtype).eps)


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
