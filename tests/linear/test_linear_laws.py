"""Linear solver x operator: accuracy, honest residuals, exact counts, starts, batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operators import OPERATORS, SPD, N, Operator, in_dtype, residual, rhs, solve, spd, truth

import bilevel as bl
from bilevel.linear.neumann import Neumann
from bilevel.linear.normal_cg import NormalCG
from bilevel.linear.operator import LinearOperator, default_rtol, from_matrix
from bilevel.status import Status

SOLVERS = {
    "CG": bl.CG(),
    "GMRES": bl.GMRES(),
    "GMRES(4)": bl.GMRES(restart=4),
    "Richardson": bl.Richardson(),
    "NormalCG": NormalCG(),
    "Dense": bl.Dense(),
}
ITERATIVE = ["CG", "GMRES", "Richardson", "NormalCG"]
BUDGETS = {"CG": bl.CG(steps=5), "GMRES": bl.GMRES(steps=5), "GMRES(3)": bl.GMRES(steps=5, restart=3),
           "Richardson": bl.Richardson(steps=5), "NormalCG": NormalCG(steps=5),
           "Neumann": Neumann(terms=4)}  # fmt: skip
PRODUCTS = {"NormalCG": 2}  # of a step, else one
LOOSE = {"NormalCG": 0.3}  # else 0.01: where rounding, which CG on A^T A amplifies from step to step, is not seen yet
# Slow or stalled by nature: too many first-order steps, or too short a cycle. These may fail, aloud.
HARD = {("GMRES(4)", "spd 1e3"), ("GMRES(4)", "spd 1e6"), ("GMRES(4)", "non-normal"), ("Richardson", "spd 1e3"),
        ("Richardson", "spd 1e6"), ("Richardson", "non-normal"), ("Richardson", "rotation, far")}  # fmt: skip
FOR = {"CG": "spd 1e3", "GMRES": "contraction", "GMRES(4)": "contraction", "GMRES(3)": "contraction",
       "Richardson": "contraction", "NormalCG": "contraction", "Neumann": "contraction",
       "Dense": "contraction"}  # fmt: skip


def applicable(solver, operator: Operator, dtype) -> bool:
    return (operator.symmetric or not solver.needs_symmetry) and (dtype == jnp.float64 or not operator.float64_only)


def noise(operator: Operator, x, dtype) -> float:
    """Rounding of ``b - A x``."""
    return 8 * N * float(jnp.finfo(dtype).eps) * np.linalg.norm(operator.matrix, 2) * float(np.linalg.norm(x))


def tolerance(dtype) -> float:
    return float(jnp.finfo(dtype).eps) ** 0.5


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_an_accepted_solution_is_accurate(solver, operator, dtype):
    hard, solver, operator = (solver, operator) in HARD, SOLVERS[solver], OPERATORS[operator]
    if not applicable(solver, operator, dtype):
        return
    b, rtol = rhs(), tolerance(dtype)
    run = solve(solver, operator, b, dtype, rtol=rtol)
    r, rounding = residual(operator, b, run.x, dtype), noise(operator, run.x, dtype)
    assert run.x.dtype == run.info.residual_norm.dtype == dtype
    assert run.products == int(run.info.matvecs)
    assert abs(float(run.info.residual_norm) - r) <= rounding
    if hard:
        assert run.status in (Status.OK, Status.MAX_STEPS, Status.STAGNATED, Status.DIVERGED)
    else:
        assert run.status == Status.OK
    if run.status == Status.OK:
        assert r <= rtol * np.linalg.norm(b) + rounding
        x = truth(operator, b, dtype)
        inverse_norm = np.linalg.norm(np.linalg.inv(operator.matrix), 2)
        assert np.linalg.norm(run.x - x) <= inverse_norm * (rtol * np.linalg.norm(b) + rounding)


@pytest.mark.parametrize("solver", SOLVERS)
def test_tighter_than_rounding_is_never_silently_missed(solver, dtype):
    operator = spd(1e6)
    run = solve(SOLVERS[solver], operator, rhs(), dtype, rtol=float(jnp.finfo(dtype).eps) / 100)
    if solver == "Dense":  # a direct solve has no tolerance
        assert residual(operator, rhs(), run.x, dtype) <= noise(operator, run.x, dtype)
    else:
        # In float32 this matrix cannot be told from a singular one.
        singular = {Status.SINGULAR} if dtype == jnp.float32 and solver == "NormalCG" else set()
        assert run.status in {Status.MAX_STEPS, Status.STAGNATED} | singular
        assert np.isfinite(run.x).all()


@pytest.mark.parametrize("solver", BUDGETS)
def test_a_budget_runs_exactly(solver, dtype):
    operator = OPERATORS[FOR[solver]]
    run = solve(BUDGETS[solver], operator, rhs(), dtype)
    assert (run.status, int(run.info.steps)) == (Status.OK, 5)
    cycles = {"GMRES": 1, "GMRES(3)": 2}.get(solver, 0)  # one more product each, for the true residual
    assert run.products == int(run.info.matvecs) == 5 * PRODUCTS.get(solver, 1) + cycles
    r = residual(operator, rhs(), run.x, dtype)
    assert abs(float(run.info.residual_norm) - r) <= noise(operator, run.x, dtype)


@pytest.mark.parametrize("steps", [0, 1, 4, 11])
@pytest.mark.parametrize("solver", ITERATIVE)
def test_a_budget_may_be_data(solver, steps, dtype):
    operator = OPERATORS[FOR[solver]]
    run = solve(SOLVERS[solver], operator, rhs(), dtype, steps=steps)
    assert (run.status, int(run.info.steps)) == (Status.OK, steps)
    expected = steps * PRODUCTS.get(solver, 1) + (solver == "GMRES" and steps > 0)
    assert run.products == int(run.info.matvecs) == expected


@pytest.mark.parametrize("steps", [3, 40])
@pytest.mark.parametrize("solver", ITERATIVE)
def test_with_a_tolerance_steps_are_a_limit(solver, steps, dtype):
    run = solve(SOLVERS[solver], OPERATORS[FOR[solver]], rhs(), dtype, rtol=tolerance(dtype), steps=steps)
    assert int(run.info.steps) <= steps
    assert run.status == (Status.OK if steps == 40 else Status.MAX_STEPS)


def test_dense_costs_one_block(dtype):
    run = solve(bl.Dense(), OPERATORS["contraction"], rhs(), dtype)
    assert (int(run.info.steps), int(run.info.matvecs), run.products) == (1, N, N)


@pytest.mark.parametrize("solver", SOLVERS)
def test_zero_right_hand_side_is_solved_at_once(solver, dtype):
    run = solve(SOLVERS[solver], OPERATORS[FOR[solver]], np.zeros(N), dtype, rtol=tolerance(dtype))
    assert run.status == Status.OK
    assert not run.x.any()
    assert run.info.residual_norm == 0
    assert run.products == (N if solver == "Dense" else 0)


@pytest.mark.parametrize("solver", BUDGETS)
def test_zero_right_hand_side_on_a_budget(solver, dtype):
    run = solve(BUDGETS[solver], OPERATORS[FOR[solver]], np.zeros(N), dtype)
    assert run.status == Status.OK
    assert not run.x.any()


@pytest.mark.parametrize("solver", ITERATIVE)
def test_warm_starts(solver, dtype):
    operator, rtol = OPERATORS[FOR[solver]], tolerance(dtype)
    solver, b, x = SOLVERS[solver], rhs(), truth(operator, rhs(), dtype)
    at_solution = solve(solver, operator, b, dtype, x0=x, rtol=rtol)
    assert (at_solution.status, int(at_solution.info.steps), at_solution.products) == (Status.OK, 0, 1)
    np.testing.assert_array_equal(at_solution.x, in_dtype(x, dtype))
    # A Krylov method solves in n steps from anywhere: what a start saves is seen at a loose tolerance.
    near = solve(solver, operator, b, dtype, x0=1.01 * x, rtol=1e-2)
    far = solve(solver, operator, b, dtype, x0=0.0 * x, rtol=1e-2)
    assert int(near.info.steps) < int(far.info.steps)
    assert near.products == int(near.info.matvecs)
    to_zero = solve(solver, operator, np.zeros(N), dtype, x0=x, rtol=rtol)
    assert not to_zero.x.any()
    assert (to_zero.status, int(to_zero.info.steps)) == (Status.OK, 0)


@pytest.mark.parametrize("solver", [*ITERATIVE, "Dense"])
def test_pytrees_are_vectors(solver, dtype):
    """Leaves of several shapes give the same solution as the flat vector."""
    operator, a_step, rtol = OPERATORS["spd 1e1"], PRODUCTS.get(solver, 0), tolerance(dtype)
    solver = SOLVERS[solver]
    A = jnp.asarray(operator.matrix, dtype)

    def flat(x):
        return jnp.concatenate([x["a"].ravel(), x["b"][0]])

    def split(x):
        return {"a": x[:6].reshape(3, 2), "b": (x[6:],)}

    @jax.jit
    def run(b):
        mv, transpose = (lambda x: split(A @ flat(x))), (lambda x: split(A.T @ flat(x)))
        return solver(LinearOperator(mv, transpose, operator.symmetric, operator.definite, 1.0), b, rtol=rtol)

    x, info = run(split(jnp.asarray(rhs(), dtype)))
    whole = solve(solver, operator, rhs(), dtype, rtol=rtol)
    assert int(info.status) == Status.OK
    assert abs(int(info.matvecs) - int(whole.info.matvecs)) <= a_step
    assert residual(operator, rhs(), flat(x), dtype) <= rtol * np.linalg.norm(rhs()) + noise(operator, flat(x), dtype)
    assert np.linalg.norm(flat(x) - whole.x) <= operator.condition * 2 * rtol * np.linalg.norm(whole.x)


@pytest.mark.parametrize("solver", [*ITERATIVE, "Dense"])
def test_one_unknown(solver, dtype):
    for b in (3.0, 0.0, -1e-8):
        operator = Operator(np.array([[2.0]]), True, True, step=0.4)
        run = solve(SOLVERS[solver], operator, np.array([b]), dtype, rtol=tolerance(dtype))
        assert run.status == Status.OK
        np.testing.assert_allclose(run.x, [b / 2], rtol=2 * tolerance(dtype))


@pytest.mark.parametrize("solver", ITERATIVE)
def test_two_thousand_unknowns_in_float32(solver):
    """Diagonal plus low rank, condition about 100; float32 inside a float64 process as well."""
    n = 2000
    rng = np.random.default_rng(0)
    d = jnp.asarray(np.geomspace(0.01, 1.0, n), jnp.float32)
    U, V = (jnp.asarray(rng.normal(size=(n, 3)) / n**0.5 / 4, jnp.float32) for _ in range(2))
    V = U if solver == "CG" else V

    def mv(x):
        return d * x + U @ (V.T @ x)

    b = jnp.asarray(rng.normal(size=n), jnp.float32)
    operator = LinearOperator(mv, lambda x: d * x + V @ (U.T @ x), solver == "CG", solver == "CG", 0.9)
    x, info = jax.jit(lambda b: SOLVERS[solver](operator, b, rtol=1e-4))(b)
    assert x.dtype == info.residual_norm.dtype == jnp.float32
    assert Status(int(info.status)) == Status.OK
    d, U, V, b, x = (np.asarray(a, np.float64) for a in (d, U, V, b, x))
    assert np.linalg.norm(b - d * x - U @ (V.T @ x)) <= 1.01e-4 * np.linalg.norm(b)


@pytest.mark.parametrize("solver", ["CG", "GMRES", "NormalCG"])
def test_no_scale_overflows_or_underflows_in_float32(solver):
    A, b, dtype = spd(1e1).matrix, rhs(), jnp.float32
    for of_A, of_b in [(1e-20, 1.0), (1e20, 1.0), (1.0, 1e-20), (1.0, 1e20), (1e-20, 1e-20), (1e20, 1e20)]:
        run = solve(SOLVERS[solver], Operator(of_A * A, True, True), of_b * b, dtype, rtol=1e-4)
        assert run.status == Status.OK, (of_A, of_b)
        assert residual(Operator(of_A * A), of_b * b, run.x, dtype) <= 1.01e-4 * of_b * np.linalg.norm(b)


@pytest.mark.parametrize("solver", ITERATIVE)
def test_a_batch_is_a_loop(solver, dtype):
    """Each lane ends as it does alone; one that fails leaves the others as they are."""
    rtol = jnp.asarray(LOOSE.get(solver, 1e-2), dtype)
    solver, names = SOLVERS[solver], ["spd 1e1", "identity", "spd tiny", "spd huge"]
    operators = [OPERATORS[name] for name in names] + [Operator(-np.eye(N), True)]

    def one(A, b, step):
        return solver(from_matrix(A, symmetric=True, step=step), b, rtol=rtol)

    A, b, step = (
        jnp.asarray(np.stack(a), dtype)
        for a in ([o.matrix for o in operators], [rhs(seed=s) for s in range(5)], [o.step for o in operators])
    )
    x, info = jax.jit(jax.vmap(one))(A, b, step)
    for lane, operator in enumerate(operators):
        alone = solve(solver, operator, b[lane], dtype, rtol=rtol)
        assert int(info.status[lane]) == alone.status
        assert int(info.steps[lane]) == int(alone.info.steps)
        assert int(info.matvecs[lane]) == int(alone.info.matvecs)
        size = np.linalg.norm(alone.x)
        np.testing.assert_allclose(x[lane], alone.x, rtol=0, atol=1e3 * N * jnp.finfo(dtype).eps * size)


@pytest.mark.parametrize("solver", [*ITERATIVE, "Dense"])
def test_eager_and_compiled_agree(solver, dtype):
    operator = OPERATORS[FOR[solver]]
    A, b = jnp.asarray(operator.matrix, dtype), jnp.asarray(rhs(), dtype)
    rtol = jnp.asarray(1e-2, dtype)
    x, info = SOLVERS[solver](from_matrix(A, symmetric=operator.symmetric, step=1.0), b, rtol=rtol)
    compiled = solve(SOLVERS[solver], operator, rhs(), dtype, rtol=rtol)
    assert (int(info.status), int(info.steps)) == (Status.OK, int(compiled.info.steps))
    size = np.linalg.norm(compiled.x)
    np.testing.assert_allclose(x, compiled.x, rtol=0, atol=1e3 * N * jnp.finfo(dtype).eps * size)


@pytest.mark.parametrize("solver", [bl.CG, bl.GMRES, bl.Richardson, NormalCG])
def test_tolerances_and_data_do_not_recompile(solver, dtype):
    traces = []

    @jax.jit
    def run(solver, A, b):
        traces.append(1)
        return solver(from_matrix(A, symmetric=True, step=1.0), b)

    for rtol in (1e-1, 1e-2, 1e-3):
        A = jnp.asarray((1 + rtol) * OPERATORS["spd 1e1"].matrix, dtype)
        _, info = run(solver(rtol=rtol), A, jnp.asarray(rhs(), dtype))
        assert float(info.residual_norm) <= rtol * np.linalg.norm(rhs())
    assert len(traces) == 1


def test_the_default_tolerance_is_the_root_of_epsilon(dtype):
    b = jnp.asarray(rhs(), dtype)
    assert default_rtol(b) == tolerance(dtype)
    run = solve(bl.CG(), OPERATORS["spd 1e3"], rhs(), dtype)
    assert run.status == Status.OK
    assert float(run.info.residual_norm) <= tolerance(dtype) * np.linalg.norm(rhs())


@pytest.mark.parametrize("name", [*SPD, "non-normal"])
def test_the_matrix_of_an_operator(name, dtype):
    A = jnp.asarray(OPERATORS[name].matrix, dtype)
    operator = from_matrix(A, symmetric=OPERATORS[name].symmetric)
    np.testing.assert_array_equal(operator.dense(A[0]), A)
    np.testing.assert_array_equal(operator.T.dense(A[0]), A if operator.symmetric else A.T)
    assert operator == operator.T.T
