"""Rounds on the Lagrangian: each is a Newton step on its stationarity, and tells the error of the point before it."""

from typing import Any, NamedTuple

from bilevel import tree
from bilevel.automatic.kernels import Sizes, Stationary, stationarity
from bilevel.automatic.tools import of_little_use
from bilevel.engine import Engine
from bilevel.lagrangian import Instance
from bilevel.solvers.base import FIRST_FORCING, HELD
from bilevel.solvers.newton import RUNNING, Descent, descend
from bilevel.status import Status

Tree = Any

MOST_ROUNDS = 24
ROUNDING = 4.0  # rounding of the gradient, in eps of its terms
LOOSE = 0.1  # relative residual, and growth of the solution, of solves that tell an error
AHEAD = 0.2  # of the tolerance: the error that a round aims at


class Ask(NamedTuple):
    """What is asked for: ``error <= tol norm(grad) + atol`` within ``most`` products."""

    tol: Any
    atol: Any
    most: Any


class Rounds(NamedTuple):
    """The point judged last, and what the rounds have come to."""

    point: Stationary
    sizes: Sizes
    at_point: Any  # norm of F there
    descent: Descent  # at the w of the round after
    expected: Any  # relative error of the point, before it is judged
    error: Any
    scale: Any  # of the terms of grad, and of its change by rounding of w
    sensitivity: Any  # largest change of grad over that of w
    trusted: Any  # the linear model behind the error holds
    count: Any
    stalls: Any  # rounds in a row that did not halve the error
    lower: Any  # products
    adjoint: Any
    last: Any  # products of the last round: what the error has cost
    lower_status: Any
    status: Any
    running: Any


def rounds(engine: Engine, at: Instance, tools: Any, ask: Ask, begin: Rounds, rtol: Any, cold: bool) -> Rounds:
    """Rounds until the error is accepted, or does not fall any more.

    From ``(w, v)``: Newton's method for F, then ``A^T dv = d_w l(w', v)``; the change of ``d_lam l`` is the error of
    the one before, which is returned. The first round of a cold start comes from nowhere, and is not judged.
    """
    xp, eps = engine.xp, tree.eps(begin.point.w)

    def body(s: Rounds) -> Rounds:
        p, n = s.point, s.sizes
        first, ones = s.count == 0, xp.ones_like(s.descent.size.residual)
        unjudged, left = first & cold, ask.most - s.lower - s.adjoint
        aim = xp.clip(AHEAD * ask.tol / s.expected, max(tools.finest, 16 * eps), LOOSE)
        if engine.eager and not first and aim >= LOOSE:
            tools.price = None  # solves that only tell the error are no reason for an inverse
        eta, settle = xp.where(first, FIRST_FORCING, aim), xp.where(first, xp.inf, LOOSE)
        status = xp.where(s.lower_status > 0, s.lower_status, RUNNING)
        start = s.descent._replace(status=status, stalls=0 * s.descent.stalls)
        d = descend(engine, at, tools, start, rtol, eta, settle * ones, s.descent.matvecs + left // 2)
        stuck = (d.status == int(Status.NO_DESCENT)) & (d.length <= LOOSE * d.scale)
        lower_status = xp.where(stuck, 0, d.status)

        memory, made = tools.refresh(d.memory, d.point.w, first | of_little_use(d))
        d = d._replace(memory=memory, matvecs=d.matvecs + made)
        half, h = engine.call(stationarity, at, d.point.w, p.v, p.v, 0 * n.grad, p.grad)
        aim = xp.where(unjudged, xp.maximum(rtol, tools.finest), aim)
        dv, b = tools.solve(memory, d.point.w, half.l_w, ones, aim * ones, LOOSE * ones, left // 2, transposed=True)
        after, m = engine.call(stationarity, at, d.point.w, p.v, dv, 0 * n.grad + 1, p.grad)

        length, size_w, scale_w = (whole(xp, x) for x in (d.length, d.size.w, d.scale))
        by_w = ~first & (n.l_w <= 0.5 * h.l_w)  # what has changed is due to w
        ratio = xp.where(by_w, m.change / xp.maximum(length, eps * scale_w), 0.0)
        sensitivity = xp.maximum(s.sensitivity, ratio)
        scale = xp.maximum(n.scale, sensitivity * xp.maximum(size_w, eps * scale_w))
        error = xp.maximum(m.change, eps * xp.maximum(ROUNDING * n.scale, sensitivity * size_w))
        error = xp.where(unjudged, xp.inf, error)
        left_of_l_w = whole(xp, b.residual) + HELD * h.l_w
        solved = (whole(xp, b.norm) <= eps**0.5 * m.v) | (m.l_w <= left_of_l_w)
        trusted = xp.all(d.trusted) & solved & xp.all(b.status == 0)
        status, failed = serious(xp, b.status), xp.any(lower_status > 0)
        settled = accepts(xp, error, n.grad, scale, ask) & trusted & ~failed
        stalls = xp.where((error > 0.5 * s.error) & ~unjudged, s.stalls + 1, 0)
        if engine.eager and not settled and not (trusted and stalls == 0) and tools.improve():
            stalls, status = 0 * s.stalls, 0 * s.status
        spent_w, spent_v = xp.sum(d.matvecs - s.descent.matvecs), xp.sum(b.matvecs) + 2
        hopeless = (stalls >= 3) | (s.count + 1 >= MOST_ROUNDS) | (spent_w + spent_v >= left)
        going = ~settled & ~failed & ~xp.any(status > 0) & ~hopeless & m.finite
        judged = s._replace(
            descent=d, error=error, scale=scale, sensitivity=sensitivity, trusted=trusted, count=s.count + 1,
            stalls=stalls, lower_status=lower_status, status=status, running=going,
        )  # fmt: skip
        relative = xp.where(unjudged, 1.0, error / xp.where(m.grad > 0, m.grad, 1.0))
        taken = judged._replace(
            point=after, sizes=m, at_point=d.size.residual, expected=xp.maximum(aim * relative, eps),
            lower=s.lower + spent_w, adjoint=s.adjoint + spent_v,
        )  # fmt: skip
        # What the first round of a cold start has found is the answer however it ends: there is nothing before it.
        return engine.choose(going | unjudged, taken, judged._replace(last=spent_w + spent_v))

    return engine.loop(lambda s: s.running, body, begin)


def serious(xp: Any, status: Any) -> Any:
    """A status that is about the problem, not about how far a solve came: the error tells that."""
    return xp.where(status <= int(Status.STAGNATED), 0, status)


def accepts(xp: Any, error: Any, size: Any, scale: Any, ask: Ask) -> Any:
    """Acceptance rule ``error <= tol * norm(grad) + atol``; ``atol`` None: ``tol * sqrt(eps) * scale``."""
    atol = ask.tol * xp.finfo(error.dtype).eps ** 0.5 * scale if ask.atol is None else ask.atol
    return error <= ask.tol * size + atol


def whole(xp: Any, norms: Any) -> Any:
    """The norm of all members together."""
    return xp.linalg.norm(norms) if xp.ndim(norms) else norms
