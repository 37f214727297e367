"""The lower level of larger problems, steered from the host: products, and a factorization where they cost as much.

A factorization of A takes n products in one block, taken to cost as much as ``n / BLOCK`` single ones. Whoever has
spent that much and is not done factorizes. One made far from the solution may be of little use there: after n more
products, which no block exceeds, it is made again.
"""

from typing import Any, NamedTuple

import jax

from bilevel import tree
from bilevel.automatic.start import BLOCK, Wish, approach, continued, factorize_at, lower_rtol, solve_lower
from bilevel.lagrangian import Instance
from bilevel.linear.factorized import Factorized
from bilevel.problems import validate
from bilevel.status import SolveInfo, Status

Tree = Any

DENSE_MOST = 3000  # systems up to this size are factorized where products by the dozen have not been enough
NEAR = (Status.OK, Status.NO_DESCENT)  # how L-BFGS in single precision ends, the second where rounding stops it
ROUNDS = 8  # of products; the last one has no end but the budget's
FEW_ROUNDS = 2  # of a second attempt: what so many factorizations near the solution do not bring, more do not
UNLIMITED = 2**30


class Price(NamedTuple):
    """A factorization costs ``products`` in a block, as much time as ``singles`` one by one; None: not affordable."""

    products: int
    singles: int | None

    def fits(self, left: int) -> bool:
        """Whether there may be one at all, with at least as many products left after it."""
        return self.singles is not None and 2 * self.products <= left

    def worth(self, near: Factorized | None) -> int | None:
        """Products after which there is to be one; another only where a block saves nothing is no dearer than them."""
        return self.singles if near is None else self.products

    def due(self, near: Factorized | None, spent: Any, left: int) -> bool:
        """Whether so many products have cost as much, and it fits."""
        return self.fits(left) and int(spent) >= (self.worth(near) or 0)


class Arrival(NamedTuple):
    """A solution of the lower level, how it was found, and a factorization near it if there is one."""

    w: Tree
    lower: SolveInfo
    near: Factorized | None


def price(w: Tree) -> Price:
    """The price of a factorization of A on the space of ``w``."""
    n = tree.size(w)
    return Price(n, n // BLOCK if n <= DENSE_MOST else None)


def left(wish: Wish, spent: Any) -> int:
    """Products that the budget has left."""
    return UNLIMITED if wish.max_matvecs is None else max(int(wish.max_matvecs) - int(spent), 0)


def arrive_from_afar(wish: Wish, at: Instance, w0: Tree, single: Instance | None, cost: Price) -> Arrival:
    """A first-order solver begins, for as long as it costs less than a factorization; then :func:`arrive`."""
    w, lower = _approach(at, w0, lower_rtol(wish, w0), single, cost.singles, left(wish, 0))
    if int(lower.status) in (NEAR if single is not None else (Status.OK,)):
        return Arrival(w, lower, None)
    return arrive(wish, at, w, single, cost, lower)


def arrive(
    wish: Wish,
    at: Instance,
    w: Tree,
    single: Instance | None,
    cost: Price,
    lower: SolveInfo,
    near: Factorized | None = None,
    rounds: int = ROUNDS,
) -> Arrival:
    """Newton's method from ``w``, where ``lower`` led, by rounds of products, and what is factorized between them."""
    since = 0 if near is None else lower.matvecs
    for number in range(1, rounds + 1):
        if cost.due(near, lower.matvecs - since, left(wish, lower.matvecs)):
            near, lower = factorize_here(at, w, single), lower.plus(cost.products)
            since = lower.matvecs
        most = left(wish, lower.matvecs)
        # Where A is singular or indefinite a factorization is no help, nor is there one to come after the last round.
        helps = cost.singles is not None and (near is None or bool(near.regular)) and number < ROUNDS
        w, rest = _solve(at, w, lower_rtol(wish, w), near, min(cost.worth(near) or most, most) if helps else most)
        lower = continued(lower, rest)
        if not helps or int(rest.status) != Status.MAX_STEPS or left(wish, lower.matvecs) == 0:
            break
    return Arrival(w, lower, near)


@jax.jit
def factorize_here(at: Instance, w: Tree, single: Instance | None) -> Factorized:
    """:func:`~bilevel.automatic.start.factorize_at`, compiled."""
    return factorize_at(at, w, single)


@jax.jit
def _approach(
    at: Instance, w0: Tree, rtol: Any, single: Instance | None, steps: Any, most: Any
) -> tuple[Tree, SolveInfo]:
    validate(at.problem, at.lam, w0, at.lower_data, at.upper_data)
    return approach(at, w0, rtol, steps, most, single)


@jax.jit
def _solve(at: Instance, w: Tree, rtol: Any, near: Factorized | None, most: Any) -> tuple[Tree, SolveInfo]:
    validate(at.problem, at.lam, w, at.lower_data, at.upper_data)
    return solve_lower(at, w, rtol, near, most)
