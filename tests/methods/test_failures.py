"""Failure is loud: the table of problems without a hypergradient, and what is done about them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.status import Status


def target(w, lam, data):
    return 0.5 * jnp.sum((w - 1.0) ** 2)


def least_squares(w, lam, data):
    X, y = data
    return jnp.sum((X @ w - lam * y) ** 2)


def plain_saddle(w, lam, data):
    return 0.5 * lam * (w[0] ** 2 - w[1] ** 2)


def quartic_saddle(w, lam, data):
    return 0.5 * lam * w[0] ** 2 - w[1] ** 2 + w[1] ** 4


def hidden_saddle(w, lam, data):
    """Negative curvature in one of 400 directions, which no right-hand side of the problem contains."""
    return 0.5 * jnp.sum(data * w**2) + 0.25 * w[-1] ** 4 - lam * jnp.sum(w[:-1])


def first_coordinates(w, lam, data):
    return 0.5 * jnp.sum((w[:-1] - 1.0) ** 2)


def turning(w, lam, data):
    return data @ w + lam


def wide(rows, columns, dtype):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(rows, columns)), dtype), jnp.asarray(rng.normal(size=rows), dtype)


def curvatures(n, dtype):
    return jnp.linspace(1, 2, n, dtype=dtype).at[-1].set(-0.5)


TABLE = {
    # name: (lower, upper, w0(dtype), data(dtype), statuses that may be given)
    "saddle": (bl.minimization(plain_saddle), target, lambda d: jnp.zeros(2, d), None, {Status.SADDLE}),
    "quartic saddle": (bl.minimization(quartic_saddle), target, lambda d: jnp.zeros(2, d), None, {Status.SADDLE}),
    "hidden saddle": (
        bl.minimization(hidden_saddle), first_coordinates, lambda d: jnp.zeros(400, d), lambda d: curvatures(400, d),
        {Status.SADDLE},
    ),
    "more unknowns than rows": (
        bl.minimization(least_squares), target, lambda d: jnp.zeros(20, d), lambda d: wide(5, 20, d), {Status.SINGULAR},
    ),
    "more unknowns than rows, matrix-free": (
        bl.minimization(least_squares), target, lambda d: jnp.zeros(600, d), lambda d: wide(60, 600, d),
        {Status.SINGULAR},
    ),
    "unbounded below": (
        bl.minimization(lambda w, lam, data: -lam * jnp.sum(w**2)), target, lambda d: jnp.ones(2, d), None,
        {Status.MAX_STEPS, Status.NONFINITE},
    ),
    "map without fixed point": (
        bl.fixed_point(lambda w, lam, data: w + lam), target, lambda d: jnp.zeros(2, d), None,
        {Status.MAX_STEPS, Status.SINGULAR, Status.TOLERANCE_UNMET},
    ),
    "residual without root": (
        bl.root(lambda w, lam, data: w**2 + lam), target, lambda d: jnp.ones(2, d), None,
        {Status.MAX_STEPS, Status.NO_DESCENT, Status.SINGULAR, Status.TOLERANCE_UNMET},
    ),
    "singular map": (
        bl.fixed_point(turning), target, lambda d: jnp.ones(2, d), lambda d: jnp.diag(jnp.asarray([1.0, 0.5], d)),
        {Status.MAX_STEPS, Status.SINGULAR, Status.TOLERANCE_UNMET},
    ),
    "NaN in the data": (
        bl.minimization(least_squares), target, lambda d: jnp.zeros(20, d),
        lambda d: (jnp.full((30, 20), jnp.nan, d), jnp.ones(30, d)), {Status.NONFINITE},
    ),
    "infinity in the data": (
        bl.minimization(least_squares), target, lambda d: jnp.zeros(20, d),
        lambda d: (jnp.ones((30, 20), d).at[3, 3].set(jnp.inf), jnp.ones(30, d)), {Status.NONFINITE},
    ),
    "NaN in the upper objective": (
        bl.minimization(lambda w, lam, data: jnp.sum((w - lam) ** 2)), lambda w, lam, data: jnp.sum(w) * jnp.nan,
        lambda d: jnp.zeros(2, d), None, {Status.NONFINITE},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_automatic_method_refuses(name, dtype):
    lower, upper, w0, data, allowed = TABLE[name]
    args = bl.Problem(lower, upper), jnp.asarray(1.0, dtype), w0(dtype)
    data = data and data(dtype)
    with pytest.raises(bl.ConvergenceError) as caught:
        bl.hypergradient(*args, lower_data=data)
    assert caught.value.status in allowed
    assert caught.value.status.sentence in str(caught.value)
    assert caught.value.result.w.shape == args[2].shape


@pytest.mark.parametrize("name", ["saddle", "more unknowns than rows", "NaN in the data", "map without fixed point"])
def test_inside_transformations_the_gradient_is_nan_and_the_rest_stays(name, dtype):
    lower, upper, w0, data, allowed = TABLE[name]
    problem = bl.Problem(lower, upper)
    data = data and data(dtype)

    def run(lam):
        return bl.hypergradient(problem, lam, w0(dtype), lower_data=data)

    h = jax.jit(run)(jnp.asarray(1.0, dtype))
    assert jnp.isnan(h.grad)
    assert Status(int(h.status)) in allowed | {Status.TOLERANCE_UNMET}
    assert jnp.isfinite(h.w).all()
    assert jnp.isfinite(h.v).all()


def test_on_failure_chooses_what_comes_back(dtype):
    lower, upper, w0, _, _ = TABLE["saddle"]
    args = bl.Problem(lower, upper), jnp.asarray(1.0, dtype), w0(dtype)
    assert jnp.isnan(bl.hypergradient(*args, on_failure="nan").grad)
    kept = bl.hypergradient(*args, on_failure="keep")
    assert jnp.isfinite(kept.grad)
    assert Status(int(kept.status)) == Status.SADDLE
    with pytest.raises(bl.ConvergenceError):
        kept.raise_if_failed()
    with pytest.raises(bl.ProblemError, match="on_failure"):
        bl.hypergradient(*args, on_failure="ignore")  # type: ignore[arg-type]


def rotation(angle, growth, dtype):
    c, s = np.cos(angle) * growth, np.sin(angle) * growth
    return jnp.asarray([[c, -s], [s, c]], dtype)


@pytest.mark.parametrize("solver", [bl.Picard(rtol=1e-4), bl.Picard(steps=60)], ids=["rtol", "budget"])
def test_diverging_iterations_are_told(solver, dtype):
    problem = bl.Problem(bl.fixed_point(turning), target)
    args = problem, jnp.asarray(1.0, dtype), jnp.zeros(2, dtype)
    with pytest.raises(bl.ConvergenceError) as caught:
        bl.hypergradient(*args, lower_data=rotation(1.5, 2.0, dtype), method=bl.AID(solver))
    assert caught.value.status == Status.DIVERGED
    assert jnp.isfinite(caught.value.result.w).all()


def test_maps_that_are_no_contraction_are_solved_where_a_solution_exists(dtype):
    """Expanding and rotating: Picard diverges, the fixed point and the hypergradient exist."""
    problem = bl.Problem(bl.fixed_point(turning), target)
    M, lam = rotation(1.0, 2.0, dtype), jnp.asarray(1.0, dtype)
    w = jnp.linalg.solve(jnp.eye(2) - M, jnp.ones(2)).astype(dtype)
    h = bl.hypergradient(problem, lam, jnp.zeros(2, dtype), lower_data=M)
    assert abs(float(h.grad - jnp.vdot(w - 1, w))) <= 1e-4 * abs(float(jnp.vdot(w - 1, w)))


def test_tolerances_that_are_not_met_raise_and_large_errors_are_flagged(dtype):
    lower = bl.minimization(lambda w, lam, data: 0.5 * jnp.sum(data * w**2) - lam * jnp.sum(w))
    args = bl.Problem(lower, target), jnp.asarray(1.0, dtype), jnp.zeros(20, dtype)
    data = jnp.logspace(0, -3, 20, dtype=dtype)
    short = bl.AID(bl.GradientDescent(steps=20), bl.CG(steps=2))
    h = bl.hypergradient(*args, lower_data=data, method=short)
    assert Status(int(h.status)) == Status.UNRESOLVED
    with pytest.raises(bl.ConvergenceError, match="TOLERANCE_UNMET"):
        bl.hypergradient(*args, lower_data=data, method=short, tol=1e-3)
    with pytest.raises(bl.ConvergenceError, match="MAX_STEPS"):
        bl.hypergradient(*args, lower_data=data, method=bl.AID(bl.GradientDescent(steps=20, rtol=1e-6)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": bl.AID(), "max_matvecs": 10}, "max_matvecs"),
        ({"method": bl.AID(), "tol": 0.1, "error": False}, "error"),
        ({"method": bl.ITD()}, "exactly one"),
        ({"method": bl.ITD(bl.NewtonCG(steps=3))}, "NewtonCG"),
        ({"method": bl.ITD(bl.Picard(rtol=0.1))}, "steps"),
        ({"method": bl.ITD(steps=5, truncate=6)}, "truncate"),
    ],
)
def test_invalid_combinations_are_one_sentence(options, words, dtype):
    lower = bl.minimization(lambda w, lam, data: jnp.sum((w - lam) ** 2))
    with pytest.raises(bl.ProblemError, match=words) as caught:
        bl.hypergradient(bl.Problem(lower, target), jnp.asarray(1.0, dtype), jnp.zeros(2, dtype), **options)
    assert "\n" not in str(caught.value)


def test_lam_only_in_the_start_is_refused(dtype):
    lower = bl.minimization(lambda w, lam, data: jnp.sum(w**2))
    with pytest.raises(bl.ProblemError, match="lam does not reach"):
        bl.hypergradient(
            bl.Problem(lower, lambda w, lam, data: lam * jnp.sum(w)), jnp.asarray(1.0, dtype), jnp.zeros(2, dtype)
        )
