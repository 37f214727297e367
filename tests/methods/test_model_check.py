"""A Newton step is believed only where the residual after it is the one that the linear model predicts."""

import jax.numpy as jnp
import pytest

import bilevel as bl
from bilevel.automatic.start import model_holds
from bilevel.lagrangian import Instance

RESIDUALS = {
    "triple root": (lambda w, lam, _: (w - lam) ** 3, False),  # falls to 8/27 at every distance
    "tail of an exponential": (lambda w, lam, _: -lam * jnp.exp(-w), False),  # falls to 1/e
    "affine": (lambda w, lam, _: 3.0 * w - lam, True),
    "curved, but near": (lambda w, lam, _: jnp.sinh(w - lam), True),  # falls to a third of the squared distance
}


@pytest.mark.parametrize("name", RESIDUALS)
def test_of_exact_newton_steps(name, dtype):
    residual, holds = RESIDUALS[name]
    at = Instance(bl.Problem(bl.root(residual), lambda w, lam, _: jnp.sum(w)), jnp.ones((), dtype), None, None)
    w = jnp.full(1, 1.1, dtype)
    F, A = at.linearize(w)
    dw = -F / A.mv(jnp.ones_like(w))
    nothing_left = jnp.zeros((), dtype)
    assert bool(model_holds(at, w, dw, F, nothing_left, jnp.ones((), dtype))) == holds
    # Beside a w of this size the same step is rounding.
    huge = jnp.linalg.norm(dw) / jnp.finfo(dtype).eps
    assert model_holds(at, w, dw, F, nothing_left, huge)
