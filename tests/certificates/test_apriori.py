"""The theorems: no error is above its a-priori bound, and none falls more slowly than its rate."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel import tree
from bilevel.certificates import apriori
from bilevel.certificates.constants import Constants, on_ball
from bilevel.lagrangian import gradient
from bilevel.models import ridge
from certificates.instances import instance, with_constants
from families import dense_truth

pytestmark = pytest.mark.float64

T = np.array([1, 2, 3, 5, 10, 20, 40, 80, 160, 320, 640])
FIXED = 10  # products of the curves that do not let k grow with t


def scalar_ridge():
    case = with_constants("ridge", 0, jnp.float64, condition=15.0)
    return case._replace(lam=jnp.mean(case.lam), problem=replace(ridge.problem(), constants=ridge.constants))


CASES = {
    "scalar ridge": scalar_ridge,
    "ridge": lambda: with_constants("ridge", 1, jnp.float64, condition=10.0),
    "biased_regularization": lambda: with_constants("biased_regularization", 2, jnp.float64, condition=15.0),
    "hyper_representation": lambda: with_constants("hyper_representation", 2, jnp.float64, condition=10.0, n=6),
    "kernel_ridge": lambda: with_constants("kernel_ridge", 2, jnp.float64, condition=10.0),
    "logistic": lambda: with_constants("logistic", 3, jnp.float64, condition=5.0),
    "equilibrium": lambda: with_constants("equilibrium", 4, jnp.float64, condition=10.0, n=8),
    "affine": lambda: with_constants("affine", 5, jnp.float64, condition=10.0),
}


@jax.jit
def iterates(at, w0, step):
    """ITD by its definition, ``w' <- d_w Phi w' + d_lam Phi``: gradients and derivatives of w after every step."""
    flat, unravel = ravel_pytree(w0)
    lam, unravel_lam = ravel_pytree(at.lam)

    def phi(w, lam):
        return w - step * ravel_pytree(at.problem.lower.residual(unravel(w), unravel_lam(lam), at.lower_data))[0]

    def upper(w, lam):
        return at.problem.upper(unravel(w), unravel_lam(lam), at.upper_data)

    def advance(carry, _):
        w, dw = carry
        A, B = jax.jacfwd(phi, argnums=(0, 1))(w, lam)
        w, dw = phi(w, lam), A @ dw + B
        g, direct = jax.grad(upper, argnums=(0, 1))(w, lam)
        return (w, dw), (direct + g @ dw, dw)

    return jax.lax.scan(advance, (flat, jnp.zeros((flat.size, lam.size))), length=int(T[-1]))[1]


@jax.jit
def implicit(at, w0, step, counts):
    """Gradients of AID-FP and AID-CG for every pair (t, k)."""
    lower = at.problem.lower

    def one(count):
        w, _ = bl.Picard(step=step)(lower, at.lam, w0, at.lower_data, steps=count[0])
        _, A = at.linearize(w)
        _, g = at.upper_gradient(w)
        solvers = [bl.Richardson(step=step), *([bl.CG()] if lower.symmetric else [])]
        return [ravel_pytree(gradient(at, w, solve(A.T, g, steps=count[1])[0]).grad)[0] for solve in solvers]

    return jax.lax.map(one, counts)


@pytest.fixture(scope="module")
def curves():
    """By case: rates, truth, and by method the true errors and their bounds at all t; step and case."""
    cache = {}

    def get(name):
        if name not in cache:
            case = CASES[name]()
            at = instance(case)
            c = on_ball(at, case.w0)
            r = apriori.rates(c)
            step = 1.0 if c.q is not None else 2 / (c.L + c.mu)
            truth = np.asarray(ravel_pytree(dense_truth(*case[:5]).grad)[0])
            itd, derivatives = iterates(at, case.w0, step)
            pairs = np.array([*zip(T, T, strict=True), *((t, FIXED) for t in T)])
            found = {"ITD": (itd[T - 1], apriori.itd(r, T))}
            grads = implicit(at, case.w0, step, jnp.asarray(pairs))
            for kind, grad in zip(("FP", "CG"), grads, strict=False):
                bound = apriori.aid_fp if kind == "FP" else apriori.aid_cg
                for label, rows in (("t", slice(0, len(T))), (str(FIXED), slice(len(T), None))):
                    found[f"{kind} k={label}"] = grad[rows], bound(r, *pairs[rows].T)
            errors = {m: (np.linalg.norm(np.asarray(g) - truth, axis=1), np.asarray(b)) for m, (g, b) in found.items()}
            cache[name] = case, r, step, np.linalg.norm(truth), errors, derivatives
        return cache[name]

    return get


@pytest.mark.parametrize("name", CASES)
def test_no_error_is_above_its_bound(name, curves):
    _, _, _, size, errors, _ = curves(name)
    for method, (error, bound) in errors.items():
        assert (error <= bound + 1e-9 * size + 1e-12).all(), method
        assert bound[-1] <= bound[0]


@pytest.mark.parametrize("name", CASES)
def test_no_error_falls_more_slowly_than_its_rate(name, curves):
    _, r, _, size, errors, _ = curves(name)
    for method in ("ITD", "FP k=t", *(["CG k=t"] if "CG k=t" in errors else [])):
        error, _ = errors[method]
        known = (error > 1e-12 * size) & (T >= 5)
        decay = error / T if method == "ITD" else error  # ITD has the factor t q^t
        slope = np.polyfit(T[known], np.log(decay[known]), 1)[0]
        assert slope <= 0.9 * np.log(r.q), method


def test_the_bound_of_the_derivative_of_the_iterates(curves):
    """First line of papers.md 1.3, the sharpest test of the factor ``t q^(t-1)``; ``w' = -A^-1 B``."""
    case, _, _, _, _, derivatives = curves("ridge")
    w = dense_truth(*case[:5]).w
    c = on_ball(instance(case), case.w0)
    r = apriori.rates(replace(c, D=np.linalg.norm(w), L_B=np.max(np.abs(w))))  # B = diag(w) at the solution
    exact = -np.linalg.solve(ridge.hessian(case.lam, case.lower_data), np.diag(w))
    error = np.linalg.norm(np.asarray(derivatives)[T - 1] - exact, ord=2, axis=(1, 2))
    bound = np.asarray(apriori.jacobian(r, T))
    known = bound > 1e-10
    assert (error <= bound)[known].all()
    assert (bound / error)[known].min() < 10


