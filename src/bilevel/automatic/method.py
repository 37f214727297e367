"""The automatic method: its parameters, and which programs run in which order."""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from jaxtyping import Array

from bilevel import tree
from bilevel.automatic.passes import Passes, advance, finish, first_state
from bilevel.automatic.rounds import FEW_ROUNDS, Arrival, Price, arrive, arrive_from_afar, factorize_here, left, price
from bilevel.automatic.single import Aids, in_single
from bilevel.automatic.start import Wish, lower_rtol, solve_densely, solve_lower, start
from bilevel.lagrangian import Instance
from bilevel.linear.factorized import Factorized
from bilevel.methods.base import Hypergradient, nothing_done
from bilevel.problems import Problem, validate
from bilevel.solvers.base import scale
from bilevel.status import SolveInfo, Status

Tree = Any

DENSE = 300  # systems up to this size are always factorized
NEAR_SOLUTION = (Status.SINGULAR, Status.TOLERANCE_UNMET)  # ends of an attempt after which the lower level is solved
TIGHTEST = 0.75  # relative step of the lower-level solver in a second attempt, in powers of eps


@tree.record
@dataclass(frozen=True)
class Automatic:
    """Hypergradient to an accuracy, ``error <= tol * norm(grad) + atol``, with nothing to tune.

    Parameters
    ----------
    tol
        Relative accuracy of the hypergradient.
    atol
        Absolute accuracy; default ``tol * sqrt(eps) * scale``, see :class:`~bilevel.methods.base.Hypergradient`.
    max_matvecs
        Budget of everything: lower level, adjoint, probe and error estimate, give or take a few for what surrounds the
        solves. Where it is spent first the status is ``TOLERANCE_UNMET``. Default no limit.

    Notes
    -----
    Up to 300 unknowns the dense ``A`` is factorized at the start, by n products in one block, and up to 191 again at
    the solution; that preconditions all that follows. Larger problems begin with L-BFGS where they are minimizations,
    warm starts (``v0`` given) with Newton's method. Up to 3000 unknowns a factorization comes, called eagerly, once the
    products since the last one are taken to have cost as much as that (:mod:`bilevel.automatic.rounds`). A budget
    allows those that leave as many products over as they take, inside transformations none, and no second attempt.

    Called eagerly on a minimization in float64, up to 300 unknowns go to the solution by secant steps with it
    (:mod:`bilevel.automatic.secant`), and by Newton's method where those do not arrive. The factorization, and for
    larger problems L-BFGS and the loose linear solves, are done in float32 where the functions allow it, and done
    again in float64 where that led to no answer. Residuals, and so the error, are always in float64.

    Cold starts end with a probe: one loose solve with a random right-hand side, which meets negative curvature
    and null directions that the right-hand sides of the problem need not contain. Called eagerly, a failure is given a
    second attempt, with the lower level solved to rounding and with the factorization; so is a warm start that took
    more than n products for the adjoint, since it had no probe.
    """

    tol: Any = 1e-4
    atol: Any = None
    max_matvecs: Any = None

    def check(self, problem: Problem) -> None:
        """Every problem is allowed."""

    def __call__(
        self,
        problem: Problem,
        lam: Tree,
        w0: Tree,
        v0: Tree | None,
        lower_data: Tree,
        upper_data: Tree,
        key: Array | None = None,
        *,
        error: bool = True,
    ) -> Hypergradient:
        """All passes in one program, for use inside transformations."""
        at = Instance(problem, lam, lower_data, upper_data)
        wish = Wish(self.tol, self.atol, self.max_matvecs, math.inf)
        dense = self.max_matvecs is None and tree.size(w0) <= DENSE
        return _complete(wish, at, w0, v0, dense=dense, single=None)

    def staged(
        self, problem: Problem, lam: Tree, w0: Tree, v0: Tree | None, lower_data: Tree, upper_data: Tree
    ) -> Hypergradient:
        """The same, steered from the host: a second attempt is only compiled where it is needed.

        So is what few problems above 300 unknowns need.
        """
        at = Instance(problem, lam, lower_data, upper_data)
        wish = Wish(self.tol, self.atol, self.max_matvecs, math.inf)
        n = tree.size(w0)
        h = _small(wish, at, w0, v0, dense=2 * n <= left(wish, 0)) if n <= DENSE else _large(wish, at, w0, v0)
        doubtful = v0 is not None and _took_too_many(h, n)
        if not (doubtful or _may_be_mended(h)) or self.max_matvecs is not None:
            return h
        tight = wish._replace(lower_rtol=tree.eps(w0) ** TIGHTEST)
        # From where the first attempt ended, with steps relative to that, but not from a saddle.
        near_solution = Status(int(h.status)) in NEAR_SOLUTION and bool(tree.all_finite(h.w))
        begin = h.w if near_solution or doubtful else w0
        if n <= DENSE:
            again = _small(tight, at, begin, None, dense=True, double=True)
        else:
            again = _again(tight, at, begin, near_solution)
        if again is None:
            return h
        # One that did not even solve the lower level says less than the first.
        unsolved = int(again.lower.status) == Status.MAX_STEPS and not doubtful
        return _together(again, h) if unsolved else _together(h, again)


def _started(wish: Wish, at: Instance, w0: Tree, v0: Tree | None, w: Tree, lower: SolveInfo, aids: Aids) -> Passes:
    begun = start(wish, at, w0, v0, w, lower, aids)
    return first_state(at, begun, scale(begun.w, w0))


