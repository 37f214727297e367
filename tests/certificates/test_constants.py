"""Closed-form constants against what they bound, over points near and far; and what they are as values."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel import tree
from bilevel.certificates.bound import bound_at
from bilevel.certificates.constants import Constants, constants_of, estimate_constants
from bilevel.lagrangian import gradient
from bilevel.models import equilibrium, logistic, multinomial, ridge
from certificates.instances import instance, with_constants
from families import FAMILIES, dense_truth

SIZES = (1e-3, 1.0, 30.0, 1e3)  # of w - w*


def weighted(module, penalty, shape):
    """A family with logarithms of penalties and weighted samples."""
    case = with_constants(module.__name__.rpartition(".")[2], 5, jnp.float64)
    weights = jnp.asarray(np.random.default_rng(0).uniform(0.0, 2.0, len(case.lower_data.y)))
    data = [samples._replace(weights=weights) for samples in (case.lower_data, case.upper_data)]
    constants = module.log_constants if penalty == "log" else module.constants
    lam = jnp.broadcast_to(jnp.mean(case.lam), shape) if shape == () else case.lam
    lam = jnp.log(lam) if penalty == "log" else lam
    problem = replace(module.problem(penalty), constants=constants)
    return case._replace(problem=problem, lam=lam, lower_data=data[0], upper_data=data[1])


CASES = {name: lambda name=name: with_constants(name, 4, jnp.float64, n=10) for name in FAMILIES} | {
    "ridge, weighted, scalar log": lambda: weighted(ridge, "log", ()),
    "ridge, weighted, log": lambda: weighted(ridge, "log", None),
    "logistic, weighted, scalar": lambda: weighted(logistic, "plain", ()),
    "logistic, weighted, log": lambda: weighted(logistic, "log", None),
}
# Where the supremum is met on the points below: constants that could not be smaller.
SHARP = {
    "ridge": ("mu", "L", "nu2", "mu1", "mu1_relative"),
    "ridge, weighted, scalar log": ("mu", "L", "nu2", "mu1", "mu1_relative"),
    "ridge, weighted, log": ("mu", "L", "nu2", "mu1", "mu1_relative"),
    "logistic": ("mu", "nu2"),
    "logistic, weighted, scalar": ("mu", "nu2"),
    "logistic, weighted, log": ("mu", "nu2"),
    "kernel_ridge": ("mu", "L", "mu1", "mu1_relative"),
    "biased_regularization": ("mu", "L", "B0", "mu1", "mu1_relative"),
    "hyper_representation": ("mu", "L", "nu2", "B0", "mu1", "mu1_relative"),
    "affine": ("mu", "L", "q", "B0", "mu1"),
    "equilibrium": ("mu", "L", "q", "B0"),
    "multinomial": ("nu2",),
}


class Flat:
    """F, A, B and the gradients of U of a case on flat vectors, and its constants."""

    def __init__(self, case):
        self.at, self.w0 = instance(case), case.w0
        self.constants = constants_of(self.at)
        self.n = tree.size(case.w0)
        lam, unravel_lam = ravel_pytree(case.lam)
        unravel = ravel_pytree(case.w0)[1]

        def residual(x, lam):
            return ravel_pytree(case.problem.lower.residual(unravel(x), unravel_lam(lam), case.lower_data))[0]

        def upper(x, lam):
            return case.problem.upper(unravel(x), unravel_lam(lam), case.upper_data)

        @jax.jit
        def everything(x):
            A, B = jax.jacfwd(residual, argnums=(0, 1))(x, lam)
            return residual(x, lam), A, B, *jax.grad(upper, argnums=(0, 1))(x, lam)

        self.at_point = lambda x: [np.asarray(value) for value in everything(jnp.asarray(x))]
        curvature = jax.jit(jax.hessian(upper))
        self.curvature = lambda x: np.asarray(curvature(jnp.asarray(x), lam))  # d2_ww U
        self.solution = np.asarray(ravel_pytree(dense_truth(*case[:5]).w)[0])

    def directions(self):
        """Unit vectors: random, of the axes, and the extreme singular vectors of A and of the Hessian of U."""
        rng = np.random.default_rng(0)
        _, A, *_ = self.at_point(self.solution)
        _, _, right = np.linalg.svd(A)
        _, _, right_upper = np.linalg.svd(self.curvature(np.zeros(self.n)))
        rows = [*rng.standard_normal((4, self.n)), *np.eye(self.n)[:10], right[0], right[-1], right_upper[0]]
        return [row / np.linalg.norm(row) for row in rows]


def norm(M):
    return np.linalg.norm(M, 2)


def log_change(H, H0):
    """The least s with ``H >= exp(-s) H0`` on the range of H0 (softmax has directions without curvature)."""
    values, vectors = np.linalg.eigh(H0)
    Q = vectors[:, values > 1e-8 * values[-1]]
    return -np.log(scipy.linalg.eigvalsh(Q.T @ H @ Q, Q.T @ H0 @ Q)[0])


def sampled(flat):
    """Every constant from below (``mu`` from above) by its definition, over points at several distances from w*."""
    c, origin = flat.constants, flat.solution
    F0, A0, B0, g0, u0 = flat.at_point(origin)
    found = {name: [0.0] for name in ("L", "q", "nu1", "nu2", "B0", "mu1", "mu1_relative", "mu2", "self_concordance")}
    found["mu"] = []
    U0 = flat.curvature(origin)
    found["B0"].append(norm(flat.at_point(np.zeros(flat.n))[2]))
    for size in SIZES:
        for direction in flat.directions():
            w = origin + size * direction
            F, A, B, g, u = flat.at_point(w)
            radius = max(np.linalg.norm(w), np.linalg.norm(origin))
            singular = np.linalg.svd(A, compute_uv=False)
            found["mu"] += [singular[-1], np.linalg.norm(F - F0) / size]
            found["L"] += [singular[0], np.linalg.norm(F - F0) / size]
            found["q"].append(norm(np.eye(flat.n) - A))
            found["nu1"].append(norm(A - A0) / size)
            found["nu2"].append(norm(B - B0) / size)
            found["B0"].append(norm(B) - float(c.nu2) * np.linalg.norm(w))
            found["mu1"].append(np.linalg.norm(g - g0) / size)
            share = float(c.mu2) / max(float(c.mu2) + float(c.mu2_growth) * radius, 1e-300)
            found["mu2"].append(share * np.linalg.norm(u - u0) / size)
            if c.mu1_relative is not None:
                found["mu1_relative"].append(scipy.linalg.eigvalsh(flat.curvature(w), A)[-1])
            if c.self_concordance is not None and size <= 1.0:  # beyond it A(w) is numerically singular
                found["self_concordance"] += [log_change(A, A0) / size, log_change(flat.curvature(w), U0) / size]
    return {name: min(values) if name == "mu" else max(values) for name, values in found.items()}


@pytest.mark.float64
@pytest.mark.parametrize("name", CASES)
def test_closed_forms_hold_and_are_sharp_where_they_can_be(name):
    flat = Flat(CASES[name]())
    c = flat.constants
    assert c.known("mu") or c.known("self_concordance")
    for constant, value in sampled(flat).items():
        claimed = getattr(c, constant)
        if claimed is None:
            continue
        if constant == "mu":
            assert value >= claimed * (1 - 1e-9)
        else:
            assert value <= claimed * (1 + 1e-6) + 1e-9, constant  # differences over sizes down to 1e-3
        if constant in SHARP[name]:
            assert 0.95 < value / claimed < 1 / 0.95, constant


@pytest.mark.float64
def test_extremes_of_the_derivatives_of_the_nonlinearities():
    """Maxima over a fine grid: of sigmoids, of tanh, and of two of three classes against each other."""
    x = jnp.linspace(-6.0, 6.0, 20001)
    psi2 = jax.vmap(jax.grad(jax.grad(jax.nn.softplus)))
    third = jax.vmap(jax.grad(jax.grad(jax.grad(jax.nn.softplus))))(x)
    assert abs(jnp.max(psi2(x)) / logistic.PSI2 - 1) < 1e-6
    assert abs(jnp.max(jnp.abs(third)) / logistic.PSI3 - 1) < 1e-6
    tanh2 = jax.vmap(jax.grad(jax.grad(jnp.tanh)))(x)
    assert abs(jnp.max(jnp.abs(tanh2)) / equilibrium.TANH2 - 1) < 1e-6

    def along(t, z):  # logsumexp along the unit vector (1, -1, 0) / sqrt 2, the third class far below
        return jax.nn.logsumexp(jnp.array([z, 0.0, -40.0]) + t * jnp.array([1.0, -1.0, 0.0]) / jnp.sqrt(2.0))

    second = jax.vmap(lambda z: jax.grad(jax.grad(along))(0.0, z))(x)
    third = jax.vmap(lambda z: jax.grad(jax.grad(jax.grad(along)))(0.0, z))(x)
    assert abs(jnp.max(second) / multinomial.LSE2 - 1) < 1e-6
    assert abs(jnp.max(jnp.abs(third)) / multinomial.LSE3 - 1) < 1e-6
    assert (jnp.abs(third) <= jnp.sqrt(2.0) * second * (1 + 1e-9)).all()


@pytest.mark.float64
@pytest.mark.parametrize("family", FAMILIES)
def test_the_bound_at_a_point_holds_for_perturbations_of_the_solution(family):
    """Residuals along single eigenvectors too, where the constants are worst; nothing is sharpened here."""
    case = with_constants(family, 4, jnp.float64, n=10)
    flat, truth = Flat(case), dense_truth(*case[:5])
    unravel = ravel_pytree(case.w0)[1]
    v0 = np.asarray(ravel_pytree(truth.v)[0])

    @jax.jit
    def judge(at, x, y):
        w, v = unravel(x), unravel(y)
        error = tree.sub(gradient(at, w, v).grad, jax.tree.map(jnp.asarray, truth.grad))
        return bound_at(at, constants_of(at), w, v)[0], tree.norm(error)

    ratios = []
    for size in (1e-6, 1e-4, 1e-2, 1.0):
        for direction in flat.directions():
            for dw, dv in ((size, 0.0), (0.0, size), (size, -size)):
                bound, error = judge(flat.at, flat.solution + dw * direction, v0 + dv * direction)
                assert not bound < error
                ratios.append(bound / error)
    finite = np.isfinite(ratios)
    assert finite.mean() >= 0.6  # with B and A constant an error of w alone changes nothing
    assert np.min(np.array(ratios)[finite]) < 100


def test_unknown_and_wrong_constants_are_refused_in_words(dtype):
    with pytest.raises(bl.ProblemError, match="estimated= names L_Phi"):
        Constants(mu=1.0, estimated=("L_Phi",))
    case = with_constants("ridge", 0, dtype)
    problem = replace(case.problem, constants=lambda lam, lower_data, upper_data: 3.0)
    with pytest.raises(bl.ProblemError, match=r"constants must be .* of type float"):
        constants_of(instance(case._replace(problem=problem)))


def test_problems_with_constants_are_equal_and_compiled_once(dtype):
    case, other = (with_constants("ridge", seed, dtype) for seed in (0, 1))
    assert replace(ridge.problem(), constants=ridge.constants) == case.problem
    assert case.problem == other.problem != replace(ridge.problem(), constants=ridge.log_constants)
    assert bl.Problem(ridge.problem().lower, ridge.upper, Constants(mu=0.5)) == bl.Problem(
        ridge.problem().lower, ridge.upper, Constants(mu=0.5)
    )
    traces = []

    @jax.jit
    def run(at, w, v):
        traces.append(1)
        return bound_at(at, constants_of(at), w, v)[0]

    for c in (case, other):
        assert run(instance(c), c.w0, c.w0) > 0
    assert len(traces) == 1
    for scale in (1.0, 2.0):  # constants are data: other values, the same program
        c = Constants(mu=scale, L=2 * scale, nu1=0.0, nu2=1.0, B0=0.0, mu1=1.0, mu2=0.0)
        run(instance(case._replace(problem=replace(case.problem, constants=c))), case.w0, case.w0)
    assert len(traces) == 2


@pytest.mark.float64
@pytest.mark.parametrize("family", ["logistic", "hyper_representation", "affine"])
def test_estimated_constants_are_those_of_the_solution(family):
    """Against the sampled ones near w*: from below but for L, and within a fifth where the form has one maximum."""
    case = with_constants(family, 4, jnp.float64, n=10)
    flat = Flat(case)
    w = jax.tree.map(jnp.asarray, dense_truth(*case[:5]).w)
    found, matvecs = estimate_constants(case.problem, case.lam, w, case.lower_data, case.upper_data)
    assert not any(found.given(name) for name in ("mu", "L", "nu1", "nu2", "B0", "mu1", "mu2", "D", "L_U", "L_B"))
    assert 100 < matvecs < 300
    c, (_, A, *_) = flat.constants, flat.at_point(flat.solution)
    singular = np.linalg.svd(A, compute_uv=False)
    assert float(found.L) == pytest.approx(singular[0], rel=0.05)
    if case.tags.symmetric:
        assert float(found.mu) == pytest.approx(singular[-1], rel=0.05)
    else:
        assert float(found.q) == pytest.approx(norm(np.eye(flat.n) - A), rel=0.05)
        assert float(found.mu) == pytest.approx(1 - float(found.q))
    for name in ("nu1", "nu2", "B0", "mu1", "mu2"):
        at_most = getattr(c, name) + (c.mu2_growth * np.linalg.norm(flat.solution) if name == "mu2" else 0.0)
        assert float(getattr(found, name)) <= 1.01 * at_most + 1e-9, name
    near = {k: v for k, v in sampled(flat).items() if k in ("nu2", "mu1") and k in SHARP[family]}
    for name, value in near.items():
        assert float(getattr(found, name)) >= 0.8 * value, name
