"""Random permutations whose images are computed one by one: none is ever sorted, or stored.

The swap-or-not shuffle (Hoang, Morris and Rogaway 2012, CRYPTO, LNCS 7417). A round pairs each place x with the place
``(K - x) mod n``, K random, and swaps the two or not by a random bit that depends on the pair alone: a permutation,
whatever the bits. An image costs a few operations a round. The bits are words mixed by the finalizer of MurmurHash3
(Appleby 2011).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt32

ROUNDS = 16  # the chance that a place has never been swapped halves with each
GOLDEN = 0x9E3779B9  # 2^32 over the golden ratio: multiples of it are far apart


class Seed(NamedTuple):
    """What tells one permutation from another: two random words."""

    round: UInt32[Array, ""]
    swap: UInt32[Array, ""]


def seed_of(key: Array, number: Any) -> Seed:
    """The seed with a number that belongs to a random key."""
    number = _mixed(jnp.asarray(number).astype(jnp.uint32))
    words = jax.random.key_data(key)
    return Seed(*(_chained(words[i::2], number + jnp.uint32(i)) for i in range(2)))


@partial(jax.jit, static_argnames="n")
def permuted(seed: Seed, place: Int[Array, "*s"], n: int) -> Int[Array, "*s"]:
    """Where a random permutation of ``0 .. n - 1`` takes places, int32."""
    x, n_word = place.astype(jnp.uint32), jnp.uint32(n)
    for number in range(ROUNDS):
        word = _mixed(seed.round + _word(number))
        partner = word % n_word + n_word - x
        partner = jnp.where(partner >= n_word, partner - n_word, partner)
        swap = _mixed((jnp.maximum(x, partner) + seed.swap) ^ word) >> 31
        x = jnp.where(swap == 1, partner, x)
    return x.astype(jnp.int32)


def below(seed: Seed, n: int) -> Int[Array, ""]:
    """A random number below n, uniform up to a part ``n / 2^32`` of the chance of each."""
    return (_mixed(seed.round + _word(ROUNDS)) % jnp.uint32(n)).astype(jnp.int32)


def _word(number: int) -> Array:
    return jnp.uint32((number + 1) * GOLDEN & 0xFFFFFFFF)


def _chained(words: UInt32[Array, " k"], start: UInt32[Array, ""]) -> UInt32[Array, ""]:
    for i in range(words.shape[0]):
        start = _mixed(start ^ words[i])
    return start


def _mixed(h: UInt32[Array, "*s"]) -> UInt32[Array, "*s"]:
    """A bijection of words after which every bit depends on all bits."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
