"""SOBA with steps of its own, then quasi-Newton steps: what ``optimize`` takes for minibatches unasked."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bilevel import tree
from bilevel.algorithms.oracles import Oracles, Point, Streams
from bilevel.algorithms.quasi_newton import QuasiNewton, QuasiNewtonState
from bilevel.algorithms.settings import oracles_of
from bilevel.algorithms.step_info import StepInfo
from bilevel.algorithms.stretches import POWER_STEPS, Seen, curvature, look, stretch
from bilevel.methods.stochastic import require_key
from bilevel.problems import Problem
from bilevel.sampling import Sampler

Tree = Any

EPOCHS = 2  # of a stretch, over the rows of both levels
LEAST_STEPS = 100  # of a stretch
FIRST_CHANGE = 0.25  # largest change of a component by the first stretch, against max(1, |lam|)
LARGEST_CHANGE = 1.0  # by later ones
GROWTH = 4.0  # of the outer step after a stretch that was kept
CUT = 8.0  # by which it is divided after one that was not
SAFER = 0.7  # by which the other step shrinks after one that left the finite numbers; it grows again
FADING = 0.7  # what is left of a curvature seen one stretch ago
SHARE = 1 / 8  # of the products of a stretch that may be spent on its curvature
LITTLE = 1e-3  # of all descent so far: less is little
PATIENCE = 3  # stretches in a row that brought or promised little, after which the search begins
SEARCH = QuasiNewton(max_matvecs=2000)  # where its hypergradients take more they do not pay: this ends


class AdaptiveState(NamedTuple):
    """What is carried.

    Attributes
    ----------
    best
        The best point so far, where stretches begin.
    first
        The Lagrangian where the hyperparameters began to move.
    outer_step
        Step of lam in the next stretch.
    curvature, safety
        Of A, the largest seen, fading; the step of w and v is ``safety / curvature``.
    rest
        Whether lam rests in the next stretch.
    strikes
        Stretches in a row that brought or promised little.
    tried
        Stretches so far.
    key, streams
        Random key of the run; where the drawing stands, None before the first stretch.
    search
        The state of the search, None before it has begun.
    """

    best: Seen
    first: float
    outer_step: float
    curvature: float
    safety: float
    rest: bool
    strikes: int
    tried: int
    key: Array
    streams: Streams | None
    search: QuasiNewtonState | None

    @property
    def lam(self) -> Tree:
        """The hyperparameters at which the next step begins."""
        return self.best.point.lam if self.search is None else self.search.lam

    @property
    def w(self) -> Tree:
        """The lower-level variable there."""
        return self.best.point.w if self.search is None else self.search.w


@tree.record
@dataclass(frozen=True)
class AdaptiveSOBA:
    """Stretches of :class:`~bilevel.algorithms.soba.SOBA` with steps of their own; there is nothing to tune.

    Parameters
    ----------
    sampler
        How lower-level batches are drawn.
    upper_sampler
        How upper-level batches are drawn; None: as lower-level ones.

    Notes
    -----
    A stretch is two epochs of SOBA, at least 100 steps, whose lengths fall to zero linearly. Then the Lagrangian
    ``U - <v, F>`` is looked at with all data, as w and v have caught up with lam: where it has fallen the stretch is
    kept and the step of lam grows fourfold; else it is undone, the step shrinks, and lam rests for a stretch that finds
    the Lagrangian there anew: it may have been too low, as w and v had not quite caught up. The step of w and v is the
    inverse of the largest norm of ``A`` on a few batches, seen anew before every stretch, for it changes with lam. The
    first stretch does not move lam. By the slopes seen before it, the second changes no component by more than a
    quarter of ``max(1, |lam|)``, later ones none by more than all of that.

    Three stretches in a row that brought, or promise, less than a thousandth of what has been reached end this:
    from there on :class:`~bilevel.algorithms.quasi_newton.QuasiNewton` searches with all data, along certified
    hypergradients, to an end of its own. It takes over, too, where no stretch stays finite. Hypergradients may take
    2000 products there: where not even the first can be had for that the run ends with what stretches reached, and
    the status says so.

    The history has a line for every stretch, then one for every step of the search. The error of a hypergradient is
    known in the search alone. Rows are counted as drawn, in the search as products with all rows.

    Cost of a stretch: two epochs of SOBA, an eighth more for the curvature, and one pass over all data. Memory: two
    points ``(w, v, lam)``.

    References
    ----------
    Dagreou, Ablin, Vaiter and Moreau 2022, arXiv 2201.13409, for SOBA.
    """

    sampler: Sampler
    upper_sampler: Sampler | None = None

    stochastic = counts_samples = True

    def init(self, lam0: Tree, w0: Tree, key: Array | None) -> AdaptiveState:
        """State at ``lam0``; the adjoint starts from zero."""
        key = require_key("AdaptiveSOBA", key)
        lam0, w0 = tree.strong((lam0, w0))
        nowhere = jnp.asarray(jnp.inf, tree.dtype(w0))
        start = Seen(Point(w0, tree.zeros_like(w0), lam0), nowhere, nowhere, nowhere, nowhere)
        return AdaptiveState(start, math.inf, 0.0, 0.0, 1.0, True, 0, 0, key, None, None)

    def update(
        self, state: AdaptiveState, problem: Problem, lower_data: Tree, upper_data: Tree, *, error: bool = True
    ) -> tuple[AdaptiveState, StepInfo]:
        """One stretch, or one step of the search."""
        oracles = oracles_of(self, problem, lower_data, upper_data)
        if state.search is not None:
            return _search(oracles, state, state.search, error)
        streams = oracles.start(state.key) if state.streams is None else state.streams
        drawn = oracles.samples(streams)
        steps = _steps(oracles)
        for_curvature = jax.random.fold_in(state.key, state.tried)
        batches = max(1, int(SHARE * steps / POWER_STEPS))
        norm, streams = curvature(oracles, state.best.point, streams, for_curvature, batches)
        state = state._replace(curvature=max(FADING * state.curvature, float(norm)))
        step = state.safety / state.curvature if state.curvature > 0 else 0.0
        outer_step = 0.0 if state.rest else state.outer_step
        point, streams = stretch(oracles, state.best.point, streams, step, outer_step, steps)
        seen, streams = look(oracles, point, streams)
        kept = math.isfinite(seen.lagrangian) and (state.rest or bool(seen.lagrangian < state.best.lagrangian))
        state = _judged(state._replace(streams=streams), seen, kept, steps)
        samples = oracles.samples(streams) - drawn
        return state, StepInfo(point.lam, point.w, seen.value, None, jnp.nan, samples=samples, accepted=kept)


def _steps(oracles: Oracles) -> int:
    """Steps of a stretch."""
    rows_of_step = sum(sampler.batch_size or 1 for sampler in (oracles.lower_sampler, oracles.upper_sampler))
    return max(LEAST_STEPS, EPOCHS * oracles.rows() // rows_of_step)


def _judged(state: AdaptiveState, seen: Seen, kept: bool, steps: int) -> AdaptiveState:
    """The state after a stretch to ``seen``, kept or not, with the steps of the next."""
    finite, gain = math.isfinite(seen.lagrangian), math.inf
    if not kept:
        safety = state.safety if finite else SAFER * state.safety
        state = state._replace(outer_step=state.outer_step / CUT, safety=safety)
    elif math.isinf(state.first):
        state = state._replace(first=float(seen.lagrangian), outer_step=_step_for(FIRST_CHANGE, seen, steps))
    elif not state.rest:
        gain = float(state.best.lagrangian - seen.lagrangian)
        outer_step = min(GROWTH * state.outer_step, _step_for(LARGEST_CHANGE, seen, steps))
        state = state._replace(outer_step=outer_step, safety=min(1.0, state.safety / SAFER))
    state = state._replace(best=seen if kept else state.best, tried=state.tried + 1, rest=finite and not kept)
    return _searching_if_little(state, gain, steps)


def _searching_if_little(state: AdaptiveState, gain: float, steps: int) -> AdaptiveState:
    """The state with its search begun where too many stretches in a row gained or promise little."""
    promised = state.outer_step * steps / 2 * float(state.best.slope) ** 2
    little = not min(gain, promised) >= LITTLE * (state.first - float(state.best.lagrangian))
    state = state._replace(strikes=state.strikes + 1 if little else 0)
    return state._replace(search=_begin_search(state.best.point)) if state.strikes == PATIENCE else state


def _step_for(change: float, seen: Seen, steps: int) -> float:
    """The step of lam with which the steepest component changes so much, against ``max(1, |lam|)``, at the slope seen.

    A stretch is as long as half of its steps would be without falling.
    """
    steepest = float(seen.steepest)
    return change * max(1.0, float(tree.largest(seen.point.lam))) / (steepest * steps / 2) if steepest > 0 else 0.0


def _begin_search(point: Point) -> QuasiNewtonState:
    """The search at a point, whose adjoint it takes over."""
    begin = SEARCH.init(point.lam, point.w)
    return begin._replace(best=begin.best._replace(v=point.v))


def _search(
    oracles: Oracles, state: AdaptiveState, search: QuasiNewtonState, error: bool
) -> tuple[AdaptiveState, StepInfo]:
    """A step of the search."""
    new, info = SEARCH.update(search, oracles.problem, oracles.lower_data, oracles.upper_data, error=error)
    lower, upper = oracles.rows_by_level()
    return state._replace(search=new), info._replace(samples=info.matvecs * lower + upper)
