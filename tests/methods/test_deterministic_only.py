"""Solvers that sample are refused where nothing is sampled."""

import jax.numpy as jnp
import pytest

import bilevel as bl
from bilevel.linear.stochastic import StochasticRichardson

LOWER = bl.minimization(lambda w, lam, data: jnp.sum((w - data) ** 2) + lam * jnp.sum(w**2))
PROBLEM = bl.Problem(LOWER, lambda w, lam, data: jnp.sum(w**2))


@pytest.mark.parametrize(
    "call",
    [
        lambda: bl.hypergradient(
            PROBLEM, 1.0, jnp.zeros(2), lower_data=jnp.ones(2), method=bl.AID(solver=bl.SGD(steps=3))
        ),
        lambda: bl.hypergradient(
            PROBLEM, 1.0, jnp.zeros(2), lower_data=jnp.ones(2), method=bl.AID(linear_solver=StochasticRichardson())
        ),
        lambda: bl.hypergradient(
            PROBLEM, 1.0, jnp.zeros(2), lower_data=jnp.ones(2), method=bl.ITD(solver=bl.SGD(steps=3))
        ),
        lambda: bl.implicit(LOWER, solver=bl.SGD(steps=3)),
    ],
)
def test_refused_in_a_sentence(call):
    with pytest.raises(bl.ProblemError, match=r"SGD|StochasticRichardson"):
        call()
