"""Bounded loops: all kinds end alike, and a budget is a loop of known length."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.loops import bounded_while, full_length_loop, repeat

STEPS = 7


def run(loop, steps, limit):
    """Powers of two until one is above the limit; the state after it must not be computed to matter."""
    return loop(lambda s: s[0] <= limit, lambda s: (2 * s[0], s[1] + 1), (jnp.asarray(1.0), jnp.asarray(0)), steps)


@pytest.mark.parametrize("limit", [0.5, 1.0, 10.0, jnp.inf], ids=["at once", "first", "midway", "never"])
@pytest.mark.parametrize("vmapped", [False, True], ids=["alone", "vmapped"])
def test_ends_as_a_loop_that_looks_does(limit, vmapped):
    def both(limit):
        return run(full_length_loop, STEPS, limit), run(bounded_while, STEPS, limit)

    ours, expected = jax.vmap(both)(jnp.asarray([limit, 3.0])) if vmapped else both(limit)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_nothing_that_follows_the_end_is_kept():
    """Square roots of numbers that become negative: the steps after the end would all be NaN."""
    end = full_length_loop(lambda x: x > 0, lambda x: jnp.sqrt(x) - 0.9, jnp.asarray(1.0), 20)
    assert -0.9 < float(end) <= 0


@pytest.mark.parametrize("steps", [0, 1, STEPS])
def test_repeats_exactly_so_often(steps):
    double = lambda x: 2 * x  # noqa: E731
    assert float(repeat(double, jnp.asarray(1.0), steps)) == 2.0**steps
    assert float(jax.jit(lambda steps: repeat(double, jnp.asarray(1.0), steps))(steps)) == 2.0**steps


def test_takes_a_number_of_steps_that_is_known_at_run_time_only():
    found = jax.jit(lambda steps: run(full_length_loop, steps, jnp.inf))(STEPS)
    jax.tree.map(np.testing.assert_array_equal, found, run(bounded_while, STEPS, jnp.inf))


SOLVERS = {
    "AID-CG": bl.AID(bl.GradientDescent(steps=STEPS), bl.CG(steps=STEPS)),
    "AID-FP": bl.AID(bl.Picard(steps=STEPS), bl.Richardson(steps=STEPS)),
    "AID-CGLS": bl.AID(bl.HeavyBall(steps=STEPS), bl.NormalCG(steps=STEPS)),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_budgets_are_loops_of_known_length(name):
    """A GPU sends the condition of any other loop to the host before every step."""
    X = jnp.array([[1.0, 2.0], [0.0, 1.0], [1.0, 0.0]])
    upper = lambda w, lam, X: 0.5 * jnp.mean((X @ w - 1.0) ** 2)  # noqa: E731
    lower = bl.minimization(lambda w, lam, X: upper(w, lam, X) + 0.5 * lam * jnp.sum(w**2), step=0.3)
    call = partial(
        bl.hypergradient, bl.Problem(lower, upper), w0=jnp.zeros(2), lower_data=X, upper_data=X,
        method=SOLVERS[name], error=False,
    )  # fmt: skip
    program = str(jax.jit(lambda lam: call(lam).grad).lower(1.0).compile().as_text())
    lengths = re.findall(r' while\(.*"known_trip_count":\{"n":"(\d+)"', program)
    assert len(lengths) == program.count(" while(")
    assert lengths.count(str(STEPS - 1)) == lengths.count(str(STEPS)) == 1  # for w after its first step, and for v


@pytest.mark.parametrize("name", SOLVERS)
def test_nothing_is_differentiated_backwards_through_budgets(name):
    """Derivatives of truncated iterations would be wrong silently."""
    lower = bl.minimization(lambda w, lam, X: 0.5 * jnp.sum((X @ w - 1.0) ** 2) + 0.5 * lam * jnp.sum(w**2))
    problem = bl.Problem(lower, lambda w, lam, X: jnp.sum(w**2))
    X = jnp.array([[1.0, 2.0], [0.0, 1.0], [1.0, 0.0]])

    def grad(lam):
        return bl.hypergradient(
            problem, lam, jnp.zeros(2), lower_data=X, upper_data=X, method=SOLVERS[name], error=False
        ).grad

    with pytest.raises(ValueError, match="Reverse-mode differentiation"):
        jax.grad(grad)(1.0)
