"""The Lagrangian of a bilevel problem; hypergradient, correction and refinement are read off it.

``l(w, v, lam) = U(w, lam) - <v, F(w, lam)>``. Where ``F = 0`` and ``d_w l = 0`` the hypergradient is
``d_lam l``. The point ``(w, v)`` of a solver is only close to that; Newton's method on the two equations,

    A dw = -F,      A^T dv = d_w l + d2_ww l dw,      A = d_w F,

gives to first order the change of ``d_lam l``, which is minus its error:

    correction = d2_lam,w l dw - (d_lam F)^T dv.

Where A is indefinite or nearly singular the adjoint equation may be damped, ``d_w l = delta v``, that is
``(A^T + delta I) v = d_w U``. ``F = 0`` stays as it is, and of Newton's method the second equation becomes

    (A^T + delta I) dv = d_w l - delta v + d2_ww l dw.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel import tree
from bilevel.linear.operator import LinearOperator, damped
from bilevel.problems import Problem
from bilevel.status import SolveInfo, Status, code

Tree = Any
LinearSolve = Callable[[LinearOperator, Tree], tuple[Tree, SolveInfo]]


class Instance(NamedTuple):
    """A problem at given hyperparameters and data: what stays fixed while ``w`` and ``v`` move."""

    problem: Problem
    lam: Tree
    lower_data: Tree
    upper_data: Tree

    def linearize(self, w: Tree) -> tuple[Tree, LinearOperator]:
        """``F`` and ``A = d_w F`` at ``w``."""
        return self.problem.lower.linearize(w, self.lam, self.lower_data)

    def upper_gradient(self, w: Tree) -> tuple[Float[Array, ""], Tree]:
        """``U`` and ``d_w U`` at ``w``."""
        return jax.value_and_grad(self.problem.upper)(w, self.lam, self.upper_data)

    def value(self, w: Tree, v: Tree) -> Float[Array, ""]:
        """``l(w, v, lam) = U(w, lam) - <v, F(w, lam)>``."""
        pairing = self.problem.lower.pairing(v, w, self.lam, self.lower_data)
        return self.problem.upper(w, self.lam, self.upper_data) - pairing


class Gradient(NamedTuple):
    """``d_lam l`` and the size of its two terms before they cancel."""

    grad: Tree
    scale: Float[Array, ""]


class Correction(NamedTuple):
    """A Newton step on ``F = 0``, ``d_w l = delta v``, and what it changes to first order.

    ``change`` is the correction of ``d_lam l``: its norm estimates the error of ``d_lam l`` at ``(w, v)``. ``F`` is
    the residual there.
    """

    F: Tree
    dw: Tree
    dv: Tree
    change: Tree
    lower: SolveInfo
    adjoint: SolveInfo


def gradient(at: Instance, w: Tree, v: Tree) -> Gradient:
    """Hypergradient ``d_lam l = d_lam U - (d_lam F)^T v`` at approximate ``w``, ``v`` (AID)."""
    upper = jax.grad(at.problem.upper, argnums=1)(w, at.lam, at.upper_data)
    lower = _mixed(at, w, v)
    return Gradient(tree.sub(upper, lower), tree.norm(upper) + tree.norm(lower))


def correct(
    at: Instance, w: Tree, v: Tree, solve: LinearSolve, solve_adjoint: LinearSolve | None = None, damping: Any = None
) -> Correction:
    """Newton step from ``(w, v)`` with the given linear solves (``solve_adjoint`` defaults to ``solve``).

    With a ``damping`` delta of the adjoint equation ``A + delta I`` must be definite where else A must: ``solve`` is
    given an A of which nothing is said. Cost: the two solves, one matvec for ``d_w l`` and one for ``d2_ww l dw``,
    both counted to the adjoint.
    """
    F, A = at.linearize(w)
    dw, lower = solve(replace(A, definite=A.definite and damping is None), tree.neg(F))
    # One derivative along dw of (d_w l, d_lam l) gives the primal d_w l and both second derivatives.
    by_w_lam = jax.grad(lambda w, lam: at._replace(lam=lam).value(w, v), argnums=(0, 1))
    (l_w, _), (l_ww_dw, l_lw_dw) = jax.jvp(lambda w: by_w_lam(w, at.lam), (w,), (dw,))
    residual = l_w if damping is None else tree.axpy(-damping, v, l_w)
    dv, adjoint = (solve_adjoint or solve)(damped(A.T, damping), tree.add(residual, l_ww_dw))
    change = tree.sub(l_lw_dw, _mixed(at, w, dv))
    return Correction(F, dw, dv, change, lower, adjoint.plus(2))


def refine(
    at: Instance, w: Tree, v: Tree, solve: LinearSolve, solve_adjoint: LinearSolve | None = None, damping: Any = None
) -> tuple[Tree, Tree, Correction]:
    """``(w + dw, v + dv)`` by :func:`correct`: the error of ``d_lam l`` there is of second order."""
    step = correct(at, w, v, solve, solve_adjoint, damping)
    return tree.add(w, step.dw), tree.add(v, step.dv), step


def as_saddle(problem: Problem, status: Int[Array, ""]) -> Int[Array, ""]:
    """Negative curvature met on a minimization means that the point is a saddle."""
    if problem.lower.kind != "minimization":
        return status
    return jnp.where(status == Status.NEGATIVE_CURVATURE, code(Status.SADDLE), status)


def _mixed(at: Instance, w: Tree, v: Tree) -> Tree:
    """``(d_lam F)^T v``."""
    return jax.grad(lambda lam: at.problem.lower.pairing(v, w, lam, at.lower_data))(at.lam)
