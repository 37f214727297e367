"""L-BFGS for minimizations, on optax."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from bilevel import tree
from bilevel.loops import bounded_while
from bilevel.problems import Lower
from bilevel.solvers.base import MAX_STEPS, RUNNING, default_rtol, fallen, request, require_minimization, scale
from bilevel.status import SolveInfo, Status, code

Tree = Any


@tree.record
@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS with the zoom line search of optax.

    Parameters
    ----------
    steps
        Iterations. Without ``rtol`` exactly so many run; with it, at most (default 10000).
    rtol
        Stop after a step of norm ``<= rtol * max(norm(w), norm(w0))``. Default, where ``steps`` is not given
        either: the square root of machine epsilon.
    memory
        Pairs of vectors kept.
    max_matvecs
        Stop with ``MAX_STEPS`` when so many have been spent, give or take those of a line search; default no limit.

    Notes
    -----
    Cost: one matvec per evaluation of loss and gradient, one for the curvature along the first gradient and one
    for the residual of the value returned.
    Statuses: ``MAX_STEPS``, ``NO_DESCENT``, ``NONFINITE``.
    """

    steps: int | None = field(default=None, metadata={"static": True})
    rtol: Any = None
    memory: int = field(default=10, metadata={"static": True})
    max_matvecs: Any = None

    def __call__(
        self, lower: Lower, lam: Tree, w0: Tree, data: Tree, *, rtol: Any = None, steps: Any = None
    ) -> tuple[Tree, SolveInfo]:
        """Solve the lower level; see :class:`~bilevel.solvers.base.Solver`."""
        require_minimization("LBFGS", lower, "NewtonKrylov")
        budget, rtol, steps = request(self, rtol, steps, default=default_rtol(w0), most=MAX_STEPS)
        optimizer = optax.lbfgs(memory_size=self.memory)
        value0, g0, unit = _start(lambda w: lower.loss(w, lam, data), w0)

        def loss(w):
            return lower.loss(w, lam, data) / unit

        def body(s: _Run) -> _Run:
            value, g = (optax.tree_utils.tree_get(s.state, name) for name in ("value", "grad"))
            updates, state = optimizer.update(g, s.state, s.w, value=value, grad=g, value_fn=loss)
            w = optax.apply_updates(s.w, updates)
            search = optax.tree_utils.tree_get(state, "info")
            step_norm = tree.norm(updates)
            first = tree.norm(g0) / unit
            small = (step_norm <= rtol * scale(w, w0)) & fallen(tree.norm(g), first, s.step)
            # A failed search returns a tiny step too; it counts as the end only where the gradient is zero.
            honest = (search.decrease_error <= 0) | (tree.norm(g) == 0)
            status = jnp.where(
                small & (not budget), jnp.where(honest, code(Status.OK), code(Status.NO_DESCENT)), code(RUNNING)
            )
            status = jnp.where(tree.all_finite(w), status, code(Status.NONFINITE))
            evaluations = s.matvecs + search.num_linesearch_steps
            return _Run(w, state, s.step + 1, evaluations, status)

        state = optax.tree_utils.tree_set(optimizer.init(w0), value=value0 / unit, grad=tree.scale(1 / unit, g0))
        start = _Run(w0, state, jnp.asarray(0), jnp.asarray(2), code(RUNNING))

        def unfinished(s: _Run):
            within = True if self.max_matvecs is None else s.matvecs + 1 < self.max_matvecs
            return (s.status == RUNNING) & within

        run = bounded_while(unfinished, body, start, steps)
        F = lower.residual(run.w, lam, data)
        status = jnp.where((run.status == RUNNING) & budget, code(Status.OK), run.status)
        status = jnp.where(tree.all_finite((run.w, F)), status, code(Status.NONFINITE))
        return run.w, SolveInfo(run.step, run.matvecs + 1, tree.norm(F), status)


class _Run(NamedTuple):
    w: Tree
    state: Any
    step: Int[Array, ""]
    matvecs: Int[Array, ""]
    status: Int[Array, ""]


def _start(loss: Callable[[Tree], Any], w0: Tree) -> tuple[Any, Tree, Any]:
    """Loss and gradient at ``w0`` and the curvature along the gradient, the unit in which the loss is measured.

    The search begins with the gradient as its step: in this unit that is Cauchy's step, whatever the scale of the
    loss, and a short one at the solution.
    """
    value, g = jax.value_and_grad(loss)(w0)
    norm_g = tree.norm(g)
    direction = tree.scale(1 / jnp.where(norm_g > 0, norm_g, 1.0), g)
    curvature = jnp.abs(tree.dot(direction, jax.jvp(jax.grad(loss), (w0,), (direction,))[1]))
    return value, g, jnp.where(curvature == 0, 1.0, curvature)
