"""Batches of independent lower problems: what comes back is what the members give one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.status import Status

K, ROWS, N = 3, 24, 7


def loss(w, lam, data):
    """Logistic regression of one fold: ``data`` are X, y and the weights of the rows in this fold."""
    X, y, weights = data
    return jnp.sum(weights * jax.nn.softplus(-y * (X @ w["coef"] + w["bias"]))) + 0.5 * jnp.sum(
        jnp.exp(lam) * w["coef"] ** 2
    ) + 0.05 * w["bias"] ** 2  # fmt: skip


def validation(w, lam, data):
    X, y, weights = data
    z = w["coef"] @ X.T + w["bias"][:, None]
    return jnp.sum(weights.T * jax.nn.softplus(-y[None] * z)) + 0.01 * jnp.sum(lam**2)


AXES = (0, None, (None, None, 1))
BATCH = bl.Problem(bl.batched(bl.minimization(loss), in_axes=AXES), validation)


def whole_loss(w, lam, data):
    return jnp.sum(jax.vmap(loss, in_axes=AXES)(w, lam, data))


WHOLE = bl.Problem(bl.minimization(whole_loss), validation)


def folds(dtype, rows=ROWS, n=N, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, n))
    y = np.where(X[:, 0] + rng.normal(size=rows) > 0, 1.0, -1.0)
    out = np.arange(rows)[:, None] % K == np.arange(K)[None]
    to = lambda x: jnp.asarray(x, dtype)  # noqa: E731
    data = {"lower_data": (to(X), to(y), to(~out / 16)), "upper_data": (to(X), to(y), to(out / ROWS))}
    return to(0.3 * rng.normal(size=n) - 1), {"coef": to(np.zeros((K, n))), "bias": to(np.zeros(K))}, data


@pytest.mark.parametrize("n", [N, 230], ids=["one program", "from the host"])
def test_a_batch_is_the_problem_of_the_summed_loss(n, dtype):
    lam, w0, data = folds(dtype, rows=ROWS if n == N else 90, n=n)
    tol = 1e-7 if dtype == jnp.float64 else 1e-3
    h = bl.hypergradient(BATCH, lam, w0, tol=tol, **data)
    truth = bl.hypergradient(WHOLE, lam, w0, method=bl.AID(bl.NewtonCG(), bl.CG(), refine=1), **data)
    assert float(jnp.linalg.norm(h.grad - truth.grad)) <= 2 * tol * float(jnp.linalg.norm(truth.grad))
    assert h.lower.status.shape == h.lower.steps.shape == (K,)
    assert [Status(int(s)) for s in h.lower.status] == [Status.OK] * K
    assert h.w["coef"].shape == (K, n)
    assert h.status.shape == ()


def test_under_jit_and_warm_starts(dtype):
    lam, w0, data = folds(dtype)
    tol = 1e-6 if dtype == jnp.float64 else 1e-3
    run = jax.jit(lambda lam: bl.hypergradient(BATCH, lam, w0, tol=tol, **data))
    h = run(lam)
    again = bl.hypergradient(BATCH, lam, h.w, v0=h.v, tol=tol, **data)
    assert float(jnp.linalg.norm(h.grad - again.grad)) <= 2 * tol * float(jnp.linalg.norm(h.grad))
    assert int(again.matvecs) < int(h.matvecs)


def test_given_methods_take_batches_without_a_dense_matrix(dtype):
    lam, w0, data = folds(dtype)
    tol = 1e-5 if dtype == jnp.float64 else 1e-2
    reference = bl.hypergradient(BATCH, lam, w0, tol=tol, **data)
    for method in (bl.AID(), bl.AID(bl.LBFGS(), bl.CG()), bl.ITD(steps=400)):
        h = bl.hypergradient(BATCH, lam, w0, method=method, **data)
        assert float(jnp.linalg.norm(h.grad - reference.grad)) <= 0.05 * float(jnp.linalg.norm(reference.grad))
    with pytest.raises(bl.ProblemError, match="block diagonal"):
        bl.hypergradient(BATCH, lam, w0, method=bl.AID(linear_solver=bl.Dense()), **data)


@pytest.mark.parametrize("kind", ["fixed_point", "root"])
def test_maps_and_equations_with_a_parameter_of_each_member(kind, dtype):
    """``w_i = tanh(M w_i + lam_i)``, one lam a member: gradients are those of the members one by one."""
    rng = np.random.default_rng(1)
    M = jnp.asarray(0.4 * rng.normal(size=(N, N)) / N**0.5, dtype)
    lam, w0 = jnp.asarray(rng.normal(size=(K, N)), dtype), jnp.zeros((K, N), dtype)

    def fp_map(w, lam, M):
        return jnp.tanh(M @ w + lam)

    def residual(w, lam, M):
        return w - fp_map(w, lam, M)

    one = bl.fixed_point(fp_map) if kind == "fixed_point" else bl.root(residual)
    target = lambda w, lam, data: 0.5 * jnp.sum((w - 0.3) ** 2)  # noqa: E731
    tol = 1e-6 if dtype == jnp.float64 else 1e-3
    h = bl.hypergradient(bl.Problem(bl.batched(one, in_axes=(0, 0, None)), target), lam, w0, lower_data=M, tol=tol)
    alone = [bl.hypergradient(bl.Problem(one, target), x, w0[0], lower_data=M, tol=tol).grad for x in lam]
    assert float(jnp.linalg.norm(h.grad - jnp.stack(alone))) <= 3 * tol * float(jnp.linalg.norm(h.grad))


def test_one_member_that_fails_is_named(dtype):
    """The second member is a saddle; the others have ended as asked."""
    lower = bl.batched(
        bl.minimization(lambda w, lam, c: 0.5 * jnp.sum(c * w**2) - lam * jnp.sum(w[1:])), in_axes=(0, None, 0)
    )
    problem = bl.Problem(lower, lambda w, lam, data: jnp.sum(w))
    curvature = jnp.ones((K, 4), dtype).at[1, 0].set(-1.0)
    h = bl.hypergradient(
        problem, jnp.ones((), dtype), jnp.zeros((K, 4), dtype), lower_data=curvature, on_failure="keep"
    )
    assert Status(int(h.status)) == Status.SADDLE
    members = [
        Status(int(s)).failed or Status(int(e)).failed for s, e in zip(h.lower.status, h.error_info.status, strict=True)
    ]
    assert members == [False, True, False]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda one: bl.batched(bl.batched(one)), "batch already"),
        (lambda one: bl.batched(one, in_axes=(0, None)), "three entries"),
        (lambda one: bl.batched(one, in_axes=(None, 0, 0)), "needs an axis"),
    ],
)
def test_what_is_no_batch_is_refused_in_a_sentence(make, words):
    with pytest.raises(bl.ProblemError, match=words) as caught:
        make(bl.minimization(loss))
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_no_scalar_is_found_in_a_member(dtype):
    lower = bl.batched(bl.minimization(lambda w, lam, data: lam * w**2))
    with pytest.raises(bl.ProblemError, match="one floating scalar"):
        bl.hypergradient(
            bl.Problem(lower, lambda w, lam, data: jnp.sum(w)), jnp.ones((), dtype), jnp.zeros((K, 2), dtype),
            lower_data=jnp.zeros(K, dtype),
        )  # fmt: skip
