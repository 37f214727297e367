"""Lower-level problems without a solution: every solver says so, and ``w`` stays finite where it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.status import Status


def doubling(w, lam, _data):
    return 2 * w + lam


def drift(w, lam, _data):
    return w + lam


def no_root(w, lam, _data):
    return w**2 + lam


def linear(w, lam, _data):
    return -lam * jnp.sum(w)


def concave(w, lam, _data):
    return -lam * jnp.sum(w**2)


def convex(w, lam, _data):
    return lam * jnp.sum(w**2)


def steep(w, lam, _data):
    """Not finite left of zero."""
    return jnp.sum(w**2) - lam * jnp.sum(jnp.log(w))


_solve = jax.jit(lambda solver, lower, lam, w0: solver(lower, lam, w0, None))

PICARD, NEWTON = bl.Picard(), bl.NewtonKrylov()
UNSOLVABLE = {
    "Picard, doubling": (PICARD, bl.fixed_point(doubling), {Status.DIVERGED}),
    "Picard, drift": (PICARD, bl.fixed_point(drift), {Status.MAX_STEPS}),
    "Picard, no root": (PICARD, bl.root(no_root), {Status.DIVERGED}),
    "NewtonKrylov, drift": (NEWTON, bl.fixed_point(drift), {Status.MAX_STEPS, Status.NO_DESCENT}),
    "NewtonKrylov, no root": (NEWTON, bl.root(no_root), {Status.MAX_STEPS, Status.NO_DESCENT}),
    "NewtonCG, linear": (bl.NewtonCG(), bl.minimization(linear), {Status.MAX_STEPS}),
    "NewtonCG, concave": (bl.NewtonCG(), bl.minimization(concave), {Status.MAX_STEPS, Status.NONFINITE}),
    "LBFGS, linear": (bl.LBFGS(), bl.minimization(linear), {Status.MAX_STEPS, Status.NO_DESCENT}),
    "LBFGS, concave": (bl.LBFGS(), bl.minimization(concave), {Status.MAX_STEPS, Status.NO_DESCENT, Status.NONFINITE}),
    "GradientDescent, linear": (bl.GradientDescent(), bl.minimization(linear), {Status.NONFINITE, Status.DIVERGED}),
    "GradientDescent, concave": (bl.GradientDescent(), bl.minimization(concave), {Status.DIVERGED}),
    "GradientDescent, long step": (bl.GradientDescent(step=3.0), bl.minimization(convex), {Status.DIVERGED}),
}


@pytest.mark.parametrize("name", UNSOLVABLE)
def test_no_solution(name, dtype):
    solver, lower, expected = UNSOLVABLE[name]
    w, info = _solve(solver, lower, jnp.ones((), dtype), jnp.full(2, 0.7, dtype))
    assert Status(int(info.status)) in expected
    assert np.isfinite(w).all() or Status(int(info.status)) == Status.NONFINITE


def test_newton_krylov_solves_what_picard_cannot(dtype):
    w, info = _solve(NEWTON, bl.fixed_point(doubling), jnp.ones((), dtype), jnp.full(2, 0.7, dtype))
    assert Status(int(info.status)) == Status.OK
    np.testing.assert_allclose(w, -1.0, rtol=1e-3)


def test_a_diverging_budget_fails(dtype):
    steps = 1100 if dtype == jnp.float64 else 140  # past the largest number
    _, info = _solve(bl.Picard(steps=steps), bl.fixed_point(doubling), jnp.ones((), dtype), jnp.ones(2, dtype))
    assert Status(int(info.status)) == Status.DIVERGED


def test_gradient_descent_does_not_climb(dtype):
    """With a negative curvature everywhere its step, one over the largest eigenvalue, must not change sign."""
    _, info = _solve(bl.GradientDescent(), bl.minimization(concave), jnp.ones((), dtype), jnp.full(2, 0.7, dtype))
    assert Status(int(info.status)).failed


@pytest.mark.parametrize("solver", [bl.NewtonCG(), bl.LBFGS()])
def test_a_loss_with_a_boundary(solver, dtype):
    """Steps across the boundary, where the loss is NaN, are shortened: ``w = sqrt(lam / 2)``."""
    w, info = _solve(solver, bl.minimization(steep), jnp.full((), 1e-2, dtype), jnp.full(2, 3.0, dtype))
    if Status(int(info.status)) == Status.OK:
        np.testing.assert_allclose(w, (1e-2 / 2) ** 0.5, rtol=1e-2)
    else:
        assert isinstance(solver, bl.LBFGS)


@pytest.mark.parametrize("solver", [PICARD, NEWTON, bl.NewtonCG(), bl.LBFGS(), bl.GradientDescent()])
def test_a_start_that_is_not_finite(solver, dtype):
    kind = bl.fixed_point(doubling) if solver in (PICARD, NEWTON) else bl.minimization(concave)
    _, info = _solve(solver, kind, jnp.ones((), dtype), jnp.asarray([np.inf, 1.0], dtype))
    assert Status(int(info.status)) == Status.NONFINITE


def tail(w, lam, _data):
    """Falls towards zero at infinity: every Newton step has length one, short beside ``w`` far out."""
    return jnp.sum(jnp.exp(-lam * w))


def exponential(w, lam, _data):
    return jnp.sum(jnp.exp(w) - lam * w)


def concave_tails(w, lam, _data):
    return jnp.sum(jnp.log1p((w - lam) ** 2))


def test_a_short_newton_step_far_from_a_solution_is_not_the_last(dtype):
    w, info = bl.NewtonCG()(
        bl.minimization(tail), jnp.ones((), dtype), jnp.full(2, 30.0, dtype), None, rtol=0.05, steps=9
    )
    assert Status(int(info.status)) == Status.MAX_STEPS
    np.testing.assert_allclose(w, 39.0, rtol=1e-3)  # steps of length one


@pytest.mark.parametrize(
    ("loss", "w0", "expected"), [(exponential, -50.0, np.log(2.0)), (concave_tails, 1e4, 2.0)], ids=["flat", "concave"]
)
def test_newton_cg_comes_back_from_far_away(loss, w0, expected, dtype):
    """From where the curvature is 1e-22 a Newton step is 1e22 long; where it is negative a step has no length."""
    w, info = bl.NewtonCG()(
        bl.minimization(loss), jnp.full((), 2.0, dtype), jnp.full(2, w0, dtype), None, rtol=1e-4, steps=60
    )
    assert Status(int(info.status)) == Status.OK
    np.testing.assert_allclose(w, expected, atol=2e-4 * abs(w0))  # rtol is relative to the start, too
