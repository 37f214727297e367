"""Newton's method with backtracking on the loss, or where there is none on the norm of F, for any linear solver."""

from typing import Any, NamedTuple, Protocol

import jax

from bilevel import tree
from bilevel.engine import Engine
from bilevel.lagrangian import Instance
from bilevel.solvers.base import FALLEN, HELD, MAX_NEWTON_STEPS, forcing
from bilevel.solvers.line_search import DECREASE, HALVINGS, MAX_TRIALS
from bilevel.status import Status

Tree = Any

RUNNING = int(Status.MAX_STEPS)  # what a descent has come to if it ends first
ROUNDING = 32.0  # eps |A| |w| of the residual that are rounding
BEFORE = 10.0  # times the last step: what the one before it may have been at most
MOST_STALLS = 10  # steps in a row that lower neither the value, beyond its rounding, nor the residual


class Point(NamedTuple):
    """A point of the lower level and its residual."""

    w: Tree
    F: Tree


class Size(NamedTuple):
    """Numbers of a point: what is to fall (the loss, or the norm of F where there is none), and norms."""

    value: Any
    residual: Any
    w: Any


class Solution(NamedTuple):
    """Numbers of a solution x of ``A x = b``."""

    norm: Any  # of x
    slope: Any  # <b, x>
    residual: Any  # norm(b - A x), where it is known
    A: Any  # norm(A), from below
    matvecs: Any
    status: Any


class Descent(NamedTuple):
    """Where Newton's method stands."""

    point: Point
    size: Size
    p: Tree  # the last step
    memory: Any  # of the linear solver
    norm_before: Any  # norm before the last step
    model: Any  # norm that its linear model predicted after it
    length: Any  # of the last step
    scale: Any  # what lengths are relative to: max(|w|, |w0|)
    trusted: Any  # whether the last step did what its model had predicted, or is rounding
    lowest: Any  # norm of F so far
    stalls: Any
    step: Any
    matvecs: Any
    status: Any


class Trial(NamedTuple):
    """A point along a step."""

    point: Point
    size: Size
    alpha: Any
    count: Any


class Directions(Protocol):
    """How the steps are found."""

    def begin(self, w: Tree) -> Any:
        """The first memory."""
        ...

    def direction(self, d: Descent, sign: Any, rtol: Any, settle: Any, left: Any) -> tuple[Tree, Solution, Any]:
        """``p = sign A^-1 F`` where a descent stands, what is known of it, and the memory."""
        ...


@jax.jit
def evaluate(at: Instance, w: Tree, p: Tree, alpha: Any) -> tuple[Point, Size]:
    """The point ``w + alpha p``. Cost: one matvec."""

    def of(one: Any, w: Tree, lam: Tree, data: Tree, p: Tree, alpha: Any) -> tuple[Point, Size]:
        w = tree.axpy(alpha, p, w)
        if one.kind == "minimization":
            value, F = jax.value_and_grad(one.function)(w, lam, data)
            return Point(w, F), Size(value, tree.quick_norm(F), tree.quick_norm(w))
        F = one.residual(w, lam, data)
        return Point(w, F), Size(tree.quick_norm(F), tree.quick_norm(F), tree.quick_norm(w))

    return at.problem.lower.each(of, w, at.lam, at.lower_data, p, alpha)


def begin_at(engine: Engine, at: Instance, linear: Directions, w0: Tree, zero: Any) -> Descent:
    """Newton's method before its first step; ``zero`` is a number of each member."""
    xp, tiny = engine.xp, float(engine.xp.finfo(zero.dtype).tiny) ** 0.5
    point, size = engine.call(evaluate, at, w0, w0, zero)
    infinite, none = xp.full_like(zero, xp.inf), xp.zeros_like(zero, int)
    status = xp.where(xp.isfinite(size.residual) & xp.isfinite(size.value), RUNNING, int(Status.NONFINITE))
    return Descent(
        point, size, w0, linear.begin(w0), infinite, infinite, infinite, xp.maximum(size.w, tiny), none > 0, infinite,
        none, none, none + 1, status,
    )  # fmt: skip


