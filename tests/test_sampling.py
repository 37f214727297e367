"""Laws of the sampler: exact epochs, unbiased draws, fresh keys, one seed one stream, bad data told in a sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import ProblemError, Sampler, shuffle

SIZES = [(12, 3), (13, 3), (7, 7), (6, 1), (5, 4)]  # rows, batch size


def drawn_rows(sampler, n, draws):
    """``key -> (draws, n)`` array of how often each row is in each batch."""
    rows = jnp.arange(n)

    def run(key):
        def draw(stream, _):
            count, stream = sampler.evaluate(lambda batch: jnp.zeros(n, int).at[batch].add(1), rows, stream)
            return stream, count

        return jax.lax.scan(draw, sampler.start(rows, key), length=draws)[1]

    return run


@pytest.mark.parametrize(("n", "b"), SIZES)
def test_every_epoch_meets_every_row_once(n, b):
    sampler = Sampler(b)
    batches = sampler.batches(jnp.arange(n))
    assert batches == -(-n // b)
    keys = jax.random.split(jax.random.key(0), 3)
    counts = jax.jit(jax.vmap(drawn_rows(sampler, n, 3 * batches)))(keys).reshape(3, 3, batches, n)
    np.testing.assert_array_equal(counts.sum(2), 1)
    sizes = [b] * (batches - 1) + [n - b * (batches - 1)]  # the short one last
    np.testing.assert_array_equal(counts.sum(3), np.broadcast_to(sizes, (3, 3, batches)))


@pytest.mark.parametrize("sampler", [Sampler(3), Sampler(4), Sampler(3, replace=True)])
def test_each_draw_is_unbiased_by_itself(sampler):
    """Every row has the same chance in every draw, the last and short one too: within 4 standard errors."""
    n, keys = 12 if sampler.batch_size == 3 else 14, 4000
    batches = sampler.batches(jnp.arange(n))
    counts = jax.jit(jax.vmap(drawn_rows(sampler, n, 2 * batches)))(jax.random.split(jax.random.key(1), keys))
    sizes = np.asarray(counts[0].sum(1))[:, None]
    standard_error = np.asarray(counts).std(0) / keys**0.5
    np.testing.assert_array_less(np.abs(counts.mean(0) - sizes / n), 4.5 * standard_error)
    assert np.all(standard_error > 0)


def test_branches_stay_branches_under_vmap():
    run, key = drawn_rows(Sampler(4), 14, 8), jax.random.key(0)
    alone, batched = (
        str(jax.make_jaxpr(f)(k)).count(" cond[") for f, k in ((run, key), (jax.vmap(run), jax.random.split(key, 3)))
    )
    assert alone == batched == 1


@pytest.mark.parametrize("sampler", [Sampler(4), Sampler(2), Sampler(4, replace=True)])
def test_one_key_gives_one_stream_however_it_is_cut(sampler):
    data = jnp.arange(14.0)
    draw = jax.jit(lambda stream: sampler.evaluate(lambda x: jnp.sum(x**2), data, stream))

    def by_hand(key, draws):
        stream, values = sampler.start(data, key), []
        for _ in range(draws):
            value, stream = draw(stream)
            values.append(value)
        return jnp.stack(values)

    @jax.jit
    def in_one(key):
        return jax.lax.scan(lambda s, _: draw(s)[::-1], sampler.start(data, key), length=9)[1]

    key = jax.random.key(5)
    np.testing.assert_array_equal(by_hand(key, 9), in_one(key))
    assert not np.array_equal(in_one(key), in_one(jax.random.key(6)))


@pytest.mark.parametrize(("n", "replace"), [(6, False), (7, False), (7, True)])
def test_rows_lie_along_any_axis_of_any_part(n, replace):
    x = jnp.arange(float(n))
    data = {"columns": jnp.stack([x, -x]), "rows": (x, jnp.stack([2 * x, x], 1)), "whole": jnp.arange(3.0), "no": None}
    sampler = Sampler(2, {"columns": -1, "rows": 0, "whole": None, "no": 0}, replace)

    def belong_together(batch):
        first, second = batch["rows"]
        equal = jnp.array_equal(batch["columns"], jnp.stack([first, -first]))
        return equal & jnp.array_equal(second, jnp.stack([2 * first, first], 1)), batch["whole"], jnp.sum(first)

    def draw(stream, _):
        value, stream = sampler.evaluate(belong_together, data, stream)
        return stream, value

    draws = sampler.batches(data)
    equal, whole, totals = jax.lax.scan(draw, sampler.start(data, jax.random.key(0)), length=draws)[1]
    assert jnp.all(equal)
    np.testing.assert_array_equal(whole, jnp.broadcast_to(jnp.arange(3.0), (draws, 3)))
    assert replace or jnp.sum(totals) == jnp.sum(x)


@pytest.mark.parametrize("sampler", [Sampler(None, None), Sampler(2, (0, None)), Sampler(2, (0, 0)),
                                     Sampler(2, (0, 0), replace=True)])  # fmt: skip
def test_keys_in_data_are_fresh_at_every_draw_and_in_every_stream(sampler):
    key = jax.random.key(3)
    one_key = sampler.batch_axes is None or sampler.batch_axes.leaves == (0, None)
    data = (jnp.arange(4.0), key if one_key else jax.random.split(key, 4))

    @jax.jit
    @jax.vmap
    def streams(key):
        def draw(stream, _):
            noise, stream = sampler.evaluate(lambda b: jax.random.key_data(b[1]).reshape(-1, 2), data, stream)
            return stream, noise

        return jax.lax.scan(draw, sampler.start(data, key), length=6)[1]

    drawn = np.asarray(streams(jax.random.split(jax.random.key(0), 3))).reshape(-1, 2)
    assert len(np.unique(drawn, axis=0)) == len(drawn) == 3 * 6 * (1 if one_key else 2)


def test_shuffle_moves_all_leaves_alike():
    x = jnp.arange(50)
    rows, columns, whole = shuffle((x, jnp.stack([x, 2 * x]), x), jax.random.key(0), (0, 1, None))
    assert not np.array_equal(rows, x)
    np.testing.assert_array_equal(np.sort(rows), x)
    np.testing.assert_array_equal(columns, jnp.stack([rows, 2 * rows]))
    np.testing.assert_array_equal(whole, x)


X = jnp.zeros((4, 2))
BAD = {
    "batch too large": (Sampler(5), X, "at most the number of rows, 4, but is 5"),
    "batch of nothing": (Sampler(0), X, "batch_size must be at least 1 and at most the number of rows, 4, but is 0"),
    "empty": (Sampler(1), jnp.zeros((0, 2)), "data must hold at least one row, but data is empty"),
    "lengths": (Sampler(1), (X, jnp.zeros(3)), r"same number of rows, but they have: data\[0\] 4, data\[1\] 3"),
    "no rows": (Sampler(1, None), X, "no leaf of data has any"),
    "no data": (Sampler(1), None, "no leaf of data has any"),
    "scalar": (Sampler(1), (X, 1.0), r"data\[1\] of shape \(\) has no axis 0"),
    "prefix": (Sampler(1, (0, 0, 0)), (X, X), "batch_axes must be a prefix"),
    "axis": (Sampler(1, "rows"), X, "batch_axes must hold ints and None, but holds 'rows'"),
    "no noise": (Sampler(None, None), X, "holds no PRNG key"),
    "axes of nothing": (Sampler(None), X, "give it batch_axes=None"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_refused_in_a_sentence(case):
    sampler, data, sentence = BAD[case]
    with pytest.raises(ProblemError, match=sentence):
        sampler.start(data, jax.random.key(0))
