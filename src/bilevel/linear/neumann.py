"""The truncated Neumann series, a Richardson iteration of fixed length."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bilevel import tree
from bilevel.linear.operator import LinearOperator
from bilevel.linear.richardson import Richardson
from bilevel.status import SolveInfo

Tree = Any


@tree.record
@dataclass(frozen=True)
class Neumann:
    """``x = step * sum_{i=0}^{terms} (I - step A)^i b``: the Neumann series of ``A^{-1} b``, cut off.

    It is Richardson's iteration from zero with ``terms + 1`` steps, and so converges when ``I - step A`` is a
    contraction: ``b - A x = (I - step A)^(terms + 1) b``.

    Parameters
    ----------
    terms
        Highest power K of ``I - step A``.
    step
        The step; defaults as in :class:`~bilevel.linear.richardson.Richardson`.
    preconditioner
        A :class:`~bilevel.linear.operator.Preconditioner` M: the series is that of ``I - step M A``.

    Notes
    -----
    A truncated series starts from nothing: ``x0`` is ignored. Cost: ``terms + 1`` matvecs, the last of them for the
    residual of the value returned, and those of an estimated step and of the preconditioner. ``steps`` of a call
    stands for ``terms + 1``; with an ``rtol`` the series may end earlier, and fails where it ends above it.
    Statuses: those of Richardson.

    References
    ----------
    Lorraine, Vicol and Duvenaud 2020, arXiv 1911.02590.
    """

    terms: int = field(default=20, metadata={"static": True})
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
        del x0
        richardson = Richardson(self.terms + 1, step=self.step, preconditioner=self.preconditioner)
        return richardson(A, b, preconditioner=preconditioner, rtol=rtol, steps=steps)
