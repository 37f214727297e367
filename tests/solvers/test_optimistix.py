"""The adapter to optimistix: its solutions, its failures, and counts that are never too small."""

import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from lower_problems import CASES, run

import bilevel as bl
from bilevel.solvers.optimistix import Optimistix
from bilevel.status import Status

SOLVERS = {
    "BFGS": (optx.BFGS, ["logistic", "leaves"]),
    "Newton": (optx.Newton, ["logistic", "tanh map", "cubic root"]),
    "Dogleg": (optx.Dogleg, ["leaves map", "cubic root"]),
    "FixedPointIteration": (optx.FixedPointIteration, ["tanh map", "logistic"]),
}
PAIRS = [(solver, name) for solver, (_, names) in SOLVERS.items() for name in names]


def tolerance(dtype) -> float:
    return 1e-9 if dtype == jnp.float64 else 1e-5


@pytest.mark.parametrize(("solver", "name"), PAIRS)
def test_solution_residual_and_counts(solver, name, dtype):
    case, rtol = CASES[name], tolerance(dtype)
    w, condition = case.truth()
    result = run(Optimistix(SOLVERS[solver][0](rtol, rtol)), case, dtype)
    if dtype == jnp.float32 and result.status == Status.MAX_STEPS:
        # Noise in the loss may end a line search early: what is left is said, not hidden.
        assert float(result.info.residual_norm) * np.linalg.norm(np.linalg.inv(case.jacobian(w)), 2) > rtol
        return
    assert result.status == Status.OK
    # The solver stops by its last difference; the adapter accepts a residual of ten times that.
    bound = condition * (10 * rtol + 20 * float(jnp.finfo(dtype).eps)) * np.linalg.norm(w)
    assert np.linalg.norm(result.flat - w) <= bound
    F = np.linalg.norm(case.residual(result.flat))
    size = np.linalg.norm(case.residual(result.flat + 1.0))
    assert float(result.info.residual_norm) == pytest.approx(F, rel=0.01, abs=20 * float(jnp.finfo(dtype).eps) * size)
    assert result.evaluations <= int(result.info.matvecs)


def test_success_is_what_the_residual_says(dtype):
    """A loose solver is content; a tolerance of ours is not."""
    loose = optx.GradientDescent(0.01, rtol=0.3, atol=0.3)
    result = run(Optimistix(loose), CASES["logistic"], dtype, rtol=1e-4)
    assert result.status == Status.MAX_STEPS
    assert run(Optimistix(loose, steps=3), CASES["logistic"], dtype).status == Status.OK


def test_out_of_steps_and_nan(dtype):
    short = Optimistix(optx.BFGS(1e-8, 1e-8), steps=2, rtol=tolerance(dtype))
    assert run(short, CASES["logistic"], dtype).status == Status.MAX_STEPS
    case = CASES["tanh map"]
    poisoned = case._replace(data={**case.data, "M": case.data["M"] * np.nan})
    assert run(Optimistix(optx.FixedPointIteration(1e-5, 1e-5)), poisoned, dtype).status == Status.NONFINITE


def test_what_does_not_fit_is_refused(dtype):
    with pytest.raises(bl.ProblemError, match="BFGS needs a minimization"):
        run(Optimistix(optx.BFGS(1e-5, 1e-5)), CASES["tanh map"], dtype)
    with pytest.raises(bl.ProblemError, match="needs a solver of optimistix"):
        run(Optimistix("BFGS", rtol=1e-3), CASES["tanh map"], dtype)


def test_as_the_solver_of_a_hypergradient(dtype):
    """``w(lam) = 1 / (1 + lam)``, ``U = w^2 / 2``."""
    lower = bl.minimization(lambda w, lam, data: jnp.sum((w - 1) ** 2 + lam * w**2) / 2)
    problem = bl.Problem(lower, lambda w, lam, data: jnp.sum(w**2) / 2)
    method = bl.AID(Optimistix(optx.BFGS(tolerance(dtype), tolerance(dtype))))
    h = bl.hypergradient(problem, jnp.asarray(0.5, dtype), jnp.zeros(1, dtype), method=method)
    np.testing.assert_allclose(h.grad, -1 / 1.5**3, rtol=1e-3)
