"""The oracle: dense Newton to rounding, dense adjoint. For checks and small problems."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel import tree
from bilevel.certificates.aposteriori import certify
from bilevel.lagrangian import Instance, correct, gradient
from bilevel.linear.dense import Dense
from bilevel.loops import bounded_while
from bilevel.methods.base import Hypergradient, conclude
from bilevel.problems import Problem
from bilevel.solvers import default_solver
from bilevel.status import SolveInfo, Status, code

Tree = Any

POLISH_STEPS = 12


@tree.record
@dataclass(frozen=True)
class Exact:
    """Hypergradient to rounding: Newton steps with the dense ``A`` until the residual stops falling, dense adjoint.

    Notes
    -----
    Cost: n matvecs and O(n^3) operations a Newton step, n^2 memory. The error is the dense correction, that is
    the rounding error times the condition of ``A``, estimated.
    """

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
        """Compute the hypergradient; see :class:`~bilevel.methods.base.Method`."""
        at = Instance(problem, lam, lower_data, upper_data)
        w, lower = default_solver(problem.lower)(problem.lower, lam, w0, lower_data)
        w, lower = _polish(at, w, lower)
        _, A = at.linearize(w)
        value, d_w_U = at.upper_gradient(w)
        v, adjoint = Dense()(A.T, d_w_U)
        result = gradient(at, w, v)
        correction = correct(at, w, v, Dense())
        certificate = None
        if error:
            corrected = tree.add(w, correction.dw), tree.add(v, correction.dv)
            certificate = certify(at, *corrected, result.grad, lower.matvecs)
        return conclude(
            problem, "Exact", grad=result.grad, scale=result.scale, value=value, w=w, v=v, lower=lower, adjoint=adjoint,
            error=tree.norm(correction.change), error_info=correction.lower.then(correction.adjoint),
            certificate=certificate,
        )  # fmt: skip


class _Polish(NamedTuple):
    w: Tree
    residual_norm: Float[Array, ""]
    matvecs: Int[Array, ""]
    improving: Array


def _polish(at: Instance, w: Tree, info: SolveInfo) -> tuple[Tree, SolveInfo]:
    """Full Newton steps while they at least halve the residual."""

    def body(s: _Polish) -> _Polish:
        F, A = at.linearize(s.w)
        dw, dense = Dense()(A, tree.neg(F))
        w = tree.add(s.w, dw)
        norm = tree.norm(at.problem.lower.residual(w, at.lam, at.lower_data))
        better = norm < s.residual_norm
        improving = norm < s.residual_norm / 2
        w = tree.where(better, w, s.w)
        return _Polish(w, jnp.minimum(norm, s.residual_norm), s.matvecs + dense.matvecs + 2, improving)

    start = _Polish(w, info.residual_norm, info.matvecs, jnp.asarray(True))
    end = bounded_while(lambda s: s.improving, body, start, POLISH_STEPS)
    # The first solver may stop at its own tolerance or at rounding: what counts is where the polish ended.
    at_rounding = end.residual_norm <= jnp.sqrt(tree.eps(w)) * info.residual_norm
    status = jnp.where(at_rounding & jnp.isfinite(end.residual_norm), code(Status.OK), info.status)
    return end.w, replace(info, residual_norm=end.residual_norm, matvecs=end.matvecs, status=status)
