"""Exact identities between the methods, to 1e-12 relative."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

import bilevel as bl
from bilevel import models
from families import FAMILIES, dense_truth, relative_distance

pytestmark = pytest.mark.float64

EXACTLY = 1e-12


def with_step(case, step=0.5):
    """The problem with a step of its gradient map (the largest eigenvalue of A is 1 or a little more)."""
    lower = case.problem.lower
    return replace(case.problem, lower=replace(lower, step=step if lower.kind == "minimization" else None))


def run(problem, case, method, w0=None):
    return bl.hypergradient(
        problem, case.lam, case.w0 if w0 is None else w0, lower_data=case.lower_data, upper_data=case.upper_data,
        method=method, error=False,
    )  # fmt: skip


@pytest.mark.parametrize("t", [1, 7, 40])
def test_itd_is_aid_fp_where_the_map_is_affine_with_constant_derivatives(t):
    case = FAMILIES["biased_regularization"](0, jnp.float64, n=10, condition=10.0)
    problem = with_step(case)
    itd = run(problem, case, bl.ITD(steps=t))
    fp = run(problem, case, bl.AID(bl.Picard(steps=t), bl.Richardson(steps=t)))
    assert relative_distance(itd.grad, fp.grad) <= EXACTLY


@pytest.mark.parametrize("family", ["ridge", "logistic", "affine", "equilibrium"])
def test_itd_from_the_solution_is_aid_fp(family):
    case = FAMILIES[family](1, jnp.float64, n=10, condition=10.0)
    problem = with_step(case)
    w = dense_truth(*case[:5]).w
    itd = run(problem, case, bl.ITD(steps=15), w)
    fp = run(problem, case, bl.AID(bl.Picard(steps=0), bl.Richardson(steps=15)), w)
    assert relative_distance(itd.grad, fp.grad) <= EXACTLY


@pytest.mark.parametrize("family", ["logistic", "affine"])
def test_truncated_itd_is_aid_fp_once_the_solution_has_converged(family):
    case = FAMILIES[family](3, jnp.float64, n=10, condition=5.0)
    problem = with_step(case)
    truncated = run(problem, case, bl.ITD(steps=600, truncate=12))
    fp = run(problem, case, bl.AID(bl.Picard(steps=600), bl.Richardson(steps=12)))
    assert relative_distance(truncated.grad, fp.grad) <= EXACTLY


def test_neumann_series_is_aid_fp():
    """``sum_{i<K} (I - a A)^i a g`` written out against K Richardson steps from zero."""
    case = FAMILIES["logistic"](4, jnp.float64, n=10, condition=10.0)
    problem, K, a = with_step(case, 0.7), 9, 0.7
    w = dense_truth(*case[:5]).w
    _, A = problem.lower.linearize(w, case.lam, case.lower_data)
    g = jax.grad(problem.upper)(w, case.lam, case.upper_data)
    v, term = jnp.zeros_like(g), a * g
    for _ in range(K):
        v, term = v + term, term - a * A.mv(term)
    fp = run(problem, case, bl.AID(bl.Picard(steps=0), bl.Richardson(steps=K)), w)
    assert relative_distance(fp.v, v) <= EXACTLY


@pytest.mark.parametrize("model", ["ridge", "kernel_ridge", "biased_regularization", "hyper_representation"])
def test_dense_implicit_differentiation_is_the_closed_form(model):
    case = FAMILIES[model](5, jnp.float64, n=12, condition=10.0)
    closed = getattr(models, model).hypergradient(case.lam, case.lower_data, case.upper_data)
    assert relative_distance(run(case.problem, case, bl.Exact()).grad, closed) <= EXACTLY


def test_cg_with_as_many_steps_as_unknowns_is_the_dense_solve_and_beats_fp_at_equal_k():
    case = FAMILIES["ridge"](6, jnp.float64, n=15, condition=15.0)
    problem = with_step(case, 1.0)
    exact = dense_truth(*case[:5])

    def error(linear_solver):
        h = run(problem, case, bl.AID(bl.Picard(steps=0), linear_solver), exact.w)
        return relative_distance(h.grad, exact.grad)

    assert error(bl.CG(steps=15)) <= 1e-10  # CG loses orthogonality: not to the last digits
    floors = error(bl.CG(steps=10)), error(bl.Richardson(steps=10))
    assert EXACTLY < floors[0] < 0.1 * floors[1]
