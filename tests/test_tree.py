"""Vector algebra on pytrees against NumPy on the flat vector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel import tree


def vector(seed: int, dtype):
    rng = np.random.default_rng(seed)
    return {"a": jnp.asarray(rng.normal(size=(2, 3)), dtype), "b": (jnp.asarray(rng.normal(), dtype),)}


def flat(a) -> np.ndarray:
    return np.asarray(ravel_pytree(a)[0], np.float64)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (tree.add, lambda a, b: a + b),
        (tree.sub, lambda a, b: a - b),
        (lambda a, _b: tree.neg(a), lambda a, _b: -a),
        (lambda a, _b: tree.scale(0.3, a), lambda a, _b: 0.3 * a),
        (lambda a, b: tree.axpy(0.3, a, b), lambda a, b: 0.3 * a + b),
        (lambda a, b: tree.dot(a, b), lambda a, b: a @ b),
        (lambda a, _b: tree.norm(a), lambda a, _b: np.linalg.norm(a)),
        (lambda a, _b: tree.zeros_like(a), lambda a, _b: 0 * a),
        (lambda a, _b: tree.fill(a, 2.5), lambda a, _b: 0 * a + 2.5),
        (lambda a, b: tree.where(jnp.array(True), a, b), lambda a, _b: a),
        (lambda a, b: tree.where(jnp.array(False), a, b), lambda _a, b: b),
    ],
)
def test_algebra(function, expected, dtype):
    a, b = vector(0, dtype), vector(1, dtype)
    result = function(a, b)
    assert tree.dtype(result) == dtype
    np.testing.assert_allclose(flat(result), expected(flat(a), flat(b)), rtol=20 * jnp.finfo(dtype).eps)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_the_norm_neither_overflows_nor_underflows(size, dtype):
    a = tree.scale(size, vector(0, dtype))
    assert float(tree.norm(a)) == pytest.approx(np.linalg.norm(flat(a)), rel=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_numbers_come_through(bad, dtype):
    a = {"x": jnp.asarray([1.0, bad], dtype), "y": jnp.ones((), dtype)}
    assert not bool(tree.all_finite(a))
    assert not np.isfinite(tree.norm(a))
    assert bool(tree.all_finite(vector(0, dtype)))


def test_zero_and_empty_vectors(dtype):
    assert float(tree.norm(tree.zeros_like(vector(0, dtype)))) == 0.0
    for empty in ({}, None, (), {"a": jnp.zeros((0, 3), dtype)}):
        assert float(tree.norm(empty)) == float(tree.dot(empty, empty)) == tree.size(empty) == 0
        assert bool(tree.all_finite(empty))


def test_size_dtype_and_eps(dtype):
    a = vector(0, dtype)
    assert (tree.size(a), tree.dtype(a), tree.eps(a)) == (7, dtype, float(jnp.finfo(dtype).eps))
    mixed = {"a": jnp.ones(2, jnp.float16), "b": jnp.ones(2, dtype)}
    assert tree.dtype(mixed) == tree.norm(mixed).dtype == dtype
    kept = tree.axpy(jnp.asarray(0.5, dtype), mixed, mixed)
    assert (kept["a"].dtype, kept["b"].dtype) == (jnp.float16, dtype)


def test_random_vectors_are_reproducible_and_independent(dtype):
    like = {"a": jnp.zeros((40, 50), dtype), "b": jnp.zeros(2000, dtype)}
    a, again = (tree.standard_normal(jax.random.key(0), like) for _ in range(2))
    np.testing.assert_array_equal(flat(a), flat(again))
    assert tree.dtype(a) == dtype
    assert abs(flat(a).mean()) < 4 / 4000**0.5
    assert abs(flat(a).var() - 1) < 4 * (2 / 4000) ** 0.5
    assert abs(flat(a["a"]) @ flat(a["b"])) < 4 * 2000**0.5


def test_strong_types_share_a_program():
    traces = []
    count = jax.jit(lambda x: traces.append(1) or x)
    for x in (1.0, jnp.ones(()), jnp.asarray(2.0)):
        count(tree.strong(x))
    assert len(traces) == 1


@pytest.mark.parametrize("function", [tree.norm, lambda a: tree.dot(a, a)])
def test_derivatives(function, dtype):
    a = vector(0, dtype)
    gradient = jax.grad(function)(a)
    expected = flat(a) / np.linalg.norm(flat(a)) if function is tree.norm else 2 * flat(a)
    np.testing.assert_allclose(flat(gradient), expected, rtol=100 * jnp.finfo(dtype).eps)


SOLVERS = [bl.Picard, bl.NewtonKrylov, bl.NewtonCG, bl.GradientDescent, bl.LBFGS, bl.CG, bl.Richardson, bl.GMRES]


def test_structures_of_different_records_differ():
    """Or ``jit`` would run one solver's program for another with the same field values."""
    for steps in (None, 3):
        structures = [jax.tree.structure(solver(steps=steps)) for solver in SOLVERS]
        for i, one in enumerate(structures):
            assert [one == other for other in structures] == [i == j for j in range(len(structures))]
            assert one == jax.tree.structure(SOLVERS[i](steps=steps))


def test_records_keep_numbers_apart_from_the_static_part():
    solver = bl.CG(steps=3, rtol=0.5)
    assert jax.tree.leaves(solver) == [0.5]
    assert jax.tree.map(lambda x: 2 * x, solver) == bl.CG(steps=3, rtol=1.0)
    (path, _), *_ = jax.tree_util.tree_leaves_with_path(solver)
    assert jax.tree_util.keystr(path) == ".rtol"