def test_the_recursion_is_what_itd_computes(curves):
    case, _, step, size, _, _ = curves("ridge")
    method = bl.ITD(bl.GradientDescent(steps=20, step=step))
    h = bl.hypergradient(*case[:3], lower_data=case.lower_data, upper_data=case.upper_data, method=method, error=False)
    assert np.linalg.norm(h.grad - iterates(instance(case), case.w0, step)[0][19]) <= 1e-12 * size


@pytest.mark.parametrize("name", ["ridge", "logistic"])
def test_the_promised_steps_give_the_accuracy(name, curves):
    _, r, *_ = curves(name)
    eps = np.array([1e2, 1.0, 1e-3, 1e-6])
    t = apriori.steps_itd(r, eps)
    assert (apriori.itd(r, t) <= eps).all()
    assert ((apriori.itd(r, t - 1) > eps) | (t <= np.ceil(1 / np.log(1 / r.q)))).all()
    t = apriori.steps_aid_fp(r, eps)
    assert (apriori.aid_fp(r, t, t) <= eps).all()
    assert (apriori.aid(r, r.q ** (t - 1), 0.0) + r.c3 * r.q ** (t - 1) > eps).all()
    t, k = apriori.steps_aid_cg(r, eps)
    assert (apriori.aid_cg(r, t, k) <= eps * (1 + 1e-12)).all()
    assert (apriori.aid_cg(r, t - 1, np.inf) > eps / 2).all()
    # The complexities of papers.md 1.7.
    assert (t <= 1 + 0.5 * r.kappa * np.log(2 * (r.c1 + r.c2 / (1 - r.q)) / eps)).all()
    assert (k <= 1 + 0.5 * np.sqrt(r.kappa) * np.log(4 * np.sqrt(r.kappa) * r.c3 / eps)).all()


def test_what_is_missing_is_named_and_what_is_no_contraction_has_no_bound():
    c = Constants(mu=0.5, L=1.5, nu1=0.0, nu2=1.0, mu1=1.0, mu2=0.0, D=1.0, L_U=1.0)
    with pytest.raises(bl.ProblemError, match="L_B"):
        apriori.rates(c)
    complete = replace(c, L_B=1.0)
    assert jnp.isnan(apriori.itd(apriori.rates(complete, step=2.0), 10))
    assert jnp.isnan(apriori.itd(apriori.rates(replace(complete, q=1.0)), 10))


def test_the_ball_holds_solution_and_norms():
    """``D``, ``L_U`` and ``L_B`` of on_ball against their definitions at random points of the ball."""
    for name in ("ridge", "logistic", "equilibrium"):
        case = CASES[name]()
        at, truth = instance(case), dense_truth(*case[:5])
        c = on_ball(at, case.w0)
        assert tree.norm(truth.w) <= c.D
        for key in jax.random.split(jax.random.key(0), 5):
            direction = tree.standard_normal(key, case.w0)
            w = tree.axpy(c.D / tree.norm(direction), direction, jax.tree.map(jnp.asarray, truth.w))
            B = jax.jacobian(lambda lam, w=w, at=at: ravel_pytree(at.problem.lower.residual(w, lam, at.lower_data))[0])
            columns = [leaf.reshape(tree.size(w), -1) for leaf in jax.tree.leaves(B(at.lam))]
            assert jnp.linalg.norm(jnp.concatenate(columns, axis=1), 2) <= c.L_B
            assert tree.norm(at.upper_gradient(w)[1]) <= c.L_U
