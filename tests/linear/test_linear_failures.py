"""Linear systems without a solution, or without the form a solver needs: never a wrong x with status OK."""

import jax.numpy as jnp
import numpy as np
import pytest
from operators import OPERATORS, N, Operator, orthogonal, residual, rhs, solve, spd, with_spectrum

import bilevel as bl
from bilevel.linear.normal_cg import NormalCG
from bilevel.linear.operator import from_matrix
from bilevel.status import Status

SOLVERS = {"CG": bl.CG(), "GMRES": bl.GMRES(), "Richardson": bl.Richardson(), "NormalCG": NormalCG(),
           "Dense": bl.Dense()}  # fmt: skip
INDEFINITE = with_spectrum(np.concatenate([[-0.5], np.linspace(0.1, 1.0, N - 1)]))
SINGULAR = with_spectrum(np.concatenate([[0.0], np.linspace(0.1, 1.0, N - 1)]))
KERNEL = orthogonal(0)[:, 0]  # of SINGULAR
NILPOTENT = np.diag(np.ones(N - 1), 1)


def at_tolerance(name, matrix, b, dtype, **flags):
    operator = Operator(matrix, **flags)
    return solve(SOLVERS[name], operator, b, dtype, rtol=float(jnp.finfo(dtype).eps) ** 0.5)


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e8])
@pytest.mark.parametrize("matrix", [-np.eye(N), INDEFINITE], ids=["negative", "indefinite"])
@pytest.mark.parametrize("solver", ["CG", "Dense"])
def test_negative_curvature_is_reported(solver, matrix, scale, dtype):
    run = at_tolerance(solver, scale * matrix, rhs(), dtype, symmetric=True, definite=True)
    assert run.status == Status.NEGATIVE_CURVATURE
    assert np.isfinite(run.x).all()
    assert run.products == int(run.info.matvecs)


def test_negative_curvature_is_reported_on_a_budget(dtype):
    run = solve(bl.CG(steps=5), Operator(-np.eye(N), True, True), rhs(), dtype)
    assert run.status == Status.NEGATIVE_CURVATURE
    np.testing.assert_allclose(run.x, rhs(), rtol=10 * jnp.finfo(dtype).eps)  # the direction of descent


@pytest.mark.parametrize("solver", ["GMRES", "NormalCG", "Dense"])
def test_an_indefinite_matrix_is_solved_where_it_may_be(solver, dtype):
    run = at_tolerance(solver, INDEFINITE, rhs(), dtype, symmetric=True)
    assert run.status == Status.OK
    assert residual(Operator(INDEFINITE), rhs(), run.x, dtype) <= 1e-3 * np.linalg.norm(rhs())


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e8])
@pytest.mark.parametrize("solver", SOLVERS)
def test_an_inconsistent_singular_system_fails(solver, scale, dtype):
    run = at_tolerance(solver, scale * SINGULAR, rhs(), dtype, symmetric=True, definite=True, step=1 / scale)
    expected = {
        "CG": (Status.SINGULAR, Status.STAGNATED, Status.MAX_STEPS, Status.NEGATIVE_CURVATURE),
        "GMRES": (Status.SINGULAR, Status.STAGNATED),
        "Richardson": (Status.MAX_STEPS, Status.DIVERGED),
        "NormalCG": (Status.SINGULAR,),
        "Dense": (Status.SINGULAR,),
    }
    assert run.status in expected[solver]


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_consistent_singular_system_is_solved_or_fails(solver, dtype):
    """Products cannot tell that the solution is not unique; a factorization can."""
    b = rhs() - KERNEL * (KERNEL @ rhs())
    run = at_tolerance(solver, SINGULAR, b, dtype, symmetric=True, definite=True)
    if solver == "Dense":
        assert run.status == Status.SINGULAR
    elif run.status == Status.OK:
        r = residual(Operator(SINGULAR), b, run.x, dtype)
        assert r <= 2 * float(jnp.finfo(dtype).eps) ** 0.5 * np.linalg.norm(b)


@pytest.mark.parametrize("solver", ["CG", "GMRES", "NormalCG", "Dense"])
def test_the_zero_matrix_is_singular(solver, dtype):
    run = at_tolerance(solver, np.zeros((N, N)), rhs(), dtype, symmetric=True, definite=True)
    assert run.status == Status.SINGULAR


@pytest.mark.parametrize("solver", ["GMRES", "NormalCG", "Dense"])
def test_a_nilpotent_matrix_is_singular(solver, dtype):
    run = at_tolerance(solver, NILPOTENT, np.ones(N), dtype)
    assert run.status in (Status.SINGULAR, Status.STAGNATED)
    assert run.status == Status.SINGULAR or solver == "GMRES"


def test_singular_on_a_budget(dtype):
    for solver in (bl.GMRES(steps=5), bl.CG(steps=5), NormalCG(steps=5)):
        run = solve(solver, Operator(np.zeros((N, N)), True, True), rhs(), dtype)
        assert run.status == Status.SINGULAR


def test_gmres_that_restarts_too_early_stagnates(dtype):
    quarter_turn = Operator(np.kron(np.eye(N // 2), [[0.0, -1.0], [1.0, 0.0]]))
    run = solve(bl.GMRES(restart=1), quarter_turn, rhs(), dtype, rtol=1e-3)
    assert run.status == Status.STAGNATED
    assert not run.x.any()
    assert solve(bl.GMRES(restart=2), quarter_turn, rhs(), dtype, rtol=1e-3).status == Status.OK


def test_richardson_that_diverges_says_so(dtype):
    run = solve(bl.Richardson(), spd(1e1)._replace(step=2.5), rhs(), dtype, rtol=1e-3)
    assert run.status == Status.DIVERGED
    assert np.isfinite(run.x).all()


@pytest.mark.parametrize("place", ["matrix", "right-hand side", "start"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("solver", SOLVERS)
def test_nonfinite_data(solver, bad, place, dtype):
    A, b, x0 = spd(1e1).matrix, rhs(), np.zeros(N)
    {"matrix": A[0], "right-hand side": b, "start": x0}[place][:1] = bad
    if (solver, place) == ("Dense", "start"):  # a direct solve has no start
        return
    run = solve(SOLVERS[solver], Operator(A, True, True), b, dtype, x0=x0, rtol=1e-3)
    assert run.status == Status.NONFINITE


def test_richardson_asks_for_a_step_where_none_is_known(dtype):
    A = jnp.asarray(OPERATORS["contraction"].matrix, dtype)
    with pytest.raises(bl.ProblemError, match="step="):
        bl.Richardson()(from_matrix(A), A[0])
