"""``implicit``: first and second derivatives in every mode, against closed forms; failures of either solve."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.linear.factorized import factorize
from bilevel.linear.normal_cg import NormalCG
from bilevel.linear.operator import from_matrix
from bilevel.status import Status

N = 3
RNG = np.random.default_rng(0)
M = RNG.normal(size=(N, N))
M = 0.6 * M / np.linalg.norm(M, 2)
C = RNG.normal(size=N)


def affine_map(w, lam, data):
    """``w = M w + exp(lam) c``."""
    return data["M"] @ w + jnp.exp(lam) * data["c"]


def quadratic(w, lam, data):
    """``w = (S + diag(exp(lam)))^{-1} c`` with ``S = M^T M``."""
    r = data["M"] @ w
    return (jnp.sum(r * r) + jnp.sum(jnp.exp(lam) * w**2)) / 2 - jnp.sum(data["c"] * w)


def square(w, lam, _data):
    return w * w - lam


AFFINE, RIDGE, SQRT = bl.fixed_point(affine_map), bl.minimization(quadratic), bl.root(square)
W_STAR = {"affine": bl.implicit(AFFINE, solver=bl.Picard()), "ridge": bl.implicit(RIDGE)}
LAM = np.array([0.1, -0.3, 0.4])


def closed_form(name):
    """The solution, differentiable, by a dense solve."""

    def affine(lam, data):
        return jnp.linalg.solve(jnp.eye(N) - data["M"], jnp.exp(lam) * data["c"])

    def ridge(lam, data):
        return jnp.linalg.solve(data["M"].T @ data["M"] + jnp.diag(jnp.exp(lam)), data["c"])

    return {"affine": affine, "ridge": ridge}[name]


def point(dtype):
    return jnp.asarray(LAM, dtype), jnp.zeros(N, dtype), {"M": jnp.asarray(M, dtype), "c": jnp.asarray(C, dtype)}


def objective(w):
    return jnp.sum(jnp.sin(w)) + w[0] * w[2]


MODES = {
    "value": lambda f: f,
    "grad": lambda f: jax.grad(lambda *a: objective(f(*a))),
    "jacfwd": jax.jacfwd,
    "jacrev": jax.jacrev,
    "hessian": lambda f: jax.hessian(lambda *a: objective(f(*a))),
    "grad in data": lambda f: jax.grad(lambda *a: objective(f(*a)), argnums=1),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", W_STAR)
def test_derivatives(name, mode, dtype):
    lam, w0, data = point(dtype)
    have = jax.jit(MODES[mode](lambda lam, data: W_STAR[name](lam, w0, data)))(lam, data)
    want = MODES[mode](closed_form(name))(lam, data)
    tolerance = 100 * float(jnp.finfo(dtype).eps) ** 0.5  # both solves are held to the root of epsilon
    for a, b in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.max(np.abs(b)))


@pytest.mark.float64
def test_tight_tolerances_give_tight_derivatives(dtype):
    w_star = bl.implicit(AFFINE, solver=bl.NewtonKrylov(rtol=1e-14), linear_solver=bl.GMRES(rtol=1e-14))
    lam, w0, data = point(dtype)
    have = jax.grad(lambda lam: objective(w_star(lam, w0, data)))(lam)
    want = jax.grad(lambda lam: objective(closed_form("affine")(lam, data)))(lam)
    np.testing.assert_allclose(have, want, rtol=1e-12)


@pytest.mark.float64
def test_finite_differences_converge_to_the_derivative_with_order_two(dtype):
    lam, w0, data = point(dtype)
    w_star = bl.implicit(RIDGE, rtol=1e-13)

    @jax.jit
    def value(t):
        return objective(w_star(lam + t, w0, data))

    slope = jax.jvp(value, (0.0,), (1.0,))[1]
    errors = [abs((value(h) - value(-h)) / (2 * h) - slope) for h in (4e-2, 2e-2, 1e-2)]
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(4.0, rel=0.05)


def test_the_square_root(dtype):
    sqrt = bl.implicit(SQRT)
    four, one = jnp.asarray(4.0, dtype), jnp.asarray(1.0, dtype)
    tolerance = 10 * float(jnp.finfo(dtype).eps) ** 0.5
    values = jax.jit(lambda lam: (sqrt(lam, one), jax.grad(jax.grad(sqrt))(lam, one)))(four)
    np.testing.assert_allclose(values, [2.0, -1 / 32], rtol=tolerance)
    batch = jax.vmap(jax.value_and_grad(sqrt), in_axes=(0, None))(jnp.asarray([1.0, 4.0, 9.0], dtype), one)
    np.testing.assert_allclose(batch, [[1, 2, 3], [1 / 2, 1 / 4, 1 / 6]], rtol=tolerance)
    assert jax.grad(sqrt, argnums=1)(four, one) == 0  # the solution does not depend on the start


def test_closed_over_values_are_differentiated(dtype):
    """The lower function may see tracers of an outer transformation."""

    def root_of(c):
        return bl.implicit(bl.root(lambda w, lam, _: w * w - lam * c))(jnp.asarray(2.0, dtype), jnp.ones((), dtype))

    have = jax.jit(lambda c: (jax.value_and_grad(root_of)(c), jax.jacfwd(root_of)(c)))(jnp.asarray(2.0, dtype))
    np.testing.assert_allclose(jax.tree.leaves(have), [2.0, 0.5, 0.5], rtol=10 * float(jnp.finfo(dtype).eps) ** 0.5)


def leaves_map(w, lam, _data):
    """Two leaves that do not touch: ``a = lam``, ``b = 2 lam``, by contractions."""
    return {"a": w["a"] / 2 + lam / 2, "b": w["b"] / 4 + 1.5 * jnp.sum(lam) * jnp.ones_like(w["b"])}


@pytest.mark.parametrize("leaf", ["a", "b"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_cotangents_may_be_zero_in_some_leaves(leaf, symmetric, dtype):
    w_star = bl.implicit(bl.fixed_point(leaves_map, symmetric=symmetric), solver=bl.Picard())
    lam, w0 = jnp.asarray([0.5, 2.0], dtype), {"a": jnp.zeros(2, dtype), "b": jnp.zeros((1, 3), dtype)}
    have = jax.jit(jax.grad(lambda lam: jnp.sum(w_star(lam, w0)[leaf])))(lam)
    np.testing.assert_allclose(have, {"a": [1.0, 1.0], "b": [6.0, 6.0]}[leaf], rtol=1e-2)
    assert not jax.grad(lambda lam: 0.0 * jnp.sum(w_star(lam, w0)["a"]))(lam).any()


def no_root(w, lam, _data):
    return w * w + lam


@pytest.mark.parametrize("compiled", [False, True])
def test_a_failed_solve_poisons_value_and_derivatives(compiled, dtype):
    w_star = bl.implicit(bl.root(no_root), bl.Picard())
    f = jax.value_and_grad(w_star)
    assert np.isnan((jax.jit(f) if compiled else f)(jnp.ones((), dtype), jnp.ones((), dtype))).all()
    assert np.isnan(jax.jacfwd(w_star)(jnp.ones((), dtype), jnp.ones((), dtype)))
    assert Status(int(w_star.info(jnp.ones((), dtype), jnp.ones((), dtype)).status)).failed


def test_a_failed_solve_raises_or_is_kept_on_request(dtype):
    one = jnp.ones((), dtype)
    loud = bl.implicit(bl.root(no_root), bl.Picard(), on_failure="raise")
    with pytest.raises(bl.ConvergenceError, match="Lower-level solve"):
        loud(one, one)
    assert np.isnan(jax.jit(loud)(one, one))  # nothing can be raised there
    assert np.isfinite(bl.implicit(bl.root(no_root), bl.Picard(), on_failure="keep")(one, one))


def cube(w, lam, _data):
    """``w_0 = lam^(1/3)``: at ``lam = 0`` the solution is there, its derivative is not."""
    return jnp.stack([w[0] ** 3 - lam, w[1] - lam])


def test_a_failed_linear_solve_poisons_only_the_derivative(dtype):
    zero, start = jnp.zeros((), dtype), jnp.zeros(2, dtype)
    for on_failure, poisoned in (("nan", True), ("keep", False)):
        w_star = bl.implicit(bl.root(cube), solver=bl.Picard(), on_failure=on_failure)
        np.testing.assert_array_equal(w_star(zero, start), start)
        for mode in (jax.jacfwd, jax.jacrev):
            jacobian = mode(w_star)(zero, start)
            assert np.isfinite(jacobian[0]) != poisoned


def test_a_budget_of_the_linear_solver_is_no_failure(dtype):
    lam, w0, data = point(dtype)
    w_star = bl.implicit(AFFINE, bl.Picard(), bl.Richardson(steps=2))
    have = jax.grad(lambda lam: jnp.sum(w_star(lam, w0, data)))(lam)
    want = jnp.exp(lam) * data["c"] * (jnp.ones(N, dtype) + data["M"].T @ jnp.ones(N, dtype))  # Neumann, two terms
    np.testing.assert_allclose(have, want, rtol=100 * jnp.finfo(dtype).eps)


def test_wrong_choices_are_refused(dtype):
    with pytest.raises(bl.ProblemError, match="on_failure"):
        bl.implicit(AFFINE, on_failure="ignore")
    with pytest.raises(bl.ProblemError, match="CG"):
        bl.implicit(AFFINE, linear_solver=bl.CG())
    with pytest.raises(bl.ProblemError, match="w0"):
        bl.implicit(SQRT)(jnp.ones((), dtype), jnp.ones(2, dtype).astype(int))


def test_tolerances_and_data_do_not_recompile(dtype):
    traces = []

    def f(w, lam, data):
        traces.append(1)
        return w / 2 + lam * data

    one, after = jnp.ones((), dtype), []
    for k in range(3):
        w = bl.implicit(bl.fixed_point(f), bl.Picard(), rtol=10.0 ** (-3 - k))(one * k, one, one + k)
        np.testing.assert_allclose(w, 2.0 * k * (1 + k), rtol=2e-3, atol=2e-3)
        after.append(len(traces))
    assert after[0] == after[-1] > 0


def exact_once(dtype):
    """One GMRES step with the factors of A: right only where the factors are transposed when A is."""
    A = jnp.eye(N, dtype=dtype) - jnp.asarray(M, dtype)
    return bl.GMRES(steps=1, preconditioner=factorize(from_matrix(A), A[0]))


@pytest.mark.parametrize("derivative", [jax.jacrev, jax.jacfwd])
@pytest.mark.parametrize("solver", [lambda _: NormalCG(), exact_once], ids=["NormalCG", "factorized"])
def test_linear_solvers_get_the_transpose(solver, derivative, dtype):
    lam, w0, data = point(dtype)
    with_gmres, with_solver = (
        bl.implicit(AFFINE, solver=bl.Picard(), linear_solver=s) for s in (bl.GMRES(), solver(dtype))
    )
    have, want = (jax.jit(derivative(w_star))(lam, w0, data) for w_star in (with_solver, with_gmres))
    tolerance = 100 * float(jnp.finfo(dtype).eps) ** 0.5
    np.testing.assert_allclose(have, want, rtol=0, atol=tolerance * np.max(np.abs(want)))
