"""What each first-order method is, by loops by hand and by its rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lower_problems import CASES, cast, run

import bilevel as bl
from bilevel.status import Status

MU, L = 1e-3, 1.0
SPECTRUM = np.geomspace(MU, L, 40)
ROOT = (MU / L) ** 0.5  # sqrt(1 / kappa)


def quadratic(w, lam, data):
    return jnp.sum(data * w**2) / 2 - jnp.sum(lam * w)


def errors(solver, steps, dtype):
    """Distances to the solution after so many steps on the quadratic, relative to that of the start."""
    w = np.ones(40)
    lam, w0, data = cast((SPECTRUM * w, np.zeros(40), SPECTRUM), dtype)
    step = jax.jit(lambda solver, steps: solver(bl.minimization(quadratic), lam, w0, data, steps=steps)[0])
    return [np.linalg.norm(np.asarray(step(solver, t)) - w) / np.linalg.norm(w) for t in steps]


def near(a, b, dtype):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) <= 100 * float(jnp.finfo(dtype).eps) * np.linalg.norm(b)


@pytest.mark.float64
@pytest.mark.parametrize("given", [{"mu": MU, "L": L}, {}])
def test_heavy_ball_has_the_rate_of_the_root_of_the_condition(given):
    """``|e_t| <= c t p^t``, ``p = (1 - r) / (1 + r)``; gradient descent has ``p = (1 - r^2) / (1 + r^2)``."""
    p = (1 - ROOT) / (1 + ROOT)
    before, after = errors(bl.HeavyBall(**given), (200, 400), jnp.float64)
    # With all 40 eigenvalues in reach of 32 Lanczos steps mu is found from above, within a factor of two.
    rate = (after / before) ** (1 / 200)
    assert p - 1e-3 <= rate <= (p + 5e-3 if given else (1 - ROOT / 1.4) / (1 + ROOT / 1.4))
    slow = errors(bl.GradientDescent(step=2 / (L + MU)), (200, 400), jnp.float64)
    assert (slow[1] / slow[0]) ** (1 / 200) >= 1 - 3 * ROOT**2


@pytest.mark.float64
@pytest.mark.parametrize("given", [{"mu": MU, "L": L}, {"L": L}, {}])
def test_nesterov_has_the_accelerated_rate(given):
    """``sqrt(1 - r)`` for the loss, that is its root for the distance; with restarts within a factor of two of it."""
    before, after = errors(bl.Nesterov(**given), (150, 600), jnp.float64)
    rate = (after / before) ** (1 / 450)
    assert rate <= ((1 - ROOT) ** 0.5 + 1e-3 if "mu" in given else (1 - ROOT / 2) ** 0.5)


def test_heavy_ball_is_what_it_says(dtype):
    case, w, last = CASES["ridge"], np.zeros(6), np.zeros(6)
    for _ in range(9):
        w, last = w - 0.1 * case.residual(w) + 0.6 * (w - last), w
    assert near(run(bl.HeavyBall(steps=9, step=0.1, momentum=0.6), case, dtype).flat, w, dtype)


@pytest.mark.parametrize("momentum", [0.6, None])
def test_nesterov_is_what_it_says(momentum, dtype):
    case, y, x, t = CASES["ridge"], np.zeros(6), np.zeros(6), 1.0
    for _ in range(9):
        F = case.residual(y)
        new = y - 0.2 * F
        t = 1.0 if F @ (new - x) > 0 else t
        following = (1 + (1 + 4 * t * t) ** 0.5) / 2
        y = new + ((t - 1) / following if momentum is None else momentum) * (new - x)
        x, t = new, following
    assert near(run(bl.Nesterov(steps=9, step=0.2, momentum=momentum), case, dtype).flat, y, dtype)


def test_optax_is_what_it_says(dtype):
    """``optax.sgd`` with momentum is the heavy ball, adam is adam."""
    case = CASES["ridge"]
    sgd = run(bl.Optax(optax.sgd(0.1, momentum=0.6), steps=9), case, dtype)
    ball = run(bl.HeavyBall(steps=9, step=0.1, momentum=0.6), case, dtype)
    assert near(sgd.flat, ball.flat, dtype)
    w, m, s = np.zeros(6), np.zeros(6), np.zeros(6)
    for i in range(1, 6):
        g = case.residual(w)
        m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g * g
        w = w - 0.05 * (m / (1 - 0.9**i)) / (np.sqrt(s / (1 - 0.999**i)) + 1e-8)
    assert near(run(bl.Optax(optax.adam(0.05), steps=5), case, dtype).flat, w, dtype)


@pytest.mark.float64
def test_anderson_is_gmres_on_affine_maps():
    """With a memory of all steps, k + 1 steps end at ``w_k + r_k`` of k steps of GMRES (Walker and Ni 2011)."""
    case = CASES["affine map"]
    A = np.eye(6) - case.data["M"]
    b = np.exp(case.lam) * case.data["y"][:6]
    for k in (1, 2, 4):
        K = np.stack([np.linalg.matrix_power(A, j) @ b for j in range(k)], axis=1)
        x = K @ np.linalg.lstsq(A @ K, b, rcond=None)[0]
        result = run(bl.Anderson(steps=k + 1, memory=10), case, jnp.float64)
        assert np.linalg.norm(result.flat - (x + b - A @ x)) <= 1e-9 * np.linalg.norm(x)


def test_anderson_with_damping_one_half(dtype):
    """Two steps by hand: the second extrapolates along the only difference."""
    case = CASES["tanh map"]
    r0 = -case.residual(np.zeros(6))
    w1 = 0.5 * r0
    r1 = -case.residual(w1)
    gamma = (r1 - r0) @ r1 / ((r1 - r0) @ (r1 - r0))
    w2 = w1 + 0.5 * r1 - (w1 + 0.5 * (r1 - r0)) * gamma
    assert near(run(bl.Anderson(steps=2, damping=0.5), case, dtype).flat, w2, dtype)


def test_anderson_solves_what_picard_cannot(dtype):
    """``w -> -2 w + 1`` is no contraction."""
    lower = bl.fixed_point(lambda w, lam, data: lam - 2 * w)
    w0, lam = jnp.zeros(3, dtype), jnp.asarray([1.0, 2.0, 3.0], dtype)
    solve = jax.jit(lambda solver: solver(lower, lam, w0, None, rtol=1e-4))
    w, info = solve(bl.Anderson())
    assert Status(int(info.status)) == Status.OK
    np.testing.assert_allclose(w, lam / 3, rtol=1e-3)
    assert Status(int(solve(bl.Picard())[1].status)) == Status.DIVERGED


def test_a_damped_picard_step(dtype):
    """``w -> -w + 1`` only rotates; its average with the identity arrives at once."""
    lower = bl.fixed_point(lambda w, lam, data: lam - w)
    w, info = bl.Picard(step=0.5)(lower, jnp.ones(2, dtype), jnp.zeros(2, dtype), None, rtol=1e-3)
    np.testing.assert_allclose(w, 0.5, rtol=1e-6)
    assert int(info.steps) == 1