def descend(
    engine: Engine, at: Instance, linear: Directions, begin: Descent, rtol: Any, eta: Any, settle: Any, most: Any
) -> Descent:
    """Steps until one is below ``rtol max(|w|, |w0|)`` and F after it is what was predicted.

    The linear solves are as loose as Newton's model is trusted (Eisenstat and Walker 1996, choice 1), at most ``eta``.
    """
    xp, eps = engine.xp, tree.eps(begin.point.w)
    minimization = at.problem.lower.kind == "minimization"

    def unfinished(s: Descent) -> Any:
        return (s.status == RUNNING) & (s.step < MAX_NEWTON_STEPS) & (s.matvecs < most)

    def body(s: Descent) -> Descent:
        going, goal = unfinished(s), rtol * s.scale
        loose = xp.minimum(forcing(s.size.residual, s.norm_before, s.model, s.length, goal, xp), eta)
        p, d, memory = linear.direction(s, xp.where(going, -1.0, 0.0), loose, settle, most - s.matvecs)
        slope = -d.slope if minimization else -s.size.residual
        noise = 8 * eps * abs(s.size.value)
        predicted = d.residual + HELD * s.size.residual + ROUNDING * eps * d.A * s.scale

        def acceptable(t: Trial) -> Any:
            falls = t.size.value <= s.size.value + DECREASE * t.alpha * slope + noise
            return falls | ((d.norm <= goal) & (t.size.residual <= predicted))

        def unacceptable(t: Trial) -> Any:
            return ~acceptable(t) & (t.alpha * d.norm > eps * s.scale) & (t.count < MAX_TRIALS)

        def shorten(t: Trial) -> Trial:
            again = unacceptable(t)
            alpha = t.alpha * xp.where(again, xp.where(t.count <= HALVINGS, 0.5, 0.1), 1.0)
            return Trial(*engine.call(evaluate, at, s.point.w, p, alpha), alpha, t.count + again)

        one = xp.ones_like(s.size.residual)
        t = Trial(*engine.call(evaluate, at, s.point.w, p, one), one, xp.ones_like(s.step))
        t = engine.loop(unacceptable, shorten, t)
        moved = acceptable(t) & (slope <= 0)
        trusted = ((t.alpha == 1) | ~moved) & ((d.norm <= eps**0.5 * s.scale) | (t.size.residual <= predicted))
        # Off the floor of a curved valley one step may be short, and the next, along it, long.
        reached = trusted & (d.norm <= goal) & (s.length <= BEFORE * goal)
        lowered = (t.size.value < s.size.value - noise) | (t.size.residual < FALLEN * s.lowest)
        stalls = xp.where(lowered, 0, s.stalls + 1)
        status = xp.where(moved & (stalls < MOST_STALLS), RUNNING, int(Status.NO_DESCENT))
        status = xp.where(reached, int(Status.OK), status)
        sound = xp.isfinite(s.size.residual) & xp.isfinite(slope) & (d.status != int(Status.NONFINITE))
        new = s._replace(
            norm_before=s.size.residual, model=d.residual, length=t.alpha * d.norm, scale=xp.maximum(s.scale, t.size.w),
            trusted=trusted, lowest=xp.minimum(s.lowest, t.size.residual), stalls=stalls, step=s.step + 1,
            matvecs=s.matvecs + d.matvecs + t.count, status=xp.where(sound, status, int(Status.NONFINITE)),
        )  # fmt: skip
        numbers = {
            name: xp.where(going, x, getattr(s, name)) for name, x in new._asdict().items() if name not in VECTORS
        }
        return new._replace(point=t.point, size=t.size, p=p, memory=memory, **numbers)

    return engine.loop(unfinished, body, begin)


VECTORS = ("point", "size", "p", "memory")  # of a descent: those of a member that has ended stay by a step of zero