def _complete(
    wish: Wish, at: Instance, w0: Tree, v0: Tree | None, *, dense: bool, single: Instance | None
) -> Hypergradient:
    """The lower level, the start and all passes; with a factorization of A where it is to be dense."""
    validate(at.problem, at.lam, w0, at.lower_data, at.upper_data)
    rtol = lower_rtol(wish, w0)
    if dense:
        w, lower, near = solve_densely(wish, at, w0, rtol, single)
    else:
        (w, lower), near = solve_lower(at, w0, rtol, most=wish.max_matvecs), None
    aids = Aids(near)
    state = _started(wish, at, w0, v0, w, lower, aids)
    state = jax.lax.while_loop(lambda s: s.running, lambda s: advance(wish, at, aids, s), state)
    return finish(wish, at, state, _name(aids))


@jax.jit
def _first_from(wish, at, w0, v0, w, lower, aids):
    """From a solution of the lower level to the first judgment, and the answer if it is the last."""
    s = _started(wish, at, w0, v0, w, lower, aids)
    s = jax.lax.cond(s.running, lambda s: advance(wish, at, aids, s), lambda s: s, s)
    return s, finish(wish, at, s, _name(aids))


@partial(jax.jit, static_argnames=("dense", "double"))
def _small(wish, at, w0, v0, *, dense, double=False):
    """All of it in one program, which returns the answer and nothing else: arrays take time to hand over, too."""
    return _complete(wish, at, w0, v0, dense=dense, single=None if double else in_single(at, w0))


def _large(wish: Wish, at: Instance, w0: Tree, v0: Tree | None) -> Hypergradient:
    """Cold starts in single precision, as far as that goes, and where it does not lead to an answer in double."""
    single = _in_single(at, w0) if v0 is None else None
    h = _attempt(wish, at, w0, v0, single)
    rest = left(wish, h.matvecs)
    if single is None or Status(int(h.status)) == Status.OK or rest == 0:
        return h
    return _together(
        h, _attempt(wish if wish.max_matvecs is None else wish._replace(max_matvecs=rest), at, w0, v0, None)
    )


def _attempt(wish: Wish, at: Instance, w0: Tree, v0: Tree | None, single: Instance | None) -> Hypergradient:
    """Without a factorization as long as that costs less."""
    cost = price(w0)
    if v0 is None:
        found = arrive_from_afar(wish, at, w0, single, cost)
    else:
        found = arrive(wish, at, w0, single, cost, nothing_done(w0))
    return _from_solution(wish, at, w0, v0, single, cost, found)


def _again(wish: Wish, at: Instance, w0: Tree, near_solution: bool) -> Hypergradient | None:
    """A second attempt, that has a factorization at once where there may be one.

    None where A is singular to rounding near the solution: all solves would be those of the first attempt.
    """
    cost, nothing = price(w0), nothing_done(w0)
    if cost.fits(left(wish, 0)):
        near = factorize_here(at, w0, None)
        if near_solution and not near.regular:
            return None
        found = arrive(wish, at, w0, None, cost, nothing.plus(cost.products), near, FEW_ROUNDS)
    else:
        found = arrive(wish, at, w0, None, cost, nothing)
    return _from_solution(wish, at, w0, None, None, cost, found)


def _from_solution(
    wish: Wish, at: Instance, w0: Tree, v0: Tree | None, single: Instance | None, cost: Price, found: Arrival
) -> Hypergradient:
    """The passes from a solution of the lower level, with a factorization at each that follows products as costly."""
    spent = found.lower.matvecs
    aids = _aids(wish, single, cost, found.near, spent)
    state, h = _first_from(wish, at, w0, v0, found.w, found.lower, aids)
    if not state.running:
        return h
    since = 0 if aids.near is None else spent  # the last factorization, or the beginning
    while state.running:
        spent = state.lower.matvecs + state.adjoint.matvecs + state.probe.matvecs
        if aids.most is not None and cost.due(aids.near, spent - since, left(wish, spent)):
            state, since = state._replace(lower=state.lower.plus(cost.products)), spent + cost.products
            aids = _aids(wish, single, cost, factorize_here(at, state.w, single), since)
        state = _advance(wish, at, aids, state)
    return _finish(wish, at, state, name=_name(aids))


def _aids(wish: Wish, single: Instance | None, cost: Price, near: Factorized | None, spent: Any) -> Aids:
    """What helps the passes; their solves are cut short where another factorization is to be had that would help."""
    most = cost.worth(near) if cost.fits(left(wish, spent)) and (near is None or near.regular) else None
    return Aids(near, single if near is None else None, most)


def _took_too_many(h: Hypergradient, n: int) -> bool:
    """Whether the adjoint of an answer took more products than there are unknowns: A may be singular to rounding.

    A warm start has no probe that would tell; rounding may then be more than the error says.
    """
    return not bool(h.failed) and int(h.adjoint.matvecs) > n


def _may_be_mended(h: Hypergradient) -> bool:
    """Whether more exact solves could turn a failure into an answer."""
    status = Status(int(h.status))
    return status.failed and status not in (Status.NONFINITE, Status.DIVERGED)


def _together(first: Hypergradient, again: Hypergradient) -> Hypergradient:
    """``again``, one attempt, with what the other has cost."""
    spent = {
        name: getattr(again, name).plus(getattr(first, name).matvecs) for name in ("lower", "adjoint", "error_info")
    }
    return replace(again, **spent)


def _name(aids: Aids) -> str:
    return "the automatic method" if aids.near is None else "the automatic method, with a factorization of A"


_in_single = jax.jit(in_single)
_advance = jax.jit(advance)
_finish = jax.jit(finish, static_argnames="name")
