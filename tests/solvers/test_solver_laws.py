"""Lower-level solver x problem: accuracy, honest counts and residuals, starts, scales, batches."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lower_problems import CASES, FIRST, FIRST_ORDER, PAIRS, SOLVERS, D, X, at_solution, cast, run, saddle_loss

import bilevel as bl
from bilevel.solvers import default_solver
from bilevel.status import Status

OF_A_SCALE = ("Optax", "Nesterov, mu", "Anderson")  # a learning rate, a mu, the map of a root


def tolerance(dtype) -> float:
    return 1e-9 if dtype == jnp.float64 else 1e-5


def allowed(rtol: float, condition: float, w: np.ndarray, dtype) -> float:
    """``|Phi(w) - w| <= rtol |w|`` with a map that contracts as ``1 - 1 / condition``, and rounding."""
    return condition * (rtol + 20 * float(jnp.finfo(dtype).eps)) * float(np.linalg.norm(w))


@pytest.mark.parametrize(("solver", "name"), PAIRS)
def test_solution_residual_and_counts(solver, name, dtype):
    case, rtol = CASES[name], tolerance(dtype)
    w, condition = case.truth()
    result = run(SOLVERS[solver], case, dtype, rtol=rtol)
    assert result.status == Status.OK
    assert jax.tree.structure(result.w) == jax.tree.structure(case.w0)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves((result.w, result.info.residual_norm)))
    assert np.linalg.norm(result.flat - w) <= allowed(rtol, condition, w, dtype)
    F = np.linalg.norm(case.residual(result.flat))
    size = np.linalg.norm(case.residual(result.flat + 1.0))  # what F is made of
    assert float(result.info.residual_norm) == pytest.approx(F, rel=0.01, abs=20 * float(jnp.finfo(dtype).eps) * size)
    steps, matvecs = int(result.info.steps), int(result.info.matvecs)
    if solver in FIRST_ORDER or (solver == "Anderson" and name == "logistic"):
        n = w.size  # Lanczos products are no evaluations
        assert (matvecs, result.evaluations) == (steps + 1 + n + 1, steps + 1 + 1)
    elif solver == "NewtonCG":  # nor are those of CG, at least one a step
        assert result.evaluations + steps <= matvecs
    else:
        assert result.evaluations == matvecs
    if solver in ("Picard", "Anderson") and name != "logistic":
        assert matvecs == steps + 1


@pytest.mark.parametrize(("solver", "name"), PAIRS)
def test_a_warm_start_at_the_solution_stops_at_once(solver, name, dtype):
    case = at_solution(CASES[name])
    result = run(SOLVERS[solver], case, dtype, rtol=tolerance(dtype))
    w, condition = case.truth()
    assert result.status == Status.OK
    assert int(result.info.steps) <= (solver in ("NewtonCG", "LBFGS"))
    assert result.evaluations <= 5
    assert np.linalg.norm(result.flat - w) <= allowed(tolerance(dtype), condition, w, dtype)


@pytest.mark.parametrize("scale", [1e-10, 1e8])
@pytest.mark.parametrize(
    ("solver", "name"), [pair for pair in PAIRS if "map" not in pair[1] and pair[0] not in OF_A_SCALE]
)
def test_the_scale_of_the_loss_does_not_matter(solver, name, scale, dtype):
    case = CASES[name]
    scaled = case._replace(data={**case.data, "scale": scale})
    result = run(SOLVERS[solver], scaled, dtype, rtol=tolerance(dtype))
    w, condition = case.truth()
    assert result.status == Status.OK
    assert np.linalg.norm(result.flat - w) <= allowed(tolerance(dtype), condition, w, dtype)


@pytest.mark.parametrize(("solver", "name"), PAIRS)
def test_nan_in_the_data_is_found(solver, name, dtype):
    case = CASES[name]
    data = {**case.data, "X": X * np.nan, "M": case.data["M"] * np.nan, "scale": np.nan}
    result = run(SOLVERS[solver], case._replace(data=data), dtype, rtol=tolerance(dtype))
    assert result.status == Status.NONFINITE
    assert int(result.info.steps) <= 1


@pytest.mark.parametrize(("solver", "name"), [(s, n) for s, n in PAIRS if n in (FIRST[s], "rosenbrock", "leaves map")])
def test_a_tolerance_below_rounding_is_missed_aloud_or_met(solver, name, dtype):
    case, eps = CASES[name], float(jnp.finfo(dtype).eps)
    w, condition = case.truth()
    result = run(SOLVERS[solver], case, dtype, rtol=eps / 100)
    assert np.isfinite(result.flat).all()
    assert result.status in (Status.OK, Status.MAX_STEPS, Status.NO_DESCENT)
    if result.status == Status.OK:
        assert np.linalg.norm(result.flat - w) <= allowed(0.0, condition, w, dtype)


@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize(("solver", "name"), [("GradientDescent", "logistic"), ("Picard", "tanh map")])
def test_first_order_budgets_run_exactly(solver, name, steps, dtype):
    result = run(replace(SOLVERS[solver], steps=steps), CASES[name], dtype)
    assert (result.status, int(result.info.steps)) == (Status.OK, steps)
    assert result.evaluations == steps + 1 + (solver == "GradientDescent")


@pytest.mark.parametrize(
    "solver",
    [bl.HeavyBall(step=0.1, momentum=0.5), bl.Nesterov(mu=0.1, L=4.0), bl.Anderson(step=0.1), SOLVERS["Optax"]],
)
def test_with_its_parameters_given_nothing_is_estimated(solver, dtype):
    result = run(replace(solver, steps=7), CASES["logistic"], dtype)
    assert (result.status, int(result.info.steps), int(result.info.matvecs)) == (Status.OK, 7, 8)
    assert result.evaluations == 8


@pytest.mark.parametrize(("solver", "name"), [("NewtonCG", "logistic"), ("LBFGS", "logistic")])
def test_second_order_budgets_run_exactly(solver, name, dtype):
    result = run(type(SOLVERS[solver])(steps=2), CASES[name], dtype)
    assert (result.status, int(result.info.steps)) == (Status.OK, 2)
    assert np.linalg.norm(CASES[name].residual(result.flat)) < np.linalg.norm(CASES[name].residual(np.zeros(6)))


def test_newton_krylov_on_a_budget(dtype):
    """Its budget is of Newton steps; the Picard steps before come on top."""
    one, two = (run(bl.NewtonKrylov(steps=k), CASES["cubic root"], dtype) for k in (1, 2))
    assert one.status == two.status == Status.OK
    assert int(two.info.steps) == int(one.info.steps) + 1
    assert one.evaluations == int(one.info.matvecs)


def test_gradient_descent_is_what_it_says(dtype):
    """Against a loop by hand."""
    case, step, w = CASES["ridge"], 0.05, np.zeros(6)
    for _ in range(10):
        w = w - step * case.residual(w)
    for solver, lower in (
        (bl.GradientDescent(steps=10, step=step), case.lower),
        (bl.GradientDescent(steps=10), bl.minimization(case.lower.function, step=step)),
        (bl.Picard(steps=10), bl.minimization(case.lower.function, step=step)),
    ):
        result = run(solver, case._replace(lower=lower), dtype)
        assert np.linalg.norm(result.flat - w) <= 100 * float(jnp.finfo(dtype).eps) * np.linalg.norm(w)
        assert int(result.info.matvecs) == 11
        assert float(result.info.residual_norm) == pytest.approx(np.linalg.norm(case.residual(w)), rel=1e-4)


def test_newton_cg_counts_every_product(dtype):
    """With one unknown each Newton step takes one product."""
    case = CASES["logistic"]
    data = {**D, "X": X[:, :1]}
    result = run(bl.NewtonCG(), case._replace(lam=case.lam[:1], w0=np.zeros(1), data=data), dtype, rtol=1e-4)
    assert result.status == Status.OK
    assert int(result.info.matvecs) == result.evaluations + int(result.info.steps)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_newton_cg_leaves_a_saddle(side, dtype):
    """``x^2 - y^2 + y^4``: minima at ``y = +-1/sqrt(2)``, a saddle at 0."""
    w0 = cast(np.array([1.0, 1e-4 * side]), dtype)
    one = jnp.ones((), dtype)
    w, info = jax.jit(lambda w0: bl.NewtonCG()(bl.minimization(saddle_loss), one, w0, one))(w0)
    assert Status(int(info.status)) == Status.OK
    np.testing.assert_allclose(w, [0.0, side / 2**0.5], atol=1e-3)


@pytest.mark.parametrize("solver", ["NewtonCG", "Picard", "NewtonKrylov", "Nesterov", "Anderson"])
def test_a_batch_is_a_loop(solver, dtype):
    """Each lane ends as it does alone."""
    case, rtol = CASES[FIRST[solver]], jnp.asarray(1e-3, dtype)
    w0, data = cast((case.w0, case.data), dtype)
    lams = jnp.stack([jnp.asarray(case.lam + shift, dtype) for shift in (-1.0, 0.0, 3.0)])
    solve = jax.jit(jax.vmap(lambda lam: SOLVERS[solver](case.lower, lam, w0, data, rtol=rtol)))
    w, info = solve(lams)
    for lane, lam in enumerate(lams):
        alone = run(SOLVERS[solver], case._replace(lam=lam), dtype, rtol=rtol)
        assert int(info.status[lane]) == alone.status == Status.OK
        assert int(info.steps[lane]) == int(alone.info.steps)
        assert int(info.matvecs[lane]) == int(alone.info.matvecs)
        size = np.linalg.norm(alone.flat)
        np.testing.assert_allclose(w[lane], alone.flat, rtol=0, atol=1e3 * jnp.finfo(dtype).eps * size)


def test_tolerances_steps_and_data_do_not_recompile(dtype):
    traces = []

    def loss(w, lam, data):
        traces.append(1)
        return jnp.sum((data * w - 1) ** 2) + lam * jnp.sum(w**2)

    @jax.jit
    def solve(solver, lower, lam, w0, data):
        return solver(lower, lam, w0, data)[0]

    w0, after = jnp.ones(3, dtype), []
    for number in jnp.asarray([0.1, 0.01, 0.001], dtype):
        solve(bl.GradientDescent(rtol=number, step=number), bl.minimization(loss), number, w0, number + w0)
        after.append(len(traces))
    assert after[0] == after[-1] > 0


@pytest.mark.parametrize("solver", ["NewtonCG", "LBFGS", "GradientDescent", "HeavyBall", "Nesterov"])
def test_solvers_of_minimizations_refuse_others(solver, dtype):
    with pytest.raises(bl.ProblemError, match=f"{solver} needs a minimization"):
        run(SOLVERS[solver], CASES["tanh map"], dtype)


def test_default_solvers_fit_the_kind():
    assert isinstance(default_solver(CASES["ridge"].lower), bl.NewtonCG)
    assert isinstance(default_solver(CASES["tanh map"].lower), bl.NewtonKrylov)
    assert isinstance(default_solver(CASES["cubic root"].lower), bl.NewtonKrylov)
