"""Under vmap every problem has its own status, error and steps; one that fails poisons only itself."""

import jax
import jax.numpy as jnp
import pytest

import bilevel as bl
from bilevel.status import Status

N = 6
STIFFNESS = (2.0, 50.0, -1.0, 1.0)  # of one direction; the third problem is a saddle


def loss(w, lam, data):
    stiffness, b = data
    curvature = jnp.ones(N, w.dtype).at[0].set(stiffness)
    return 0.5 * w @ (curvature * w) + 0.25 * jnp.sum(w[1:] ** 4) + 0.5 * lam**2 * jnp.sum(w[1:] ** 2) - b @ w


def upper(w, lam, data):
    return 0.5 * jnp.sum((w - data) ** 2) + 0.1 * lam


PROBLEM = bl.Problem(bl.minimization(loss), upper)


def batch(dtype):
    stiffness = jnp.array(STIFFNESS, dtype)
    b = jnp.linspace(0.5, 2.0, len(STIFFNESS) * N, dtype=dtype).reshape(-1, N)
    return stiffness, b.at[2, 0].set(0.0)


def solve(method, stiffness, b):
    lam, w0, target = jnp.ones((), b.dtype), jnp.zeros(N, b.dtype), jnp.ones(N, b.dtype)
    return bl.hypergradient(
        PROBLEM, lam, w0, lower_data=(stiffness, b), upper_data=target, method=method, on_failure="nan"
    )


@pytest.mark.parametrize("method", [None, bl.AID()], ids=["automatic", "AID"])
def test_each_problem_speaks_for_itself(method, dtype):
    h = jax.vmap(lambda *data: solve(method, *data))(*batch(dtype))
    alone = [solve(method, *data) for data in zip(*batch(dtype), strict=True)]
    assert [Status(int(s)) for s in h.status] == [Status(int(a.status)) for a in alone]
    assert [bool(f) for f in h.failed] == [False, False, True, False]
    assert Status(int(h.status[2])) == Status.SADDLE
    assert jnp.isnan(h.grad[2])
    assert jnp.isfinite(h.w[2]).all()
    rounding = 50 * max(STIFFNESS) * float(jnp.finfo(dtype).eps)
    for i in (0, 1, 3):
        distance = abs(float(h.grad[i] - alone[i].grad))
        # Errors are estimated within a factor of two.
        assert distance <= 2 * float(h.error[i] + alone[i].error) + rounding * abs(float(alone[i].grad))
    mean = bl.masked_mean(h.grad, ~h.failed)
    assert abs(float(mean - jnp.mean(h.grad[jnp.array([0, 1, 3])]))) <= rounding * abs(float(mean))


def test_a_mean_over_no_success_is_no_number(dtype):
    assert jnp.isnan(bl.masked_mean(jnp.ones((3,), dtype), jnp.zeros(3, bool)))
