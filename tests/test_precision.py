"""Wherever the library runs a user's functions, matrix products are in full precision."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

import bilevel as bl
from bilevel.linear.operator import LinearOperator

X = jnp.array([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0], [1.0, 0.0, 2.0], [0.5, -1.0, 1.0]])
DATA = {"lower_data": X, "upper_data": X}
AID = bl.AID(bl.GradientDescent(steps=3), bl.CG(steps=2))


class Watched:
    """A problem whose functions note the precision that they are traced with."""

    def __init__(self):
        self.seen = []
        self.problem = bl.Problem(bl.minimization(self.loss), self.upper)

    def loss(self, w, lam, data):
        return self.upper(w, lam, data) + 0.5 * lam * jnp.sum(w**2)

    def upper(self, w, _lam, data):
        self.seen.append(jax.config.jax_default_matmul_precision)
        return 0.5 * jnp.mean((data @ w - 1.0) ** 2)

    def hypergradient(self, method):
        return bl.hypergradient(self.problem, 1.0, jnp.zeros(3), **DATA, method=method, on_failure="keep").grad


@pytest.mark.parametrize(
    ("method", "compiled"), [(None, False), (None, True), (AID, False), (bl.ITD(steps=3), False)],
    ids=["automatic", "automatic, compiled", "AID", "ITD"],
)  # fmt: skip
def test_of_hypergradients(method, compiled):
    watched = Watched()
    call = partial(watched.hypergradient, method)
    with jax.default_matmul_precision(None):
        (jax.jit(call) if compiled else call)()
        assert jax.config.jax_default_matmul_precision is None
    assert set(watched.seen) == {"highest"}


@pytest.mark.parametrize("derivative", [jax.grad, jax.jacfwd])
def test_of_implicit_functions_and_their_derivatives(derivative):
    watched = Watched()
    w_star = bl.implicit(watched.problem.lower)
    with jax.default_matmul_precision(None):
        derivative(lambda lam: jnp.sum(w_star(lam, jnp.zeros(3), X)))(1.0)
    assert set(watched.seen) == {"highest"}


ALGORITHMS = {
    "SOBA": bl.algorithms.SOBA(bl.Sampler(2), 0.1, 0.1),
    "AdaptiveSOBA": bl.algorithms.AdaptiveSOBA(bl.Sampler(2)),
    "QuasiNewton": bl.algorithms.QuasiNewton(),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_of_upper_level_algorithms(name):
    """Of their own products, too: of steps, and of the values by which steps are judged."""
    watched, algorithm = Watched(), ALGORITHMS[name]
    key = None if name == "QuasiNewton" else jax.random.key(0)
    with jax.default_matmul_precision(None):
        bl.optimize(watched.problem, 1.0, jnp.zeros(3), algorithm=algorithm, steps=2, key=key, **DATA)
    assert set(watched.seen) == {"highest"}


def test_of_checks():
    watched = Watched()
    with jax.default_matmul_precision(None):
        bl.check_hypergradient(watched.problem, 1.0, jnp.zeros(3), **DATA, method=AID)
    assert set(watched.seen) == {"highest"}


def test_of_estimated_constants():
    watched = Watched()
    with jax.default_matmul_precision(None):
        bl.estimate_constants(watched.problem, jnp.asarray(1.0), jnp.zeros(3), **DATA)
    assert set(watched.seen) == {"highest"}


def test_of_the_matrix_of_an_operator():
    seen = []

    def mv(x):
        seen.append(jax.config.jax_default_matmul_precision)
        return X.T @ (X @ x)

    with jax.default_matmul_precision(None):
        LinearOperator(mv, mv, symmetric=True).dense(jnp.zeros(3))
    assert set(seen) == {"highest"}


def test_but_what_the_user_has_chosen():
    watched = Watched()
    with jax.default_matmul_precision("tensorfloat32"):
        watched.hypergradient(AID)
    assert set(watched.seen) == {"tensorfloat32"}
