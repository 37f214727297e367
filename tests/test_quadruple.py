"""Functions in quadruple precision: rational arithmetic, laws of elementary functions, and what is refused."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import quadruple
from bilevel.status import ProblemError

pytestmark = pytest.mark.float64

ROUNDING = 100 * quadruple.EPS


def evaluate(f, *args):
    return quadruple.evaluate(jax.jit(f), *args)


def exact(x):
    """An array of quadruple precision as fractions: each is the sum of three numbers of float64."""
    parts = []
    for _ in range(3):
        parts.append(x.astype(np.float64))
        x = x - parts[-1]
    return np.vectorize(lambda *p: sum(map(Fraction, p)), otypes=[object])(*parts)


def largest(x):
    return float(np.max(np.abs(x)))


PRODUCTS = [
    (lambda _, a, b: a @ b, (6, 7), (7, 5)),
    (lambda _, a, b: a.T @ b, (6, 7), (6, 5)),
    (lambda _, a, b: b @ a.T, (6, 7), (3, 7)),
    (lambda _, a, b: a @ b, (6, 7), (7,)),
    (lambda _, a, b: b @ a, (6, 7), (6,)),
    (lambda _, a, b: a[::2].T @ b[1::2], (8, 3), (8, 5)),
    (lambda xp, a, b: xp.einsum("bij,bkj->bki", a, b), (2, 3, 4), (2, 5, 4)),
    (lambda xp, a, b: xp.einsum("ibj,jkb->bik", a, b), (3, 2, 4), (4, 5, 2)),
    (lambda xp, a, b: xp.tensordot(a, b, axes=[(0, 2), (1, 0)]), (3, 4, 5), (5, 3, 2)),
    (lambda xp, a, b: xp.sum(a * b[:, None] - a / 3, axis=(0, 2)), (3, 4, 5), (3, 5)),
    (lambda xp, a, b: xp.square(a).max(axis=1) - b**3, (6, 7), (6,)),
]


@pytest.mark.parametrize(("f", "of_a", "of_b"), PRODUCTS)
def test_arithmetic_is_that_of_fractions(f, of_a, of_b):
    """NumPy does the same on objects, one by one."""
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal(of_a), rng.standard_normal(of_b)
    want = f(np, *(np.vectorize(Fraction, otypes=[object])(x) for x in (a, b)))
    error = exact(evaluate(lambda a, b: f(jnp, a, b), a, b)) - want
    assert largest(error) <= ROUNDING * largest(want)
    assert largest(np.asarray(f(jnp, a, b)) - want.astype(float)) <= 1e-13 * largest(want)


LAWS = {
    "exp, log": lambda x: jnp.log(jnp.exp(x)) - x,
    "expm1, log1p": lambda x: jnp.log1p(jnp.expm1(x)) - x,
    "exp2": lambda x: jnp.exp2(x) - jnp.exp(x * jnp.log(2 * jnp.ones_like(x))),
    "tanh": lambda x: jnp.tanh(x) * jnp.cosh(x) - jnp.sinh(x),
    "sinh": lambda x: jnp.sinh(x) - (jnp.exp(x) - jnp.exp(-x)) / 2,
    "sin, cos": lambda x: jnp.sin(x) ** 2 + jnp.cos(x) ** 2 - 1,
    "tan": lambda x: jnp.tan(x) * jnp.cos(x) - jnp.sin(x),
    "sqrt": lambda x: jnp.sqrt(jnp.abs(x)) ** 2 - jnp.abs(x),
    "rsqrt": lambda x: jax.lax.rsqrt(x * x) * jnp.sign(x) * x - 1,
    "sigmoid": lambda x: jax.nn.sigmoid(x) + jax.nn.sigmoid(-x) - 1,
    "sigmoid of tanh": lambda x: jax.nn.sigmoid(2 * x) - (1 + jnp.tanh(x)) / 2,
    "softplus": lambda x: jax.nn.softplus(x) - jax.nn.softplus(-x) - x,
    "logsumexp": lambda x: jax.nn.logsumexp(jnp.stack([x, 2 * x]), axis=0) - x - jnp.log1p(jnp.exp(x)),
    "powers": lambda x: x**-3 * x**5 - jnp.abs(x) ** (2 * jnp.ones_like(x)),
    "maximum": lambda x: jnp.maximum(x, -x) + jnp.minimum(x, -x),
    "clip": lambda x: jnp.clip(x, -1, 1) - jnp.where(x > 1, 1.0, jnp.where(x < -1, -1.0, x)),
    "derivatives": lambda x: jax.grad(lambda x: jnp.sum(jax.nn.softplus(x)))(x) - jax.nn.sigmoid(x),
    "checkpoint": lambda x: jax.grad(jax.checkpoint(lambda x: jnp.sum(jnp.tanh(x))))(x) - 1 + jnp.tanh(x) ** 2,
}


@pytest.mark.parametrize("law", LAWS)
def test_laws_hold_to_the_last_digits(law):
    """Where float64 leaves 1e-16."""
    x = np.random.default_rng(2).uniform(-3, 3, 40)
    assert largest(evaluate(LAWS[law], x)) <= ROUNDING
    assert largest(np.asarray(LAWS[law](x))) <= 1e-12


MOVES = {
    "gather": lambda x: x[jnp.array([2, 0, 2]), :, jnp.array([1, 1, 3])],
    "slices": lambda x: jnp.concatenate([x[1:, ::2], x[:2, 1::2]], axis=0),
    "pad": lambda x: jnp.pad(x, ((1, 0), (0, 2), (0, 0)), constant_values=7.0),
    "reverse": lambda x: x[::-1].swapaxes(0, 2).reshape(5, -1),
    "dynamic": lambda x: jax.lax.dynamic_update_slice(x, jax.lax.dynamic_slice(x, (1, 0, 2), (1, 2, 3)), (0, 2, 0)),
    "split": lambda x: jnp.split(x, 2, axis=1)[1].squeeze(),
    "one hot": lambda x: jax.nn.one_hot(jnp.array([0, 3, 1]), 4) @ x[0],
    "repeat": lambda x: (
        jnp.tile(x[:, :1], (1, 3, 1)) * jnp.broadcast_to(jnp.array([1.0, 2.0, 4.0])[:, None], (3, 3, 5))
    ),
}


@pytest.mark.parametrize("name", MOVES)
def test_what_only_moves_numbers_moves_them_alike(name):
    x = np.random.default_rng(3).standard_normal((3, 4, 5))
    assert np.array_equal(evaluate(MOVES[name], x).astype(float), MOVES[name](jnp.asarray(x)))


def test_arguments_may_be_finer_than_float64():
    third = quadruple.quadruple(np.ones(2)) / 3
    assert largest(evaluate(lambda x: 3 * x["a"] - 1, {"a": third})) <= ROUNDING
    assert largest(evaluate(lambda x: 3 * x - 1, np.float64(1) / 3)) >= 1e-17


def test_trees_integers_and_what_is_not_used():
    def f(tree, rows):
        return {"sum": jnp.sum(tree["x"][rows]), "rows": rows + 1}, jax.scipy.special.erf(tree["x"])

    out = evaluate(lambda tree, rows: f(tree, rows)[0], {"x": np.arange(4.0)}, np.array([3, 1]))
    assert float(out["sum"]) == 4.0
    assert out["rows"].tolist() == [4, 2]
    with pytest.raises(ProblemError, match="unknown in quadruple precision: erf"):
        evaluate(f, {"x": np.arange(4.0)}, np.array([3, 1]))


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: x.astype(jnp.float32) * x, "conversion to float32"),
        (lambda x: jnp.sum(jnp.sort(x)), "sort"),
        (lambda x: jnp.sum(jnp.broadcast_to(x[:1], (30_000, 30_000))), "these have more"),
        (lambda x: x.at[jnp.array([5])].get(mode="fill"), "out of bounds"),
    ],
)
def test_what_cannot_be_done_is_refused(f, message):
    with pytest.raises(ProblemError, match=message):
        evaluate(f, np.arange(3.0))
