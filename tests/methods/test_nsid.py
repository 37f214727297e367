"""NSID on the elastic net: its closed form, the rate of its error, and where SID with the prox inside stalls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel.prox import elastic_net

N, D, BATCH = 400, 20, 10
L1, L2 = 0.1, 0.05
TIMES = (50, 200, 800, 3200)
KEYS = 32


def smooth(w, _lam, data):
    return jnp.mean((data[0] @ w - data[1]) ** 2) / 2


def prox(u, lam, step):
    return elastic_net(u, lam["l1"], lam["l2"], step)


class Case:
    """The problem, its arguments, the closed form and the schedule that its rates give."""

    def __init__(self, dtype):
        rng = np.random.default_rng(1)
        X, V = rng.normal(size=(2, N, D))
        truth = np.where(np.arange(D) < D // 2, rng.normal(size=D), 0.0)
        y, z = (M @ truth + 0.1 * rng.normal(size=N) for M in (X, V))
        H = X.T @ X / N
        least, greatest = np.linalg.eigvalsh(H)[[0, -1]]
        self.step = float(2 / (least + greatest + L2))
        w = np.zeros(D)
        for _ in range(1000):
            u = w - self.step * (H @ w - X.T @ y / N)
            w = np.sign(u) * np.maximum(np.abs(u) - self.step * L1, 0) / (1 + self.step * L2)
        S = np.flatnonzero(w)
        assert 2 <= len(S) < D
        A = H[np.ix_(S, S)] + L2 * np.eye(len(S))
        g = V[:, S].T @ (V[:, S] @ w[S] - z) / N
        # dw_S/dl1 = -A^-1 sign(w_S), dw_S/dl2 = -A^-1 w_S
        self.exact = np.array([-g @ np.linalg.solve(A, np.sign(w[S])), -g @ np.linalg.solve(A, w[S])])
        self.q = max(abs(1 - self.step * least), abs(1 - self.step * greatest)) / (1 + self.step * L2)
        self.lam = {"l1": jnp.asarray(L1, dtype), "l2": jnp.asarray(L2, dtype)}
        self.w0 = jnp.zeros(D, dtype)
        lower, upper = (tuple(jnp.asarray(a, dtype) for a in pair) for pair in ((X, y), (V, z)))
        self.data = {"lower_data": lower, "upper_data": upper}
        self.problem = bl.Problem(bl.composite(smooth, prox, self.step), smooth)
        self.schedule = bl.from_rates(self.q, s2=2.0)

    def run(self, method, key=None, **options):
        return bl.hypergradient(self.problem, self.lam, self.w0, **self.data, method=method, key=key, **options)

    def method(self, kind, k, J, **options):
        solvers = bl.Picard(steps=300), bl.StochasticRichardson(steps=k, schedule=self.schedule)
        return kind(bl.Sampler(BATCH, replace=True), *solvers, jacobian_samples=J, **options)


@pytest.fixture(scope="module")
def case(dtype):
    return Case(dtype)


def flat(h):
    return np.asarray(ravel_pytree(h.grad)[0], float)


def close(found, exact, dtype):
    tolerance = 1e-10 if dtype == jnp.float64 else 1e-4
    return np.linalg.norm(found - exact) <= tolerance * np.linalg.norm(exact)


@pytest.fixture(scope="module")
def curves(case):
    """Hypergradients of single runs, shape (keys, 2), by method and k = J."""
    keys, found = jax.random.split(jax.random.key(0), KEYS), {}

    def of_runs(kind):
        """One compiled program for all k."""

        def of_one(k, key):
            return case.run(case.method(kind, k, k, runs=1), key, error=False, on_failure="keep").grad

        return jax.jit(jax.vmap(of_one, in_axes=(None, 0)))

    for kind in (bl.NSID, bl.SID):
        grads = of_runs(kind)
        for k in TIMES:
            grad = grads(jnp.asarray(k), keys)
            found[kind.__name__, k] = np.stack([grad["l1"], grad["l2"]], axis=1)
    return found


def rmse(curves, name, exact):
    return np.array([np.sqrt(np.mean(np.sum((curves[name, k] - exact) ** 2, axis=1))) for k in TIMES])


def test_the_error_falls_like_one_over_the_root_of_k(case, curves):
    errors = rmse(curves, "NSID", case.exact)
    slope = np.polyfit(np.log(TIMES), np.log(errors), 1)[0]
    assert -0.6 <= slope <= -0.4, errors


def test_sid_with_the_prox_in_its_samples_stalls(case, curves):
    """It converges, to another point: a bias of many standard errors, which more samples do not change."""
    errors, better = (rmse(curves, name, case.exact) for name in ("SID", "NSID"))
    last = curves["SID", TIMES[-1]]
    bias = np.linalg.norm(last.mean(axis=0) - case.exact)
    assert bias > 10 * np.sqrt(last.var(axis=0).sum() / KEYS)
    assert errors[-1] > 0.85 * errors[-2]
    assert better[-1] < errors[-1] / 3


@pytest.mark.parametrize("linear", [bl.Richardson(steps=400), bl.GMRES(steps=D)])
def test_on_all_data_it_is_the_closed_form(linear, case, dtype):
    h = case.run(bl.NSID(bl.Sampler(BATCH), bl.Picard(steps=400), linear, runs=1), jax.random.key(0), error=False)
    assert close(flat(h), case.exact, dtype)


def test_an_epoch_of_samples_is_all_data(case, dtype):
    linear = bl.StochasticRichardson(steps=30, schedule=case.schedule)
    one, other = (
        case.run(bl.NSID(bl.Sampler(BATCH), bl.Picard(steps=300), linear, J, runs=2), jax.random.key(3), error=False)
        for J in (None, N // BATCH)
    )
    assert close(flat(one), flat(other), dtype)


def lam_in_the_step(case, dtype):
    """The problem with ``T`` that depends on ``lam``, and its data."""
    lower = bl.composite(smooth, prox, lambda lam, data: data[2] / (1 + lam["l2"]))
    return lower, (*case.data["lower_data"], jnp.asarray(case.step, dtype)), (0, 0, None)


def test_the_mean_is_differentiated_through_its_own_samples(case, dtype):
    """With J = 1 ``grad`` is the derivative of ``<v, G(T_z(w, lam), lam)>`` for one of the batches z."""
    lower, data, axes = lam_in_the_step(case, dtype)
    method = bl.NSID(bl.Sampler(BATCH, axes), bl.Picard(steps=50), bl.Richardson(steps=5), 1, runs=1)
    h = bl.hypergradient(
        bl.Problem(lower, smooth), case.lam, case.w0, lower_data=data, upper_data=case.data["upper_data"],
        method=method, key=jax.random.key(0), error=False,
    )  # fmt: skip
    batches = [part.reshape(N // BATCH, BATCH, *part.shape[1:]) for part in data[:2]]

    def through(X, y):
        return jax.grad(lambda lam: h.v @ lower.function(h.w, lam, (X, y, data[2])))(case.lam)

    each = jax.vmap(through)(*batches)
    distances = np.linalg.norm(np.stack([each["l1"], each["l2"]], axis=1) - flat(h), axis=1)
    tolerance = 1e3 * float(jnp.finfo(dtype).eps) * np.linalg.norm(flat(h))
    assert np.sum(distances < tolerance) == 1


def test_a_step_that_depends_on_lam_and_data_changes_nothing(case, dtype):
    lower, data, axes = lam_in_the_step(case, dtype)
    sampler = bl.Sampler(BATCH, axes)
    linear = bl.StochasticRichardson(steps=400, schedule=case.schedule)
    for method in (
        bl.NSID(sampler, bl.Picard(steps=400), bl.Richardson(steps=400), runs=1),
        bl.NSID(sampler, bl.Picard(steps=400), linear, 400, runs=8),
    ):
        h = bl.hypergradient(
            bl.Problem(lower, smooth), case.lam, case.w0, lower_data=data, upper_data=case.data["upper_data"],
            method=method, key=jax.random.key(0), error=False,
        )  # fmt: skip
        distance = np.linalg.norm(flat(h) - case.exact) / np.linalg.norm(case.exact)
        assert distance < 0.05
    assert distance > 1e-4, "samples have noise"


def test_the_error_covers_and_one_key_is_one_answer(case):
    """At most 6 of 40 above an error of 95 % confidence, which a binomial count exceeds with probability 0.003."""
    method = case.method(bl.NSID, 200, 200)
    keys = jax.random.split(jax.random.key(7), 40)
    answer = jax.jit(jax.vmap(lambda key: case.run(method, key, on_failure="keep")))
    h = answer(keys)
    errors = np.linalg.norm(np.stack([h.grad["l1"], h.grad["l2"]], axis=1) - case.exact, axis=1)
    assert np.sum(errors > h.error) <= 6
    assert np.median(h.error) < 20 * np.median(errors)
    assert np.all(h.adjoint.matvecs == 4 * (200 + 2 * 200))
    again = answer(keys)
    np.testing.assert_array_equal(h.grad["l1"], again.grad["l1"])


def test_it_finds_a_schedule(case):
    linear = bl.StochasticRichardson(steps=1000)
    method = bl.NSID(bl.Sampler(50), bl.Picard(steps=300), linear, jacobian_samples=1000)
    h = case.run(method, jax.random.key(0))
    assert np.linalg.norm(flat(h) - case.exact) <= h.error < 0.3 * np.linalg.norm(case.exact)
    assert "NSID" in h.explain()


SAMPLER = bl.Sampler(BATCH)
REFUSED = {
    "no composite": (
        bl.minimization(smooth),
        bl.NSID(SAMPLER),
        0,
        "^NSID needs a lower level made by bilevel.composite",
    ),
    "stochastic solver": (
        None,
        bl.NSID(SAMPLER, bl.SGD()),
        0,
        "^NSID needs a deterministic lower-level solver, .* SGD",
    ),
    "symmetry": (None, bl.NSID(SAMPLER, linear_solver=bl.CG()), 0, "^CG needs a symmetric"),
    "no key": (None, bl.NSID(SAMPLER), None, "^NSID draws random samples: give key="),
    "one run": (None, bl.NSID(SAMPLER, runs=1), 0, r"^NSID\(runs=1\) has no spread"),
    "no samples": (None, bl.NSID(SAMPLER, jacobian_samples=0), 0, "^jacobian_samples must be at least 1 or None"),
    "large batch": (None, bl.NSID(bl.Sampler(N + 1)), 0, "^batch_size must be .* the number of rows, 400"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_wrong_uses_are_one_sentence(fault, case):
    lower, method, seed, sentence = REFUSED[fault]
    problem = bl.Problem(case.problem.lower if lower is None else lower, smooth)
    key = None if seed is None else jax.random.key(seed)
    with pytest.raises(bl.ProblemError, match=sentence):
        bl.hypergradient(problem, case.lam, case.w0, **case.data, method=method, key=key)
