"""Richardson's iteration; on ``A^T`` of a fixed-point problem it is the fixed-point method AID-FP."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel import tree
from bilevel.linear.operator import LinearOperator, request, start
from bilevel.linear.spectral import largest_eigenvalue
from bilevel.loops import bounded_while, full_length_loop
from bilevel.status import ProblemError, SolveInfo, Status, code

Tree = Any


@tree.record
@dataclass(frozen=True)
class Richardson:
    """``x <- x + step (b - A x)``, linearly convergent when ``I - step A`` is a contraction.

    With ``A = I - d_w Phi^T``, ``b = d_w U`` and ``step = 1`` this is ``v <- d_w Phi^T v + d_w U``, AID-FP
    (Grazzi et al. 2020, arXiv 2006.16218, Section 2.2).

    Parameters
    ----------
    steps
        Iterations. Without ``rtol`` exactly so many run; with it, at most (default 10000).
    rtol
        Stop at ``norm(b - A x) <= rtol * norm(b)``. Default, where ``steps`` is not given either: the
        square root of machine epsilon.
    step
        The step; default with a preconditioner one, without it that of the lower-level map, else one over the
        largest eigenvalue, estimated.
    preconditioner
        A :class:`~bilevel.linear.operator.Preconditioner` ``M``: ``x <- x + step M (b - A x)``.

    Notes
    -----
    Cost: one matvec a step, one for a warm start, those of the estimate and the preconditioner. Statuses:
    ``MAX_STEPS``, ``DIVERGED``, ``NONFINITE``.
    """

    steps: int | None = field(default=None, metadata={"static": True})
    rtol: Any = None
    step: Any = None
    preconditioner: Any = None

    needs_symmetry = False

    def __call__(
        self,
        A: LinearOperator,
        b: Tree,
        x0: Tree | None = None,
        *,
        preconditioner: Callable[[Tree], Tree] | None = None,
        rtol: Any = None,
        steps: Any = None,
    ) -> tuple[Tree, SolveInfo]:
        """Solve ``A x = b``; see :class:`~bilevel.linear.operator.LinearSolver`."""
        ask = request(self, A, b, preconditioner=preconditioner, rtol=rtol, steps=steps, most=10_000)
        step, estimate = self._step(A, b, preconditioned=ask.preconditioner is not None)
        x, r, matvecs = start(A, b, x0)
        limit = tree.norm(b) / tree.eps(b) ** 0.5  # beyond it the iteration diverges

        def unfinished(s: _Run):
            return jnp.isfinite(s.residual_norm) & (
                ask.budget | ((s.residual_norm > ask.target) & (s.residual_norm <= limit))
            )

        def body(s: _Run) -> _Run:
            x = tree.axpy(step, ask.precondition(s.r), s.x)
            r = tree.sub(b, A.mv(x))
            return _Run(x, r, tree.norm(r), s.step + 1)

        start_run = _Run(x, r, tree.norm(r), jnp.asarray(0))
        loop = full_length_loop if ask.budget else bounded_while
        end = loop(unfinished, body, start_run, ask.steps)
        status = jnp.where(ask.budget | (end.residual_norm <= ask.target), code(Status.OK), code(Status.MAX_STEPS))
        status = jnp.where(end.residual_norm > limit, code(Status.DIVERGED), status)
        status = jnp.where(jnp.isfinite(end.residual_norm), status, code(Status.NONFINITE))
        return end.x, SolveInfo(end.step, end.step + matvecs + estimate + ask.matvecs, end.residual_norm, status)

    def _step(self, A: LinearOperator, b: Tree, preconditioned: bool) -> tuple[Any, int]:
        """The step and the matvecs its estimate took."""
        default = 1.0 if preconditioned else A.step
        step = default if self.step is None else self.step
        if step is not None:
            return step, 0
        if not A.symmetric:
            raise ProblemError("Richardson needs step= on a nonsymmetric operator without a map; give one.")
        largest, matvecs = largest_eigenvalue(A, b)
        return 1 / largest, matvecs


class _Run(NamedTuple):
    x: Tree
    r: Tree
    residual_norm: Float[Array, ""]
    step: Int[Array, ""]
