"""Proximal maps against the conditions that define them, and composite problems against closed forms."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel.prox import elastic_net, soft_threshold, zero

STEP, L1, L2 = 0.5, 0.8, 0.3
KINK = STEP * L1


def rounding(dtype):
    return 8 * float(jnp.finfo(dtype).eps)


def points(dtype):
    """Random entries, both kinks, and zero."""
    drawn = np.random.default_rng(0).normal(size=20)
    return jnp.asarray([*drawn, KINK, -KINK, 0.0], dtype)


def test_elastic_net_satisfies_its_optimality_condition(dtype):
    """``(u - w) / step`` is in the subdifferential ``l1 sign(w) + l2 w`` of g at w."""
    u = points(dtype)
    w = elastic_net(u, L1, L2, STEP)
    slope = (u - w) / STEP - L2 * w
    on = w != 0
    assert 0 < jnp.sum(on) < len(u)
    np.testing.assert_allclose(slope[on], L1 * jnp.sign(w[on]), rtol=rounding(dtype))
    assert jnp.all(jnp.abs(slope[~on]) <= L1 * (1 + rounding(dtype)))


def test_derivatives_of_elastic_net(dtype):
    """``dw/du = 1 / (1 + step l2)``, ``dw/dl1 = -step sign / (1 + step l2)``, ``dw/dl2 = -step w / (1 + step l2)``."""
    u = points(dtype)[:20]
    w = elastic_net(u, L1, L2, STEP)
    on, scale = jnp.abs(u) > KINK, 1 + STEP * L2
    found = jax.jacfwd(elastic_net, argnums=(0, 1, 2, 3))(u, L1, L2, STEP)
    by_step = (-L1 * jnp.sign(u) - L2 * w) / scale
    expected = (jnp.diag(on / scale), -STEP * jnp.sign(w) / scale, -STEP * w / scale, jnp.where(on, by_step, 0.0))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=rounding(dtype), atol=rounding(dtype))


@pytest.mark.parametrize(("u", "t"), [(0.5, 0.5), (-0.5, 0.5), (0.0, 0.0), (0.0, 0.5)])
def test_derivatives_at_kinks_are_those_of_one_piece(u, t, dtype):
    by_u, by_t = jax.grad(soft_threshold, argnums=(0, 1))(jnp.asarray(u, dtype), jnp.asarray(t, dtype))
    assert (by_u, by_t) in [(0, 0), (1, -np.sign(u))]
    assert by_u == 1 or t > 0, "with no threshold the map is the identity"


def test_parameters_are_numbers_or_prefixes(dtype):
    u = {"weights": points(dtype), "intercept": jnp.asarray(0.3, dtype)}
    split = elastic_net(u, {"weights": L1, "intercept": 0.0}, 0.0, STEP)
    np.testing.assert_array_equal(split["weights"], soft_threshold(u["weights"], jnp.asarray(KINK, dtype)))
    assert split["intercept"] == u["intercept"]
    each = soft_threshold(points(dtype), jnp.abs(points(dtype)))
    np.testing.assert_allclose(each, jnp.zeros_like(each), atol=0)
    assert {leaf.dtype for leaf in jax.tree.leaves(split)} == {dtype}


# The elastic net, papers.md 1.14


def smooth(w, _lam, data):
    return jnp.mean((data[0] @ w - data[1]) ** 2) / 2


def prox(u, lam, step):
    return elastic_net(u, lam["l1"], lam["l2"], step)


def elastic_net_case(dtype, n=60, d=12):
    """Problem, its arguments, and the closed form on the support S of the solution.

    ``dw_S/dl1 = -H^-1 sign(w_S)``, ``dw_S/dl2 = -H^-1 w_S``, ``H = X_S^T X_S / n + l2 I``, with the support of ISTA in
    float64, checked by the optimality conditions.
    """
    rng = np.random.default_rng(1)
    X, V = rng.normal(size=(2, n, d))
    truth = np.where(np.arange(d) < d // 2, rng.normal(size=d), 0.0)
    y, z = (M @ truth + 0.1 * rng.normal(size=n) for M in (X, V))
    X, y, V, z = (np.asarray(a, dtype).astype(float) for a in (X, y, V, z))
    l1, l2 = (float(np.asarray(a, dtype)) for a in (0.1, 0.05))
    H = X.T @ X / n
    spectrum = np.linalg.eigvalsh(H)
    step = float(2 / (spectrum[0] + spectrum[-1] + l2))
    w = np.zeros(d)
    for _ in range(2000):
        u = w - step * (H @ w - X.T @ y / n)
        w = np.sign(u) * np.maximum(np.abs(u) - step * l1, 0) / (1 + step * l2)
    S = np.flatnonzero(w)
    H_S = H[np.ix_(S, S)] + l2 * np.eye(len(S))
    w_S = np.linalg.solve(H_S, X[:, S].T @ y / n - l1 * np.sign(w[S]))
    assert 2 <= len(S) < d
    assert np.array_equal(np.sign(w_S), np.sign(w[S]))
    slack = np.abs(X.T @ (y - X[:, S] @ w_S) / n)[np.setdiff1d(np.arange(d), S)]
    assert slack.max() < 0.99 * l1
    g = V[:, S].T @ (V[:, S] @ w_S - z) / n
    exact = {"l1": -g @ np.linalg.solve(H_S, np.sign(w_S)), "l2": -g @ np.linalg.solve(H_S, w_S)}
    problem = bl.Problem(bl.composite(smooth, prox, step), lambda w, _lam, data: smooth(w, _lam, data))
    lower, upper = (tuple(jnp.asarray(a, dtype) for a in pair) for pair in ((X, y), (V, z)))
    lam = {"l1": jnp.asarray(l1, dtype), "l2": jnp.asarray(l2, dtype)}
    return SimpleNamespace(
        arguments=(problem, lam, jnp.zeros(d, dtype)), data={"lower_data": lower, "upper_data": upper}, exact=exact
    )


METHODS = {
    "fixed-point": bl.AID(bl.Picard(steps=400), bl.Richardson(steps=400)),
    "itd": bl.ITD(steps=400),
    "forward": bl.ITD(steps=400, mode="forward"),
    "automatic": None,
    "exact": bl.Exact(),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_deterministic_method_finds_the_closed_form(name, dtype):
    case = elastic_net_case(dtype)
    tol = None if METHODS[name] else 1e-10 if dtype == jnp.float64 else 1e-5
    h = bl.hypergradient(*case.arguments, **case.data, method=METHODS[name], tol=tol)
    found, exact = (np.asarray(ravel_pytree(grad)[0], float) for grad in (h.grad, case.exact))
    tolerance = 1e-10 if dtype == jnp.float64 else 1e-4
    assert np.linalg.norm(found - exact) <= tolerance * np.linalg.norm(exact)


def test_a_map_without_a_nonsmooth_part_is_gradient_descent(dtype):
    case = elastic_net_case(dtype)
    _, lam, w0 = case.arguments

    def ridge(w, lam, data):
        return smooth(w, lam, data) + lam["l1"] * jnp.sum(w**2) + lam["l2"] * jnp.sum(w)

    lowers = bl.composite(ridge, zero, step=0.25), bl.minimization(ridge, step=0.25)
    found = [
        bl.hypergradient(bl.Problem(lower, smooth), lam, w0, **case.data, method=bl.ITD(steps=5), error=False)
        for lower in lowers
    ]
    grads = [ravel_pytree(h.grad)[0] for h in found]
    np.testing.assert_allclose(*grads, rtol=20 * rounding(dtype))


def test_a_projection_of_optax_is_a_proximal_map(dtype):
    """``min |w - y|^2 / 2`` on ``0 <= w <= lam``: at the upper bound w moves with it, elsewhere not at all."""
    y = jnp.asarray([-1.0, 0.5, 3.0, 4.0], dtype)

    def box(u, lam, _step):
        return optax.projections.projection_box(u, jnp.zeros_like(u), lam * jnp.ones_like(u))

    def distance(w, _lam, data):
        return jnp.sum((w - data) ** 2) / 2

    problem = bl.Problem(bl.composite(distance, box, step=0.5), lambda w, _lam, _data: jnp.sum(w**2) / 2)
    h = bl.hypergradient(problem, jnp.asarray(2.0, dtype), jnp.zeros(4, dtype), lower_data=y, method=bl.ITD(steps=100))
    np.testing.assert_allclose(h.w, [0.0, 0.5, 2.0, 2.0], rtol=rounding(dtype))
    np.testing.assert_allclose(h.grad, 2.0 + 2.0, rtol=rounding(dtype))


REFUSED = {
    "smooth": (lambda: bl.composite(lambda w, lam, _: lam * w, prox_of_zero, 0.1), "^smooth must return one .* scalar"),
    "prox": (lambda: bl.composite(lambda w, lam, _: lam * w.sum(), lambda u, *_: u[:1], 0.1), "^prox must keep"),
    "zero step": (lambda: bl.composite(smooth, prox_of_zero, 0.0), "^step must be a positive number or a function"),
}


def prox_of_zero(u, _lam, _step):
    return u


@pytest.mark.parametrize("fault", REFUSED)
def test_wrong_forms_are_one_sentence(fault, dtype):
    make, sentence = REFUSED[fault]
    with pytest.raises(bl.ProblemError, match=sentence):
        bl.hypergradient(
            bl.Problem(make(), lambda w, *_: w.sum()), jnp.ones((), dtype), jnp.ones(3, dtype), method=bl.ITD(steps=1)
        )
