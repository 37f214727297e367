"""A damped adjoint: ``(A^T + delta I) v = d_w U``, its closed form, its error, and that the result says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel.linear.operator import damped, from_matrix
from bilevel.status import Status

N = 12
DELTA = 0.4
SPECTRUM = np.concatenate([[-0.2, -0.05], np.linspace(0.05, 1.0, N - 2)])  # indefinite; plus DELTA positive


def quadratic(w, lam, data):
    """``A = d_w F = data`` and ``d_lam F = -I``: the solution is ``A^-1 lam``."""
    return 0.5 * jnp.sum(w * (data @ w)) - jnp.sum(lam * w)


def affine(w, lam, data):
    """Its fixed point has ``A = I - data``, not symmetric, and again ``d_lam F = -I``."""
    return data @ w + lam


def target(w, lam, data):
    return 0.5 * jnp.sum((w - data) ** 2) + 0.5 * jnp.sum(lam**2)


def hessian(spectrum):
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(N, N)))[0]
    return (Q * spectrum) @ Q.T


QUADRATIC = bl.Problem(bl.minimization(quadratic, step=1.0), target)
LAM, GOAL = np.random.default_rng(1).normal(size=(2, N))
AT_ONCE = bl.GradientDescent(steps=0)  # the start is the solution, or as far from it as is wanted


def closed_form(A, delta, w):
    """``d_lam U - (d_lam F)^T (A^T + delta I)^{-1} d_w U`` and the adjoint, for ``d_lam F = -I``."""
    v = np.linalg.solve(A.T + delta * np.eye(N), w - GOAL)
    return LAM + v, v


def call(A, method, dtype, *, problem=QUADRATIC, away=0.0, **options):
    """Hypergradient from the solution of ``A w = lam``, or from a point ``away`` from it."""
    w0 = np.linalg.solve(A, LAM)
    w0 = w0 + away * np.random.default_rng(2).normal(size=N) * np.linalg.norm(w0) / N**0.5
    lam, w0, data, goal = (jnp.asarray(x, dtype) for x in (LAM, w0, A, GOAL))
    return bl.hypergradient(problem, lam, w0, lower_data=data, upper_data=goal, method=method, **options)


def status(h):
    return Status(int(h.status))


def distance(a, b):
    return float(np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b))


@pytest.mark.parametrize(
    "linear",
    [bl.CG(), bl.CG(steps=3 * N), bl.CG(preconditioner=bl.Jacobi()), bl.Dense(), bl.GMRES(), bl.Richardson()],
    ids=["CG", "CG, budget", "CG, Jacobi", "Dense", "GMRES", "Richardson"],
)
def test_an_indefinite_hessian_has_the_damped_answer(linear, dtype):
    A = hessian(SPECTRUM)
    grad, v = closed_form(A, DELTA, np.linalg.solve(A, LAM))
    h = call(A, bl.AID(AT_ONCE, linear, damping=DELTA), dtype, error=False)
    loose = 100 * float(jnp.finfo(dtype).eps) ** 0.5
    assert distance(h.grad, grad) <= loose
    assert distance(h.v, v) <= loose
    assert status(h) == Status.DAMPED
    assert float(h.damping) == pytest.approx(DELTA)
    assert h.damping.dtype == dtype


@pytest.mark.parametrize("linear", [bl.GMRES(), bl.Richardson(), bl.Dense()])
def test_it_is_the_transpose_that_is_damped(linear, dtype):
    M = np.random.default_rng(3).normal(size=(N, N))
    M = 0.9 * M / np.linalg.norm(M, 2)
    A = np.eye(N) - M
    w = np.linalg.solve(A, LAM)
    problem, method = bl.Problem(bl.fixed_point(affine), target), bl.AID(bl.Picard(steps=0), linear, damping=DELTA)
    lam, w0, data, goal = (jnp.asarray(x, dtype) for x in (LAM, w, M, GOAL))
    h = bl.hypergradient(problem, lam, w0, lower_data=data, upper_data=goal, method=method, error=False)
    grad, _ = closed_form(A, DELTA, w)
    assert distance(h.grad, grad) <= 100 * float(jnp.finfo(dtype).eps) ** 0.5


@pytest.mark.float64
def test_a_small_damping_is_a_small_change(dtype):
    """``|g(delta) - g(0)| = delta |A^-2 d_w U| + O(delta^2)``."""
    A = hessian(np.linspace(0.2, 1.0, N))
    slope = np.linalg.norm(np.linalg.solve(A @ A, np.linalg.solve(A, LAM) - GOAL))
    exact = call(A, bl.AID(AT_ONCE, bl.Dense()), dtype, error=False).grad
    for delta in (1e-2, 1e-4, 1e-6):
        change = call(A, bl.AID(AT_ONCE, bl.Dense(), damping=delta), dtype, error=False).grad - exact
        assert np.linalg.norm(change) == pytest.approx(delta * slope, rel=10 * delta + 1e-8)


@pytest.mark.parametrize("refine", [0, 1])
@pytest.mark.parametrize("linear", [bl.CG(steps=8), bl.GMRES(steps=6), bl.Richardson(steps=12)])
def test_the_error_is_that_of_the_damped_problem(linear, refine, dtype):
    """Within a factor of two, of solves cut short and of a w that is no solution, where A has negative curvature."""
    A = hessian(SPECTRUM)
    grad, _ = closed_form(A, DELTA, np.linalg.solve(A, LAM))
    method = bl.AID(bl.GradientDescent(steps=40, step=1e-3), linear, refine=refine, damping=DELTA)
    h = call(A, method, dtype, away=1e-2)
    true = np.linalg.norm(np.asarray(h.grad, np.float64) - grad)
    assert true > 1e3 * float(jnp.finfo(dtype).eps) * np.linalg.norm(grad)
    assert 0.5 * true <= float(h.error) <= 2 * true
    assert status(h) in (Status.DAMPED, Status.UNRESOLVED)


def test_a_refinement_squares_the_error(dtype):
    A = hessian(SPECTRUM)
    grad, _ = closed_form(A, DELTA, np.linalg.solve(A, LAM))
    rough, fine = (
        call(A, bl.AID(AT_ONCE, bl.CG(rtol=1e-3), refine=refine, damping=DELTA), dtype, away=1e-2) for refine in (0, 1)
    )
    assert distance(fine.grad, grad) <= 2e-3 * distance(rough.grad, grad) + 1e3 * float(jnp.finfo(dtype).eps)
    assert not fine.failed


def test_too_little_damping_fails_aloud(dtype):
    A = hessian(SPECTRUM)
    for linear in (bl.CG(), bl.CG(steps=N), bl.Dense()):
        with pytest.raises(bl.ConvergenceError, match="NEGATIVE_CURVATURE") as caught:
            call(A, bl.AID(AT_ONCE, linear, damping=0.1), dtype)
        assert np.isfinite(caught.value.result.v).all()
    for none in (None, 0.0):
        with pytest.raises(bl.ConvergenceError, match="SADDLE"):
            call(A, bl.AID(AT_ONCE, bl.CG(), damping=none), dtype)


def test_no_damping_and_one_of_zero_agree(dtype):
    A = hessian(np.linspace(0.2, 1.0, N))
    without, zero = (call(A, bl.AID(AT_ONCE, bl.CG(), damping=damping), dtype) for damping in (None, 0.0))
    np.testing.assert_allclose(zero.grad, without.grad, rtol=1e2 * float(jnp.finfo(dtype).eps))
    assert status(zero) == status(without) == Status.OK
    assert without.damping.dtype == dtype
    assert float(without.damping) == float(zero.damping) == 0


def test_it_says_so_under_transformations_and_compiles_once(dtype):
    A, traces = hessian(SPECTRUM), []

    @jax.jit
    def run(damping):
        traces.append(1)
        return call(A, bl.AID(AT_ONCE, bl.CG(steps=2 * N), damping=damping), dtype, error=False)

    found = [run(jnp.asarray(damping, dtype)) for damping in (0.4, 0.8)]
    assert len(traces) == 1
    assert [status(h) for h in found] == [Status.DAMPED] * 2
    assert distance(found[0].grad, found[1].grad) > 0.01
    both = jax.vmap(run)(jnp.asarray([0.8, 0.1, -1.0], dtype))
    np.testing.assert_array_equal(both.status, [Status.DAMPED, Status.NEGATIVE_CURVATURE, Status.NONFINITE])
    np.testing.assert_allclose(both.grad[0], found[1].grad, rtol=1e3 * float(jnp.finfo(dtype).eps))
    assert np.isnan(both.grad[1:]).all()


def test_it_says_so_in_words(dtype):
    h = call(hessian(SPECTRUM), bl.AID(AT_ONCE, bl.CG(), damping=DELTA), dtype, away=1e-3)
    assert "damped: the adjoint solves (A^T + 0.4 I) v = d_w U" in h.explain()
    far = call(hessian(SPECTRUM), bl.AID(AT_ONCE, bl.CG(), damping=DELTA), dtype, away=30.0)
    assert status(far) == Status.UNRESOLVED  # graver, but the damping is told, too
    assert "(A^T + 0.4 I)" in far.explain()
    plain = call(hessian(np.linspace(0.2, 1.0, N)), bl.AID(AT_ONCE, bl.CG()), dtype)
    assert "damped" not in plain.explain()


def test_an_error_that_nothing_is_known_of_is_infinite(dtype):
    """A is singular and ``F`` has a part in its kernel: no correction of w exists, while the damped adjoint does."""
    spectrum = np.concatenate([[0.0], np.linspace(0.1, 1.0, N - 1)])
    lam, data, goal = (jnp.asarray(x, dtype) for x in (LAM, hessian(spectrum), GOAL))
    method = bl.AID(bl.GradientDescent(steps=200), bl.CG(), damping=DELTA)
    h = bl.hypergradient(QUADRATIC, lam, jnp.zeros(N, dtype), lower_data=data, upper_data=goal, method=method)
    assert status(h) == Status.UNRESOLVED
    assert float(h.error) > float(jnp.linalg.norm(h.grad))


def test_there_is_no_bound(dtype):
    A = hessian(np.linspace(0.2, 1.0, N))
    constants = bl.Constants(mu=0.2, L=1.0, nu1=0.0, nu2=0.0, mu1=1.0, mu2=0.0, mu2_growth=0.0, B0=1.0)
    problem = bl.Problem(QUADRATIC.lower, target, constants=constants)
    # Compiled, since bounds of float32 are made in double precision, and then after the method.
    plain, loaded = (
        jax.jit(lambda method: call(A, method, dtype, problem=problem))(bl.AID(AT_ONCE, bl.CG(), damping=damping))
        for damping in (None, DELTA)
    )
    assert np.isfinite(plain.bound)
    assert np.isnan(loaded.bound)
    assert not loaded.proved


@pytest.mark.parametrize(("damping", "words"), [(-0.1, "at least 0"), (np.nan, "at least 0"), (np.ones(2), "shape")])
def test_what_is_no_damping_is_refused(damping, words, dtype):
    with pytest.raises(bl.ProblemError, match=f"damping must .*{words}"):
        call(hessian(SPECTRUM), bl.AID(AT_ONCE, bl.CG(), damping=damping), dtype)


def test_certified_tasks_refuse_it():
    algorithm = bl.algorithms.ISGD(batch_size=1, step=0.1, tolerance=0.1, method=bl.AID(damping=0.1))
    with pytest.raises(bl.ProblemError, match="without damping"):
        algorithm.init(jnp.ones(()), jnp.zeros((2, 3)), jax.random.key(0))


@pytest.mark.parametrize("transposed", [False, True])
def test_the_damped_operator_has_a_map_that_contracts_faster(transposed, dtype):
    """``I - b (A + delta I) = (I - a A) / (1 + a delta)`` for the step b of the damped operator."""
    matrix, a = np.random.default_rng(4).normal(size=(N, N)), 0.3
    A = from_matrix(jnp.asarray(matrix, dtype), step=a)
    operator = damped(A, DELTA)
    matrix, operator = (matrix.T, operator.T) if transposed else (matrix, operator)
    found = np.eye(N) - operator.step * np.asarray(operator.dense(jnp.zeros(N, dtype)))
    expected = (np.eye(N) - a * matrix) / (1 + a * DELTA)
    np.testing.assert_allclose(found, expected, atol=20 * float(jnp.finfo(dtype).eps))
    assert damped(A, None) is A


def network_loss(w, lam, data):
    X, y = data
    prediction = jnp.tanh(X @ w["W"] + w["b"][None]) @ w["out"]
    return jnp.mean((prediction - y) ** 2) + 0.5 * jnp.exp(lam) * sum(jnp.sum(x**2) for x in jax.tree.leaves(w))


def network_upper(w, lam, data):
    return network_loss(w, jnp.full_like(lam, -jnp.inf), data)


def test_a_network_has_an_answer_that_says_what_it_is(dtype):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    w0 = {"W": draw(3, 8), "b": draw(8), "out": 0.3 * draw(8)}
    train, valid, lam = (draw(20, 3), draw(20)), (draw(20, 3), draw(20)), jnp.asarray(-5.0, dtype)
    problem = bl.Problem(bl.minimization(network_loss, step=0.1), network_upper)

    def run(damping):
        method = bl.AID(bl.GradientDescent(steps=200), bl.CG(steps=40), damping=damping)
        return bl.hypergradient(problem, lam, w0, lower_data=train, upper_data=valid, method=method)

    with pytest.raises(bl.ConvergenceError, match="SADDLE"):
        run(None)
    h = run(0.5)
    assert status(h) in (Status.DAMPED, Status.UNRESOLVED)
    assert "(A^T + 0.5 I)" in h.explain()
    w, unravel = ravel_pytree(h.w)
    A = jax.hessian(lambda w: network_loss(unravel(w), lam, train))(w)
    assert np.linalg.eigvalsh(A)[0] < 0
    g = jax.grad(lambda w: network_upper(unravel(w), lam, valid))(w)
    v = np.linalg.solve(np.asarray(A, np.float64) + 0.5 * np.eye(w.size), np.asarray(g, np.float64))
    assert float(h.grad) == pytest.approx(-np.exp(-5.0) * np.asarray(w, np.float64) @ v, rel=1e-4)
