"""Stochastic implicit differentiation of nonsmooth problems: the prox is taken of a mean, not of samples."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bilevel import tree
from bilevel.lagrangian import Instance
from bilevel.linear.operator import LinearOperator
from bilevel.linear.rates import Samples
from bilevel.linear.stochastic import StochasticRichardson, StochasticSystem
from bilevel.methods.aid import check_symmetry, is_stochastic
from bilevel.methods.base import Hypergradient, conclude, nothing_done
from bilevel.methods.sid import average
from bilevel.methods.stochastic import (
    check_runs,
    joined,
    mean_of_runs,
    require_key,
    require_spread,
    statistical_error,
)
from bilevel.problems import Problem
from bilevel.prox import ProximalGradient
from bilevel.sampling import Sampler
from bilevel.solvers import default_solver
from bilevel.status import ProblemError, SolveInfo

Tree = Any


@tree.record
@dataclass(frozen=True)
class NSID:
    """Nonsmooth stochastic implicit differentiation (Grazzi, Pontil and Salzo 2024, arXiv 2403.11687).

    For ``w = G(T(w, lam), lam)``, where only ``T = E[T_z]`` is sampled: the problems that
    :func:`~bilevel.problems.composite` makes, with T a gradient step and G a prox.

    1. ``w`` from a solver on all of the data. 2. ``u = mean of J samples of T_z(w)``. 3. ``v`` from k steps of a
    stochastic solver of ``v = d_w T^T d_u G(u)^T v + d_w U``, with a fresh sample of ``d_w T_z`` in each.
    4. ``grad = d_lam U + (d_lam G(u))^T v``, also through u, by the samples of step 2.

    SID, in whose samples the prox is inside, has the mean of ``G(T_z)`` in place of ``G(E[T_z])``: a bias that no
    number of samples removes. Here the error falls like ``1 / sqrt(k)`` with J of order k.

    All but step 1 is done ``runs`` times, independently and as one batch: ``grad`` and ``v`` are means over the runs.

    Parameters
    ----------
    sampler
        How batches of ``lower_data`` are drawn.
    solver
        Deterministic lower-level solver; default :func:`~bilevel.solvers.default_solver`.
    linear_solver
        Solver of the adjoint system: :class:`~bilevel.linear.stochastic.StochasticRichardson`, or any deterministic
        one, which gets all the data and ``d_u G(u)``.
    jacobian_samples
        Number J of batches for u, an int or an integer array; None: all of ``lower_data``.
    runs
        Number R of independent runs; an error estimate needs two.
    confidence
        With which ``h.error`` covers the true error, at least 0.8 and below 1.

    Notes
    -----
    ``h.error`` is that of :class:`~bilevel.methods.sid.SID`, with half of the steps k and of the samples J for the
    bias. It knows nothing of the error of ``w``.

    Cost: that of the solver and ``R (k + 2 J)`` batches, for the J batches are met twice, and the estimate of the
    schedule where it is not given; the error takes about half as much again. ``h.adjoint`` and ``h.error_info``
    count them as matvecs, one a batch.

    Raises
    ------
    ProblemError
        For problems that are not composite; with a stochastic ``solver``; without a key; with one run and
        ``error=True``; where data and sampler do not fit.
    """

    sampler: Sampler
    solver: Any = None
    linear_solver: Any = field(default_factory=StochasticRichardson)
    jacobian_samples: Any = None
    runs: int = field(default=4, metadata={"static": True})
    confidence: float = field(default=0.95, metadata={"static": True})

    def check(self, problem: Problem) -> None:
        """Refuse problems and solvers that do not fit, and numbers out of range."""
        if not isinstance(problem.lower.function, ProximalGradient):
            raise ProblemError(
                f"NSID needs a lower level made by bilevel.composite, but the problem is another {problem.lower.kind}: "
                "use SID."
            )
        if is_stochastic(self.solver):
            raise ProblemError(
                f"NSID needs a deterministic lower-level solver, but {type(self.solver).__name__} samples the prox, "
                "too, and ends at another point: leave solver=None or give Picard."
            )
        check_symmetry(self.linear_solver, problem.lower)
        check_runs("NSID", self.runs, self.confidence)
        if isinstance(self.jacobian_samples, int) and self.jacobian_samples < 1:
            raise ProblemError(f"jacobian_samples must be at least 1 or None, but is {self.jacobian_samples}.")

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
        """Compute the hypergradient; see :class:`~bilevel.methods.base.Method`."""
        if error:
            require_spread("NSID", self.runs)
        for_step, for_runs = jax.random.split(require_key("NSID", key))
        at = Instance(problem, lam, lower_data, upper_data)
        w, lower = (self.solver or default_solver(problem.lower))(problem.lower, lam, w0, lower_data)
        value, d_w_U = at.upper_gradient(w)
        method, matvecs = _with_ready_adjoint(self, at, w, d_w_U, for_step)
        keys = jax.random.split(for_runs, self.runs)
        v0 = tree.zeros_like(w) if v0 is None else v0

        def all_runs(method: NSID) -> _End:
            return jax.vmap(lambda key: _finish(method, at, w, d_w_U, v0, key))(keys)

        ends = all_runs(method)
        estimate, error_info = None, nothing_done(w0)
        if error:
            halves = all_runs(_with_half(method))
            estimate = statistical_error(ends.indirect, halves.indirect, self.confidence)
            error_info = joined(halves.adjoint)
        direct = jax.grad(problem.upper, argnums=1)(w, lam, upper_data)
        indirect = mean_of_runs(ends.indirect)
        return conclude(
            problem, _name(self), grad=tree.add(direct, indirect), scale=tree.norm(direct) + tree.norm(indirect),
            value=value, w=w, v=mean_of_runs(ends.v), lower=lower, adjoint=joined(ends.adjoint).plus(matvecs),
            error=estimate, error_info=error_info,
        )  # fmt: skip


class _End(NamedTuple):
    """What a run comes to: ``indirect = (d_lam G(u))^T v``."""

    indirect: Tree
    v: Tree
    adjoint: SolveInfo


def _with_ready_adjoint(method: NSID, at: Instance, w: Tree, b: Tree, key: Array) -> tuple[NSID, Any]:
    """The method with the schedule of its adjoint solver, estimated with samples of its own."""
    if not is_stochastic(method.linear_solver):
        return method, 0
    for_mean, for_rates = jax.random.split(key)
    u = _mean_step(method, at, w, for_mean)
    linear, matvecs = method.linear_solver.prepare(_adjoint_system(method, at, w, u, b), w, for_rates)
    return replace(method, linear_solver=linear), matvecs


def _with_half(method: NSID) -> NSID:
    """The method with half of the steps and of the samples."""
    J = method.jacobian_samples
    method = replace(method, jacobian_samples=None if J is None else jnp.maximum(jnp.asarray(J) // 2, 1))
    if not is_stochastic(method.linear_solver):
        return method
    return replace(method, linear_solver=replace(method.linear_solver, steps=method.linear_solver.steps // 2))


def _finish(method: NSID, at: Instance, w: Tree, b: Tree, v0: Tree, key: Array) -> _End:
    """Steps 2 to 4 of a run."""
    for_mean, for_v = jax.random.split(key)
    u = _mean_step(method, at, w, for_mean)
    v, info = _solve_adjoint(method, at, w, u, b, v0, for_v)
    by_u, by_lam = jax.vjp(lambda u, lam: _map(at).backward(u, lam, at.lower_data), u, at.lam)[1](v)

    def through_u(batch: Tree) -> Tree:  # (d_lam T_z)^T (d_u G)^T v
        return jax.grad(lambda lam: tree.dot(by_u, _map(at).forward(w, lam, batch)))(at.lam)

    # The same key gives the samples of u once more.
    indirect = tree.add(by_lam, average(through_u, at.lower_data, method.sampler, method.jacobian_samples, for_mean))
    return _End(indirect, v, info.plus(2 * _evaluations(method, at)))


def _mean_step(method: NSID, at: Instance, w: Tree, key: Array) -> Tree:
    """Step 2: the mean of J samples of ``T_z(w)``."""
    return average(
        lambda batch: _map(at).forward(w, at.lam, batch), at.lower_data, method.sampler, method.jacobian_samples, key
    )


def _solve_adjoint(
    method: NSID, at: Instance, w: Tree, u: Tree, b: Tree, v0: Tree, key: Array
) -> tuple[Tree, SolveInfo]:
    """Step 3: ``v``, and its cost in batches."""
    if is_stochastic(method.linear_solver):
        run = method.linear_solver.run(_adjoint_system(method, at, w, u, b), v0, key)
        return run.x, run.info(method.linear_solver.step)
    product, transposed = _products(at, w, u)
    data = at.lower_data
    A = LinearOperator(lambda v: product(v, data), lambda x: transposed(x, data), step=1.0)
    v, info = method.linear_solver(A, b, v0)
    return v, replace(info, matvecs=info.matvecs * method.sampler.batches(data))


def _adjoint_system(method: NSID, at: Instance, w: Tree, u: Tree, b: Tree) -> StochasticSystem:
    """``E[I - d_w T_z^T d_u G(u)^T] v = d_w U``."""
    sampler, data = method.sampler, at.lower_data

    def on_batch(product: Callable[[Tree, Tree], Tree]) -> Callable[[Tree, Any], tuple[Tree, Any]]:
        return lambda x, stream: sampler.evaluate(lambda batch: product(x, batch), data, stream)

    product, transposed = map(on_batch, _products(at, w, u))

    def residual(v: Tree, stream: Any) -> tuple[Tree, Any]:
        Av, stream = product(v, stream)
        return tree.sub(b, Av), stream

    epoch = None if sampler.batch_size is None else sampler.batches(data)
    samples = Samples(product, transposed, False, epoch)
    return StochasticSystem(lambda key: sampler.start(data, key), residual, samples, 1.0)


def _products(at: Instance, w: Tree, u: Tree) -> tuple[Callable[[Tree, Tree], Tree], Callable[[Tree, Tree], Tree]]:
    """``v - d_w T_z^T d_u G(u)^T v`` and its transpose, functions of a vector and a batch; G is linearized once."""
    _, G = jax.linearize(lambda u: _map(at).backward(u, at.lam, at.lower_data), u)
    G_transposed = jax.linear_transpose(G, u)

    def step(batch: Tree) -> Callable[[Tree], Tree]:
        return lambda w: _map(at).forward(w, at.lam, batch)

    def product(v: Tree, batch: Tree) -> Tree:
        return tree.sub(v, jax.vjp(step(batch), w)[1](G_transposed(v)[0])[0])

    def transposed(x: Tree, batch: Tree) -> Tree:
        return tree.sub(x, G(jax.jvp(step(batch), (w,), (x,))[1]))

    return product, transposed


def _map(at: Instance) -> ProximalGradient:
    return cast(ProximalGradient, at.problem.lower.function)  # NSID.check has seen it


def _evaluations(method: NSID, at: Instance) -> Int[Array, ""] | int:
    """Batches of a mean."""
    J = method.jacobian_samples
    return method.sampler.batches(at.lower_data) if J is None else J


def _name(method: NSID) -> str:
    return (
        f"NSID ({type(method.linear_solver).__name__}, {method.runs} runs, error at {method.confidence:.0%} confidence)"
    )
