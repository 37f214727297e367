"""The adapter to lineax: honest residuals and counts, and failures that lineax itself calls successful."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import operators
import pytest
from operators import OPERATORS, N, Operator, Solution, in_dtype, residual, rhs, spd, with_spectrum

import bilevel as bl
from bilevel.linear.lineax import Lineax
from bilevel.linear.operator import LinearOperator, from_matrix
from bilevel.linear.preconditioners import Jacobi
from bilevel.status import ProblemError, Status

TIGHT = {"rtol": 1e-4, "atol": 0.0}
ITERATIVE = {
    "CG": Lineax(lx.CG(**TIGHT)),
    "BiCGStab": Lineax(lx.BiCGStab(**TIGHT)),
    "GMRES": Lineax(lx.GMRES(**TIGHT)),
    "GMRES(5)": Lineax(lx.GMRES(**TIGHT, restart=5)),
    "LSMR": Lineax(lx.LSMR(rtol=1e-6, atol=0.0)),
    "Normal(CG)": Lineax(lx.Normal(lx.CG(**TIGHT, stabilise_every=None))),
}
DENSE = {
    "LU": Lineax(lx.LU()),
    "Cholesky": Lineax(lx.Cholesky()),
    "Normal(Cholesky)": Lineax(lx.Normal(lx.Cholesky())),
}
SOLVERS = ITERATIVE | DENSE
RTOL = 1e-3
INDEFINITE = Operator(with_spectrum(np.concatenate([[-0.5], np.linspace(0.1, 1.0, N - 1)])), True, True)
FAILURES = (Status.MAX_STEPS, Status.STAGNATED, Status.NONFINITE, Status.SINGULAR)
MAY_BREAK_OFF = ("GMRES", "GMRES(5)", "LSMR")  # inside a step, which lineax does not tell


def solve(name, operator: Operator, b, dtype, rtol=RTOL, solver=None, x0=None) -> Solution:
    solver = SOLVERS[name] if solver is None else solver
    return operators.solve(solver, operator, b, dtype, x0=x0, rtol=rtol, transposable=name in ITERATIVE)


@pytest.mark.parametrize("name", SOLVERS)
def test_success_is_what_the_residual_says(name, dtype):
    """On every operator: accurate or failed, products counted, the residual that of x."""
    for of, operator in OPERATORS.items():
        if SOLVERS[name].needs_symmetry and not operator.symmetric:
            continue
        run = solve(name, operator, rhs(), dtype)
        assert run.products <= int(run.info.matvecs)
        assert run.products == int(run.info.matvecs) or (name in MAY_BREAK_OFF and of != "spd 1e1")
        if run.status != Status.OK:
            assert run.status in FAILURES
            assert operator.condition > 1e2 or name not in ("GMRES", "LU", "Cholesky")
        else:
            rounding = 8 * N * float(jnp.finfo(dtype).eps) * np.linalg.norm(operator.matrix, 2) * np.linalg.norm(run.x)
            r = residual(operator, rhs(), run.x, dtype)
            assert abs(float(run.info.residual_norm) - r) <= rounding
            assert r <= RTOL * np.linalg.norm(rhs()) + rounding


def test_a_residual_above_the_tolerance_is_a_failure(dtype):
    """lineax says ``successful`` where its own tolerance is loose, or where it did not run at all."""
    b, operator = jnp.asarray(rhs(), dtype), spd(1e3)
    A = lx.MatrixLinearOperator(jnp.asarray(operator.matrix, dtype))
    loose = lx.LSMR(rtol=1e-2, atol=0.0)
    idle = lx.GMRES(rtol=0.0, atol=0.0, max_steps=1)
    for solver in (loose, idle):
        theirs = lx.linear_solve(A, b, solver, throw=False)
        assert theirs.result == lx.RESULTS.successful
        r = residual(operator, rhs(), theirs.value, dtype)
        assert r > 2e-2 * np.linalg.norm(rhs())
        ours = solve("LSMR", operator, rhs(), dtype, solver=Lineax(solver))
        assert ours.status == Status.MAX_STEPS
        assert float(ours.info.residual_norm) == pytest.approx(r, rel=0.01)
        assert ours.products == int(ours.info.matvecs)


def test_what_float32_breaks_in_lineax_is_reported():
    """Well-conditioned systems on which its CG returns NaN and its BiCGStab stops early: design, section 4."""
    dtype, n = jnp.float32, 1000
    run = solve("CG", OPERATORS["spd tiny"], rhs(), dtype)
    assert run.status == Status.NONFINITE
    d = jnp.asarray(np.geomspace(0.01, 1.0, n), dtype)
    b = jnp.asarray(rhs(n), dtype)
    A = LinearOperator(lambda x: d * x, lambda x: d * x, symmetric=True, definite=True)
    for solver in (lx.CG(rtol=1e-5, atol=0.0), lx.Normal(lx.CG(rtol=1e-5, atol=0.0))):
        x, info = jax.jit(lambda b, solver=solver: Lineax(solver)(A, b, rtol=1e-4))(b)
        ok = np.linalg.norm(np.float64(b) - np.float64(d) * np.float64(x)) <= 1.01e-4 * np.linalg.norm(b)
        assert (Status(int(info.status)) == Status.OK) == ok


@pytest.mark.parametrize("name", ["LU", "Cholesky", "CG", "GMRES"])
def test_negative_curvature_is_no_silent_answer(name, dtype):
    """A dense matrix shows it always; products only where ``x^T A x < 0``."""
    assert solve(name, Operator(-np.eye(N), True, True), rhs(), dtype).status == Status.NEGATIVE_CURVATURE
    if name in DENSE:
        assert solve(name, INDEFINITE, rhs(), dtype).status == Status.NEGATIVE_CURVATURE


@pytest.mark.parametrize("name", ["GMRES", "LSMR", "LU"])
def test_singular_and_nonfinite_systems_fail(name, dtype):
    run = solve(name, Operator(np.diag(np.arange(N) / N)), rhs(), dtype)
    assert run.status in (Status.SINGULAR, Status.STAGNATED, Status.MAX_STEPS)
    nan = spd(1e1).matrix
    nan[0, 0] = np.nan
    assert solve(name, Operator(nan), rhs(), dtype).status == Status.NONFINITE
    assert solve(name, spd(1e1), rhs() * np.nan, dtype).status == Status.NONFINITE


@pytest.mark.parametrize("name", ["GMRES", "CG", "LU"])
def test_zero_right_hand_sides_and_warm_starts(name, dtype):
    run = solve(name, spd(1e1), np.zeros(N), dtype)
    assert run.status == Status.OK
    assert not run.x.any()
    x = np.linalg.solve(in_dtype(spd(1e1).matrix, dtype), in_dtype(rhs(), dtype))
    near = solve(name, spd(1e1), rhs(), dtype, x0=(1 + 1e-6) * x)
    assert near.status == Status.OK
    assert near.products == int(near.info.matvecs) <= int(solve(name, spd(1e1), rhs(), dtype).info.matvecs)


def test_preconditioners_pass_through(dtype):
    s = np.geomspace(1.0, 30.0, N)
    operator = Operator(s[:, None] * spd(2.0).matrix * s, True, True)
    plain = solve("CG", operator, rhs(), dtype)
    better = operators.solve(Lineax(lx.CG(**TIGHT), preconditioner=Jacobi(None)), operator, rhs(), dtype, rtol=RTOL)
    assert plain.status == better.status == Status.OK
    assert int(better.info.steps) < int(plain.info.steps)
    assert better.products == int(better.info.matvecs)


@pytest.mark.parametrize("name", ["GMRES", "LU"])
def test_pytrees_batches_and_no_recompilation(name, dtype):
    matrices = jnp.asarray(np.stack([spd(1e1).matrix, np.eye(N)]), dtype)
    traces = []

    @jax.jit
    def run(solver, matrices, b):
        traces.append(1)

        def one(A):
            def mv(x):
                y = A @ jnp.concatenate([x["a"].ravel(), x["b"]])
                return {"a": y[:6].reshape(2, 3), "b": y[6:]}

            return solver(LinearOperator(mv, mv, symmetric=True), {"a": b[:6].reshape(2, 3), "b": b[6:]})

        return jax.vmap(one)(matrices)

    b = jnp.asarray(rhs(), dtype)
    for rtol in (1e-2, RTOL):
        x, info = run(Lineax(SOLVERS[name].solver, rtol=rtol), matrices, b)
    assert len(traces) == 1
    assert (info.status == Status.OK).all()
    for A, a, rest in zip(matrices, x["a"], x["b"], strict=True):
        assert residual(Operator(A), rhs(), np.concatenate([a.ravel(), rest]), dtype) <= 1.01 * RTOL * np.linalg.norm(
            rhs()
        )


def test_steps_belong_to_the_solver_of_lineax(dtype):
    with pytest.raises(ProblemError, match="max_steps"):
        Lineax(lx.LU())(from_matrix(jnp.eye(3, dtype=dtype)), jnp.ones(3, dtype), steps=3)


def test_implicit_derivatives(dtype):
    """LSMR inside ``custom_linear_solve`` needs the transpose of what comes in: equal to GMRES."""
    M = jnp.asarray(0.5 * OPERATORS["rotation"].matrix + np.diag(np.full(N - 1, 0.2), 1), dtype)
    lower = bl.fixed_point(lambda w, lam, M: M @ w + jnp.sin(lam * w) / 4 + lam)
    lam, w0 = jnp.asarray(np.linspace(-0.5, 0.5, N), dtype), jnp.zeros(N, dtype)
    lsmr = Lineax(lx.LSMR(rtol=1e-6, atol=0.0), rtol=1e-3)

    def gradient(linear_solver):
        w_star = bl.implicit(lower, linear_solver=linear_solver)
        return jax.jit(jax.grad(lambda lam: jnp.sum(w_star(lam, w0, M) ** 2)))(lam)

    have, want = gradient(lsmr), gradient(bl.GMRES())
    np.testing.assert_allclose(have, want, rtol=0, atol=1e-3 * np.max(np.abs(want)))
