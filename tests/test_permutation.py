"""Permutations computed image by image: bijections, uniform in places, pairs and whole, and unrelated to each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from bilevel.permutation import below, permuted, seed_of

KEY = jax.random.key(3)
UNLIKELY = 1e-5  # of what a uniform distribution does


def images(n, epochs, key=KEY):
    """Permutations of so many epochs, one a row."""
    one = lambda epoch: permuted(seed_of(key, epoch), jnp.arange(n), n)  # noqa: E731
    return np.asarray(jax.vmap(one)(jnp.arange(epochs)))


def assert_uniform(counts):
    counts = np.asarray(counts, float).ravel()
    statistic = np.sum((counts - counts.mean()) ** 2) / counts.mean()
    assert chi2.sf(statistic, counts.size - 1) > UNLIKELY
    assert chi2.cdf(statistic, counts.size - 1) > UNLIKELY  # nor more even than chance


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 781, 70001])
def test_every_image_comes_once(n):
    found = images(n, 3)
    np.testing.assert_array_equal(np.sort(found, axis=1), np.broadcast_to(np.arange(n), (3, n)))


def test_all_permutations_are_alike_likely():
    number = images(4, 24_000) @ (4 ** np.arange(4))
    counts = np.unique(number, return_counts=True)[1]
    assert len(counts) == 24
    assert_uniform(counts)


def test_places_and_pairs_go_anywhere():
    n, found = 23, images(23, 30_000)
    assert_uniform([np.bincount(found[:, place], minlength=n) for place in (0, 11, 22)])
    for other in (1, 11, 22):  # the pair partners of a round included
        pair = found[:, 0] * n + found[:, other]
        assert_uniform(np.bincount(pair, minlength=n * n).reshape(n, n)[~np.eye(n, dtype=bool)])


def test_permutations_of_other_epochs_and_keys_are_unrelated():
    """Two random permutations agree in one place on average, with variance one; so with the inverse of one."""
    n, epochs = 500, 400
    found = images(n, epochs)
    other = images(n, epochs, jax.random.split(KEY)[1])
    inverse = np.argsort(found, axis=1)
    for a, b in ((found[1:], found[:-1]), (found, other), (found[1:], inverse[:-1])):
        agree = np.mean(np.sum(a == b, axis=1))
        assert abs(agree - 1) < 4.5 / len(a) ** 0.5
    assert abs(np.corrcoef(found[:, :-1].ravel(), found[:, 1:].ravel())[0, 1] + 1 / (n - 1)) < 4.5 / found.size**0.5


def test_a_number_below_is_uniform():
    counts = np.bincount(jax.vmap(lambda epoch: below(seed_of(KEY, epoch), 37))(jnp.arange(20_000)), minlength=37)
    assert_uniform(counts)


def test_raw_keys_and_other_generators_will_do():
    raw = jax.random.key_data(KEY)
    np.testing.assert_array_equal(images(50, 2), images(50, 2, raw))
    other = jax.random.key(3, impl="rbg")
    assert not np.array_equal(images(50, 2), images(50, 2, other))
