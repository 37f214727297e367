"""Linear systems ``E[A_z] x = E[b_z]`` from samples, and the stochastic iteration under all such solvers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

from bilevel import tree
from bilevel.linear.rates import Samples, estimate_rates
from bilevel.schedules import as_schedule, check_schedule
from bilevel.status import SolveInfo, Status, code, is_failure

Tree = Any
Oracle = Callable[[Tree, Any], tuple[Tree, Any]]


class Run(NamedTuple):
    """A stochastic iteration on its way; carried on, it goes as if it had never stopped.

    Attributes
    ----------
    x
        The last finite iterate.
    stream
        The state of the sampling.
    drawn
        Samples taken; the same number for all runs of a batch.
    steps
        Steps that changed ``x``: those before the failure, if there was one.
    earlier
        The iterate after ``mark`` steps, or None.
    scale, size
        ``norm(a r)`` that a later one is compared with, and that of the last sample.
    status
        ``OK``, ``DIVERGED`` or ``NONFINITE``.
    """

    x: Tree
    stream: Any
    drawn: Int[Array, ""]
    steps: Int[Array, ""]
    earlier: Tree
    scale: Float[Array, ""]
    size: Float[Array, ""]
    status: Int[Array, ""]

    def info(self, step: Any) -> SolveInfo:
        """What the run did; its residual is that of the last sample, of the iterate before the last step."""
        evaluations = self.steps + is_failure(self.status)
        return SolveInfo(self.steps, evaluations, self.size / step, self.status)


def begin(x0: Tree, stream: Any, mark: Any = None) -> Run:
    """A run that has done nothing yet; ``mark``, where given, asks for :attr:`Run.earlier`."""
    zero = jnp.asarray(0)
    nothing = jnp.zeros((), tree.dtype(x0))
    return Run(x0, stream, zero, zero, None if mark is None else x0, tree.norm(x0), nothing, code(Status.OK))


def proceed(residual: Oracle, schedule: Any, step: Any, run: Run, until: Any, mark: Any = None) -> Run:
    """``x <- x + eta_i a r_i(x)`` with samples ``r_i(x)`` of a residual, until step number ``until``.

    Stops where ``x`` would stop being finite, or where ``norm(a r)`` has grown by ``1 / sqrt(eps)`` over its first
    value and over ``norm(x0)``: later steps would only amplify what is no solution. The iterate before that is kept.

    Parameters
    ----------
    residual
        ``residual(x, stream) -> r, stream``, unbiased.
    schedule
        ``i -> eta_i``.
    step
        The ``a`` for which ``x + a r`` is the map.
    run
        From :func:`begin` or from the call before.
    until
        Number of steps of the whole run; one number for all runs of a batch that is to be carried on.
    mark
        After how many steps to keep ``earlier``.

    Notes
    -----
    Under ``vmap`` all runs go on until the last has ended; those that have ended stay as they are. The number of
    samples drawn is then the same for all, and samplers may branch on it.
    """
    limit = 1 / tree.eps(run.x)

    def body(run: Run) -> Run:
        r, stream = residual(run.x, run.stream)
        eta = jnp.asarray(schedule(run.drawn))
        squared = step * step * tree.dot(r, r)
        first = (run.drawn == 0) | (run.scale == 0)
        scale = jnp.where(first, jnp.maximum(run.scale, jnp.sqrt(squared)), run.scale)
        status = jnp.where(squared > limit * scale * scale, code(Status.DIVERGED), code(Status.OK))
        status = jnp.where(jnp.isfinite(eta * squared), status, code(Status.NONFINITE))
        running = (run.drawn < until) & ~is_failure(run.status)
        moves = running & ~is_failure(status)
        x = tree.where(moves, tree.axpy(eta * step, r, run.x), run.x)
        drawn = run.drawn + 1
        return Run(
            x, stream, drawn, run.steps + moves,
            None if mark is None else tree.where(drawn <= mark, x, run.earlier),
            scale, jnp.where(moves, jnp.sqrt(squared), run.size), jnp.where(running, status, run.status),
        )  # fmt: skip

    def unfinished(run: Run) -> Bool[Array, ""]:
        return in_any((run.drawn < until) & ~is_failure(run.status))

    return jax.lax.while_loop(unfinished, body, run)


@custom_vmap
def in_any(condition: Bool[Array, ""]) -> Bool[Array, ""]:
    """``condition``; under ``vmap`` whether it holds anywhere in the batch, so that loops stay unbatched."""
    return condition


@in_any.def_vmap
def _in_any_of_batch(axis_size: int, in_batched: list[bool], condition: Array) -> tuple[Array, bool]:  # noqa: ARG001
    return in_any(jnp.any(condition, axis=0) if in_batched[0] else condition), False


class StochasticSystem(NamedTuple):
    """``E[A_z] x = E[b_z]`` by its samples.

    Attributes
    ----------
    start
        ``start(key) -> stream``.
    residual
        ``residual(x, stream) -> b_z - A_z x, stream``.
    samples
        Products with ``A_z``, for estimates of its spectrum and noise.
    step
        The ``a`` for which ``I - a E[A_z]`` is the Jacobian of the lower-level map; None where it is not known.
    """

    start: Callable[[Array], Any]
    residual: Oracle
    samples: Samples
    step: Any


@tree.record
@dataclass(frozen=True)
class StochasticRichardson:
    """``x <- x + eta_i a (b_z - A_z x)`` with a fresh sample ``z`` at each step.

    With ``A_z = (I - d_w Phihat(w, z))^T``, ``b = d_w U`` and ``a = 1`` the second step of stochastic implicit
    differentiation (Grazzi, Pontil and Salzo 2021, arXiv 2011.07122). Since the map is affine in ``x``, the mean
    ``E[x_k]`` of independent samples follows the iteration without noise exactly.

    Parameters
    ----------
    steps
        Number of steps, an int or an integer array.
    schedule
        :class:`~bilevel.schedules.Constant`, :class:`~bilevel.schedules.Decreasing` or a function of the step
        number; default :func:`~bilevel.schedules.from_rates` with estimates of the contraction and of the noise.
    step
        The step ``a`` of the map; default that of the lower-level problem, else one over the largest eigenvalue,
        estimated.

    Notes
    -----
    Cost: one product with a batch a step, and those of the estimates (:mod:`bilevel.linear.rates`). Statuses:
    ``DIVERGED``, ``NONFINITE``; the last finite iterate is returned, and ``steps`` is its number.
    """

    steps: Any = 1000
    schedule: Any = None
    step: Any = None

    stochastic = True
    needs_symmetry = False

    def __post_init__(self):
        object.__setattr__(self, "schedule", as_schedule(self.schedule))

    def __call__(
        self, system: StochasticSystem, like: Tree, x0: Tree | None = None, *, key: Array, steps: Any = None
    ) -> tuple[Tree, SolveInfo]:
        """Solve ``E[A_z] x = E[b_z]`` on the space of ``like``, from ``x0`` or zero."""
        for_estimate, for_samples = jax.random.split(key)
        ready, matvecs = self.prepare(system, like, for_estimate)
        run = ready.run(system, tree.zeros_like(like) if x0 is None else x0, for_samples, steps)
        return run.x, run.info(ready.step).plus(matvecs)

    def prepare(self, system: StochasticSystem, like: Tree, key: Array) -> tuple[Self, Any]:
        """Itself with step and schedule, and the batch products that estimating them took."""
        return with_rates(self, system.step, system.samples, system.start(key), like)

    def run(self, system: StochasticSystem, x0: Tree, key: Array, steps: Any = None, mark: Any = None) -> Run:
        """The run of a solver that is prepared, see :func:`proceed`."""
        steps = self.steps if steps is None else steps
        return proceed(system.residual, self.schedule, self.step, begin(x0, system.start(key), mark), steps, mark)


def with_rates(solver: Any, step: Any, samples: Samples, stream: Any, like: Tree) -> tuple[Any, Any]:
    """A stochastic solver with step and schedule, estimated where it has none, and the matvecs of that.

    ``step`` is the step that the problem has, or None.
    """
    if solver.schedule is not None:
        check_schedule(solver.schedule)
    step = step if solver.step is None else solver.step
    if step is not None and solver.schedule is not None:
        return replace(solver, step=step), 0
    rates = estimate_rates(samples, stream, like, step)
    return replace(solver, step=rates.step, schedule=solver.schedule or rates.schedule), rates.matvecs
