"""Iterative differentiation: the gradient of ``U(w_T(lam), lam)`` through T steps of a solver."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isqrt
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bilevel import tree
from bilevel.certificates.aposteriori import certify
from bilevel.certificates.estimate import distance_to_hypergradient
from bilevel.lagrangian import Instance
from bilevel.loops import unroll
from bilevel.methods.base import Hypergradient, conclude, nothing_done
from bilevel.problems import Problem
from bilevel.solvers.iteration import Iteration
from bilevel.solvers.picard import Picard
from bilevel.status import ProblemError, SolveInfo, Status, code

Tree = Any


@tree.record
@dataclass(frozen=True)
class ITD:
    """Iterative differentiation (Grazzi et al. 2020, arXiv 2006.16218, Theorem 2.1).

    ``w_0 = w0, w_i = Phi_i(w_{i-1}, lam)`` by the steps of a solver, its momentum included; the exact gradient of
    ``lam -> U(w_T(lam), lam)``.

    Parameters
    ----------
    solver
        The iteration, with its number of steps: ``Picard(steps=T)``, ``GradientDescent(steps=T)``,
        ``HeavyBall(steps=T)``, ``Nesterov``, ``Anderson``, ``Optax``.
    steps
        Short for ``solver=Picard(steps=T)``, the plain map.
    mode
        ``"reverse"``: one pass back, memory of O(T) iterates. ``"forward"``: tangents of all entries of ``lam``
        are carried along, ``dim(lam)`` products a step as one block, memory of O(dim(lam)) iterates.
    truncate
        Differentiate only the last K steps; None differentiates all.
    checkpoint
        Reverse mode with less memory: keep every K-th iterate and compute the steps between once more. 1 keeps
        the iterates and nothing else; ``"sqrt"``, K about sqrt(T), needs memory of O(sqrt T) iterates.
    learned_solver
        ``lam -> solver``, in place of ``solver``: the gradient then counts how ``lam`` enters step sizes and
        momenta.
    learned_start
        ``lam -> w_0``, in place of ``w0``: training from a learned initialization.

    Notes
    -----
    Cost: T matvecs forth, K back, K more with checkpoints; in forward mode ``K dim(lam)``. The error is measured
    against the corrected hypergradient at ``w_T``, and ``v`` is the adjoint found on the way (zero with
    ``error=False``). Where solver or start are learned, the T-step objective itself is what is differentiated,
    exactly but for rounding; ``w(lam)`` knows nothing of them, and the error is NaN.
    """

    solver: Any = None
    steps: int | None = field(default=None, metadata={"static": True})
    mode: Literal["reverse", "forward"] = field(default="reverse", metadata={"static": True})
    truncate: int | None = field(default=None, metadata={"static": True})
    checkpoint: int | Literal["sqrt"] | None = field(default=None, metadata={"static": True})
    learned_solver: Callable[[Tree], Any] | None = field(default=None, metadata={"static": True})
    learned_start: Callable[[Tree], Tree] | None = field(default=None, metadata={"static": True})

    def check(self, problem: Problem) -> None:
        """Refuse solvers that cannot be unrolled, and missing or inconsistent counts."""
        if [self.solver, self.steps, self.learned_solver].count(None) != 2:
            raise ProblemError("ITD needs exactly one of solver=, steps= and learned_solver=.")
        if self.mode not in ("reverse", "forward"):
            raise ProblemError(f'mode must be "reverse" or "forward", but is {self.mode!r}.')
        if self.checkpoint is not None and self.mode == "forward":
            raise ProblemError("checkpoint= saves memory of reverse mode; forward mode keeps no iterates.")
        if self.checkpoint not in (None, "sqrt") and not (isinstance(self.checkpoint, int) and self.checkpoint > 0):
            raise ProblemError(f'checkpoint must be None, "sqrt" or a positive count, but is {self.checkpoint!r}.')
        if self.learned_start is not None and self.truncate is not None:
            raise ProblemError("truncate= cuts the dependence on learned_start=: leave one of them out.")
        if self.learned_solver is None:
            self._iteration(None)

    def reach(self, problem: Problem, lam: Tree, w0: Tree, data: Tree) -> Tree:
        """What depends on ``lam`` besides the functions of the problem: the first learned step."""
        if self.learned_solver is None and self.learned_start is None:
            return ()
        iteration, state, _ = self._begin(problem, lam, w0, data)
        return iteration.params(iteration.advance(state, problem.lower.residual(iteration.params(state), lam, data)))

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
        learned = self.learned_solver is not None or self.learned_start is not None
        iteration, start, estimate = self._begin(problem, lam, w0, lower_data)
        steps = iteration.steps
        last = steps if self.truncate is None else self.truncate

        def run(iteration: Iteration, state: Any, lam: Tree, count: int, segment: int | None = None) -> Any:
            def advance(state):
                return iteration.advance(state, problem.lower.residual(iteration.params(state), lam, lower_data))

            return unroll(advance, state, count, segment)

        halfway = run(iteration, start, lam, steps - last)

        def objective(lam):
            at, state = iteration, halfway
            if learned:
                at, first, _ = self._begin(problem, lam, w0, lower_data)
                state = first if last == steps else halfway
            w = at.params(run(at, state, lam, last, self._segment(last)))
            value = problem.upper(w, lam, upper_data)
            return value, (value, w)

        differentiate = jax.grad if self.mode == "reverse" else jax.jacfwd
        grad, (value, w) = differentiate(objective, has_aux=True)(lam)
        direct = jax.grad(problem.upper, argnums=1)(w, lam, upper_data)
        residual_norm = tree.norm(problem.lower.residual(w, lam, lower_data))
        finite = jnp.where(tree.all_finite(w), code(Status.OK), code(Status.DIVERGED))
        forth = SolveInfo(jnp.asarray(steps), jnp.asarray(steps + 1 + estimate), residual_norm, finite)
        nan = jnp.full_like(residual_norm, jnp.nan)  # the adjoint is never formed, so it has no residual
        products = last * (tree.size(lam) if self.mode == "forward" else 1 + (self.checkpoint is not None))
        back = SolveInfo(jnp.asarray(last), jnp.asarray(products), nan, code(Status.OK))
        distance, v, error_info, certificate = None, tree.zeros_like(w), nothing_done(w), None
        if error and not learned:
            at = Instance(problem, lam, lower_data, upper_data)
            distance, v, error_info = distance_to_hypergradient(at, w, grad)
            certificate = certify(at, w, v, grad, forth.matvecs + back.matvecs)
        return conclude(
            problem, f"ITD ({type(iteration).__name__})", grad=grad,
            scale=tree.norm(direct) + tree.norm(tree.sub(grad, direct)), value=value, w=w, v=v,
            lower=forth, adjoint=back, error=distance, error_info=error_info, certificate=certificate,
        )  # fmt: skip

    def _begin(self, problem: Problem, lam: Tree, w0: Tree, data: Tree) -> tuple[Iteration, Any, int]:
        """The iteration with its numbers, its starting state, and the matvecs of estimating them."""
        w0 = w0 if self.learned_start is None else tree.strong(self.learned_start(lam))
        iteration, estimate = self._iteration(lam).prepare(problem.lower, lam, w0, data)
        return iteration, iteration.init(w0), estimate

    def _iteration(self, lam: Tree) -> Iteration:
        """The solver, if it can be unrolled for a known number of steps."""
        solver = Picard(steps=self.steps) if self.solver is None else self.solver
        if self.learned_solver is not None:
            solver = self.learned_solver(lam)
        if not hasattr(solver, "advance"):
            raise ProblemError(
                f"ITD differentiates the steps of its solver, but {type(solver).__name__} has none that can be "
                "differentiated: use Picard, GradientDescent, HeavyBall, Nesterov, Anderson or Optax, or AID with it."
            )
        if solver.steps is None or solver.rtol is not None:
            raise ProblemError("ITD needs a fixed number of steps and no rtol: give steps= to ITD or to its solver.")
        if self.truncate is not None and not 0 < self.truncate <= solver.steps:
            raise ProblemError(
                f"truncate must lie between 1 and the number of steps, {solver.steps}, but is {self.truncate}."
            )
        return solver

    def _segment(self, steps: int) -> int | None:
        """Steps between two checkpoints."""
        if self.checkpoint != "sqrt":
            return self.checkpoint
        return max(isqrt(steps), 1)
