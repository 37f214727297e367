"""What problems refuse, in words that name the argument, and what their residual, map and operator are."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel import tree
from bilevel.problems import validate, validate_lower

N = 4


def loss(w, lam, data):
    return jnp.sum((w - data) ** 2) + jnp.exp(lam) * jnp.sum(w**2)


def upper(w, _lam, data):
    return jnp.sum((w - data) ** 2)


def fp_map(w, lam, data):
    return 0.5 * jnp.tanh(w) + lam * data


LOSS = bl.minimization(loss)
REFUSED = {
    "vector loss": (bl.minimization(lambda w, lam, _d: lam * w), {}, r"^loss must .* scalar, .* shape \(4,\)"),
    "tuple loss": (bl.minimization(lambda w, lam, _d: (lam * w.sum(), 0)), {}, "^loss must .* scalar, .*PyTreeDef"),
    "integer loss": (bl.minimization(lambda _w, _lam, _d: 3), {}, "^loss must .* scalar"),
    "vector upper": (LOSS, {"upper": lambda w, _lam, _d: w}, r"^upper must .* scalar, .* shape \(4,\)"),
    "tuple upper": (LOSS, {"upper": lambda w, _lam, _d: (w.sum(), 1.0)}, "^upper must .* scalar"),
    "structure": (bl.fixed_point(lambda w, lam, _d: {"a": lam * w}), {}, "^fp_map must return the structure of w0"),
    "root structure": (bl.root(lambda w, lam, _d: (lam * w, w)), {}, "^residual must return the structure of w0"),
    "shape": (bl.fixed_point(lambda w, lam, _d: lam * w[:2]), {}, r"^fp_map must keep .* w0: .*\[2\] for .*\[4\]"),
    "root shape": (bl.root(lambda w, lam, _d: lam * w[:, None]), {}, r"^residual must keep .* w0: .*\[4, 1\]"),
    "dtype": (bl.fixed_point(lambda w, lam, _d: (lam * w).astype("float16")), {}, "^fp_map must keep .*: .*float16"),
    "leaf": (
        bl.fixed_point(lambda w, lam, _d: {"a": w["a"] * lam, "b": w["b"][:1]}),
        {"w0": {"a": np.ones(2), "b": np.ones(3)}},
        r"at leaf w0\['b'\]",
    ),
    "integer lam": (LOSS, {"lam": 1}, "^lam must be a floating array, but its dtype is int"),
    "boolean lam leaf": (LOSS, {"lam": {"on": np.array(True)}}, r"^lam\['on'\] must be a floating array, .*bool"),
    "empty lam": (LOSS, {"lam": {}}, "^lam must hold at least one floating array"),
    "integer w0": (LOSS, {"w0": np.arange(N)}, "^w0 must be a floating array, but its dtype is int"),
    "no w0": (LOSS, {"w0": None}, "^w0 must hold at least one floating array"),
    "lam unused": (
        bl.minimization(lambda w, lam, d: loss(w, lam["used"], d)),
        {"lam": {"used": 1.0, "spare": [2.0, 3.0]}},
        r"^lam\['spare'\]\[0\] enters neither",
    ),
    "lam only as a shape": (
        bl.minimization(lambda w, lam, d: loss(w, lam[0], d) + jnp.sum(jnp.zeros_like(lam[1]))),
        {"lam": (1.0, np.ones(3))},
        r"^lam\[1\] enters neither",
    ),
    "lam not in F": (
        bl.minimization(lambda w, lam, d: jnp.sum((w - d) ** 2) + lam),  # it shifts the loss, not its gradient
        {"upper": lambda w, lam, _d: jnp.sum(w) * lam},
        "^lam does not reach the lower-level problem",
    ),
    "lam only in upper": (
        bl.fixed_point(lambda w, _lam, d: 0.5 * w + d),
        {"upper": lambda w, lam, _d: jnp.sum(w) * lam},
        "^lam does not reach the lower-level problem",
    ),
}


def arguments(dtype, lam=1.0, w0=None, **_):
    def floating(x):
        x = jnp.asarray(x)
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(floating, lam), jax.tree.map(floating, w0), jnp.arange(N, dtype=dtype)


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_form_is_refused_in_one_sentence(name, dtype):
    lower, given, message = REFUSED[name]
    lam, w0, data = arguments(dtype, **{"w0": np.ones(N), **given})
    problem = bl.Problem(lower, given.get("upper", upper if name != "leaf" else lambda w, _lam, _d: w["a"].sum()))
    with pytest.raises(bl.ProblemError, match=message) as caught:
        validate(problem, lam, w0, data, data)
    assert str(caught.value).endswith(".")
    with pytest.raises(bl.ProblemError, match=re.escape(str(caught.value))):  # the same under a transformation
        jax.jit(lambda lam: validate(problem, lam, w0, data, data) or lam)(lam)


@pytest.mark.parametrize("lower", [LOSS, bl.fixed_point(fp_map), bl.root(fp_map)], ids=lambda lower: lower.kind)
def test_right_forms_pass(lower, dtype):
    lam, w0, data = arguments(dtype, w0=np.ones(N))
    validate_lower(lower, lam, w0, data)
    validate(bl.Problem(lower, upper), lam, w0, data, data)


def test_ridge_at_zero_is_not_refused(dtype):
    """``d_lam F = exp(lam) w`` vanishes at ``w0 = 0``, but lam reaches F."""
    lam, w0, data = arguments(dtype, w0=np.zeros(N))
    assert not jax.jacobian(LOSS.residual, argnums=1)(w0, lam, data).any()
    validate(bl.Problem(LOSS, upper), lam, w0, data, data)


def test_a_leaf_may_reach_only_the_upper_level(dtype):
    lower = bl.minimization(lambda w, lam, d: loss(w, lam[0], d))
    lam, w0, data = arguments(dtype, lam=(1.0, 2.0), w0=np.ones(N))
    validate(bl.Problem(lower, lambda w, lam, d: lam[1] * upper(w, lam, d)), lam, w0, data, data)


def test_lam_seen_through_control_flow_counts_as_used(dtype):
    def scanned(w, lam, data):
        total, _ = jax.lax.scan(lambda c, x: (c + lam * x**2, None), jnp.zeros((), dtype), w)
        return total + jnp.sum((w - data) ** 2)

    lam, w0, data = arguments(dtype, w0=np.ones(N))
    validate(bl.Problem(bl.minimization(scanned), upper), lam, w0, data, data)


def random_loss(w, lam, data):
    x = jnp.concatenate([w["a"].ravel(), w["b"]])
    return jnp.sum(jnp.cos(data @ x)) + jnp.sum(jnp.exp(lam)) * jnp.sum(x**4) + jnp.sum(jnp.sin(x))


def random_map(w, lam, data):
    x = jnp.concatenate([w["a"].ravel(), w["b"]])
    y = jnp.tanh(data @ x) * jnp.sum(lam) + x[::-1] ** 2
    return {"a": y[:2].reshape(2, 1), "b": y[2:]}


KINDS = {
    "minimization": bl.minimization(random_loss, step=0.3),
    "fixed_point": bl.fixed_point(random_map),
    "root": bl.root(random_map),
}


@pytest.fixture(scope="module")
def point(dtype):
    """``w``, lam, data, and two more vectors like ``w``."""
    rng = np.random.default_rng(0)
    w, x, y = (
        {"a": jnp.asarray(rng.normal(size=(2, 1)), dtype), "b": jnp.asarray(rng.normal(size=3), dtype)}
        for _ in range(3)
    )
    return w, jnp.asarray([0.2, 0.5], dtype), jnp.asarray(rng.normal(size=(5, 5)), dtype), x, y


def flat(tree) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0])


def close(a, b, dtype):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e3 * jnp.finfo(dtype).eps * np.max(np.abs(b)))


@pytest.mark.parametrize("kind", KINDS)
def test_residual_and_pairing(kind, point, dtype):
    lower, (w, lam, data, v, _) = KINDS[kind], point
    F = flat(lower.residual(w, lam, data))
    if kind == "minimization":
        expected = flat(jax.grad(random_loss)(w, lam, data))
    else:
        expected = flat(random_map(w, lam, data))
        expected = flat(w) - expected if kind == "fixed_point" else expected
    close(F, expected, dtype)
    close(float(lower.pairing(v, w, lam, data)), flat(v) @ F, dtype)
    by_lam = jax.grad(lambda lam: lower.pairing(v, w, lam, data))(lam)
    close(by_lam, flat(v) @ jax.jacobian(lambda lam: ravel_pytree(lower.residual(w, lam, data))[0])(lam), dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_the_linearization(kind, point, dtype):
    """``A`` is the Jacobian, ``<A x, y> = <x, A^T y>``, and its flags say what is so."""
    lower, (w, lam, data, x, y) = KINDS[kind], point
    F, A = lower.linearize(w, lam, data)
    close(flat(F), flat(lower.residual(w, lam, data)), dtype)
    unravel = ravel_pytree(w)[1]
    jacobian = jax.jacobian(lambda u: ravel_pytree(lower.residual(unravel(u), lam, data))[0])(ravel_pytree(w)[0])
    close(A.dense(w), jacobian, dtype)
    close(A.T.dense(w), jacobian.T, dtype)
    close(flat(A.mv(x)) @ flat(y), flat(x) @ flat(A.T.mv(y)), dtype)
    assert (A.symmetric, A.definite) == (kind == "minimization", kind == "minimization")
    assert float(A.step) == (float(lower.step) if kind == "minimization" else 1.0)


def test_a_promise_of_symmetry_is_kept():
    for make in (bl.fixed_point, bl.root):
        assert make(fp_map, symmetric=True).symmetric
        assert not make(fp_map).symmetric
        _, A = make(fp_map, symmetric=True).linearize(jnp.ones(N), 1.0, jnp.ones(N))
        assert (A.symmetric, A.definite) == (True, False)


def test_problems_of_the_same_functions_are_one_problem(dtype):
    """Equal, hashable where static, and one compilation for all steps."""
    traces = []

    @jax.jit
    def run(problem, w):
        traces.append(1)
        lower = problem.lower
        return tree.axpy(-lower.step, lower.residual(w, jnp.ones((), w.dtype), w), w)

    w = jnp.ones(N, dtype)
    assert bl.Problem(bl.minimization(loss), upper) == bl.Problem(bl.minimization(loss), upper)
    assert bl.minimization(loss) != bl.fixed_point(loss)
    a, b = (run(bl.Problem(bl.minimization(loss, step=jnp.asarray(step, dtype)), upper), w) for step in (0.1, 0.2))
    assert len(traces) == 1
    assert not np.allclose(a, b)
