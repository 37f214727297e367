"""Exactly so many steps: a loop by hand and nothing else inside it, judged where it ends."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import subjaxprs

import bilevel as bl
from bilevel.status import Status

STEPS = 5
LOSS = lambda w, lam, data: 0.5 * jnp.sum(data * w**2) - jnp.sum(lam * w)  # noqa: E731
GRADIENT = bl.minimization(LOSS)
MAP = bl.fixed_point(lambda w, lam, data: 0.5 * data * w + lam)
SOLVERS = {
    "Picard": (bl.Picard(steps=STEPS, step=1.0), MAP),
    "GradientDescent": (bl.GradientDescent(steps=STEPS, step=0.1), GRADIENT),
    "HeavyBall": (bl.HeavyBall(steps=STEPS, step=0.1, momentum=0.5), GRADIENT),
    "Nesterov": (bl.Nesterov(steps=STEPS, step=0.1, momentum=0.5), GRADIENT),
    "Optax": (bl.Optax(optax.sgd(0.1, momentum=0.5), steps=STEPS), GRADIENT),
}


def inputs(dtype, n=4):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=n), dtype), jnp.ones(n, dtype), jnp.asarray(rng.uniform(size=n), dtype)


def by_hand(solver, lower, lam, w0, data, steps=STEPS):
    state = solver.init(w0)
    for _ in range(steps):
        state = solver.advance(state, lower.residual(solver.params(state), lam, data))
    return solver.params(state)


def costly(jaxpr):
    """How many reductions, choices and tests there are in a program, but for its loops."""
    counts = Counter()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        counts += Counter({name: 1}) if name.startswith(("reduce", "select", "is_finite", "dot")) else Counter()
    for inner in subjaxprs(jaxpr):
        counts += costly(inner)
    return counts


def loops(jaxpr):
    """The bodies of the loops of a program."""
    own = [e.params["body_jaxpr"].jaxpr for e in jaxpr.eqns if e.primitive.name == "while"]
    return own + [body for inner in subjaxprs(jaxpr) for body in loops(inner) if body not in own]


@pytest.mark.parametrize("name", SOLVERS)
def test_nothing_but_the_step_is_in_the_loop(name, dtype):
    solver, lower = SOLVERS[name]
    lam, w0, data = inputs(dtype)
    (body,) = loops(jax.make_jaxpr(lambda *args: solver(lower, *args))(lam, w0, data).jaxpr)
    residual = jax.make_jaxpr(lambda *args: lower.residual(*args))(w0, lam, data).jaxpr
    assert costly(body) == costly(residual)


@pytest.mark.parametrize("name", SOLVERS)
def test_it_is_the_loop_by_hand(name, dtype):
    solver, lower = SOLVERS[name]
    lam, w0, data = inputs(dtype)
    rounding = {"rtol": 0, "atol": 50 * float(jnp.finfo(dtype).eps)}
    run = jax.jit(lambda lam, w0, steps: solver(lower, lam, w0, data, steps=steps))
    for steps in (0, 1, STEPS):
        w, info = run(lam, w0, steps)  # known when it runs
        assert (int(info.steps), int(info.matvecs), int(info.status)) == (steps, steps + 1, Status.OK)
        np.testing.assert_allclose(w, by_hand(solver, lower, lam, w0, data, steps), **rounding)
        expected = np.linalg.norm(lower.residual(w, lam, data))
        np.testing.assert_allclose(info.residual_norm, expected, rtol=1e-5)
    w, info = jax.jit(lambda: solver(lower, lam, w0, data))()  # known when it is compiled
    assert (int(info.steps), int(info.matvecs), int(info.status)) == (STEPS, STEPS + 1, Status.OK)
    np.testing.assert_allclose(w, by_hand(solver, lower, lam, w0, data), **rounding)
    many, _ = jax.vmap(lambda lam, w0: solver(lower, lam, w0, data))(jnp.stack([lam, 2 * lam]), jnp.stack([w0, -w0]))
    np.testing.assert_allclose(many[1], by_hand(solver, lower, 2 * lam, -w0, data), **rounding)


def grown(w, lam, data):
    return lam * w


@pytest.mark.parametrize(
    ("factor", "steps", "status", "finite"),
    [(2.0, 5, Status.OK, True), (2.0, 60, Status.DIVERGED, True), (1e30, 60, Status.DIVERGED, False)],
)
def test_divergence_is_told_at_the_end(factor, steps, status, finite, dtype):
    """A growth up to ``1 / sqrt(eps)`` may be that of a transient; beyond, all steps are done and w is their result."""
    lam, w0 = jnp.asarray([factor, 0.5], dtype), jnp.ones((2, 3), dtype)
    solve = jax.vmap(lambda lam, w0: bl.Picard(steps=steps)(bl.fixed_point(grown), lam, w0, None))
    w, info = jax.jit(solve)(lam, w0)
    np.testing.assert_array_equal(info.status, [status, Status.OK])
    np.testing.assert_array_equal(info.steps, steps)
    assert np.isfinite(w[0]).all() == finite
    np.testing.assert_allclose(w[1], 0.5**steps, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_told_with_its_place(bad, dtype):
    """``NONFINITE`` at the start, ``DIVERGED`` after it."""
    solve = jax.jit(lambda solver, w0, lam: solver(MAP, lam, w0, jnp.ones(2, dtype))[1])
    fine, broken = jnp.ones(2, dtype), jnp.asarray([1.0, bad], dtype)
    assert Status(int(solve(bl.Picard(steps=3), broken, fine).status)) == Status.NONFINITE
    assert Status(int(solve(bl.Picard(steps=0), broken, fine).status)) == Status.NONFINITE
    assert Status(int(solve(bl.Picard(steps=3, step=bad), fine, fine).status)) == Status.DIVERGED


def test_a_residual_that_vanishes_at_infinity_is_no_convergence(dtype):
    tiny = 1e-200 if dtype == jnp.float64 else 1e-30
    lower = bl.root(lambda w, lam, data: -lam / w)
    w, info = bl.Picard(steps=3, step=1 / tiny)(lower, jnp.ones((), dtype), jnp.full(2, tiny, dtype), None)
    assert np.isinf(w).all()
    assert float(info.residual_norm) == 0
    assert Status(int(info.status)) == Status.DIVERGED
