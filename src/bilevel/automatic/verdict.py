"""What is said of the last point: the probe that looks for what no right-hand side has met, and the status."""

from typing import Any, NamedTuple

import numpy as np

from bilevel import tree
from bilevel.automatic.kernels import defect
from bilevel.automatic.rounds import LOOSE, ROUNDING, Ask, Rounds, accepts, serious, whole
from bilevel.certificates.estimate import RESOLVED
from bilevel.engine import Engine
from bilevel.lagrangian import Instance
from bilevel.linear.dense import fixed_vector
from bilevel.linear.spectral import probe_vector
from bilevel.methods.base import Hypergradient
from bilevel.solvers.base import MAX_NEWTON_STEPS
from bilevel.solvers.newton import ROUNDING as BLUR
from bilevel.status import SolveInfo, Status

SHARE = 0.1  # of what a direction holds of a random vector on average: eleven of twelve hold more
STABLE = 0.3  # relative change of A, against its inverse, over the distance to the solution
VANISHING = 100.0  # a gradient below so many times its own rounding error is zero for all that can be known
CONSTANT_MOST = 4096  # entries of a vector that a compiled program may hold as a constant


class Probe(NamedTuple):
    """What the probe has found."""

    status: Any
    growth: Any  # by which the inverse of A enlarges rounding of F, in units of w
    matvecs: Any


def probe(engine: Engine, at: Instance, tools: Any, r: Rounds, left: Any, wanted: bool) -> Probe:
    """Look for negative curvature and null directions by ``A x = z`` with a random z, to below what each holds of z."""
    xp, d = engine.xp, r.descent
    w, n, ones = d.point.w, d.point.w.shape[-1], xp.ones_like(d.size.residual)
    if not wanted or (engine.eager and np.any(r.status + r.lower_status)):
        return Probe(0 * r.status, 0 * r.scale, 0 * r.count)
    drawn = fixed_vector(n).astype(w.dtype) if engine.eager or n <= CONSTANT_MOST else probe_vector(w.ravel()[:n])
    z, norm_z = xp.broadcast_to(drawn, w.shape), n**0.5
    x, s = tools.solve(d.memory, w, z, ones, min(0.3 * LOOSE, SHARE / n**0.5) * ones, xp.inf * ones, left)
    is_map, eps = at.problem.lower.kind == "fixed_point", tree.eps(w)
    growth = (1.0 if is_map else s.A) * s.norm / norm_z  # A = I - J is known to rounding of J, that is of one
    # Whether x still solves A(w') x = z nearly at a w' as far away as the solution may be: what the last step has left,
    # and along x what rounding leaves of w. Where it does not, the inverse is made of the distance to a double root.
    part = xp.minimum(d.size.residual / xp.where(d.norm_before > 0, d.norm_before, 1.0), 1.0)
    blur = BLUR * eps * growth * d.size.w / xp.where(s.norm > 0, s.norm, 1.0)
    _, change = engine.call(defect, at, w, d.p, part, x, blur, z)
    unseen = is_map & (100 * eps * growth >= 1)
    unseen |= (s.status == int(Status.MAX_STEPS)) | (s.status == int(Status.STAGNATED))
    unseen |= (s.status == int(Status.OK)) & ~(change <= STABLE * norm_z)
    status = xp.where(unseen & (s.matvecs < left), int(Status.SINGULAR), s.status)
    of_inverse = tools.status(d.memory)
    return Probe(xp.where(of_inverse > 0, of_inverse, status), xp.max(growth), xp.sum(s.matvecs + 1))


def verdict(engine: Engine, at: Instance, ask: Ask, r: Rounds, probe: Probe, name: str) -> Hypergradient:
    """The answer with its error and its status."""
    xp, p, n, eps = engine.xp, r.point, r.sizes, tree.eps(r.point.w)

    def named(status: Any) -> Any:
        """Negative curvature of a minimization is a saddle."""
        saddle = (status == int(Status.NEGATIVE_CURVATURE)) & (at.problem.lower.kind == "minimization")
        return xp.where(saddle, int(Status.SADDLE), status)

    # The first failure in causal order; of a batch the gravest of its members.
    of_probe = serious(xp, probe.status)
    status = xp.where(r.status > 0, r.status, of_probe)
    status = xp.max(named(xp.where(r.lower_status > 0, r.lower_status, status)))
    # A descent that has neither failed nor taken all its steps was cut short by the budget.
    cut = (status == int(Status.MAX_STEPS)) & xp.all(r.descent.step < MAX_NEWTON_STEPS)
    status = xp.where(cut, int(Status.TOLERANCE_UNMET), status)
    status = xp.where((status == int(Status.OK)) & ~n.finite, int(Status.NONFINITE), status)

    error = xp.maximum(r.error, eps * (ROUNDING + probe.growth) * n.scale)
    met = r.trusted & accepts(xp, error, n.grad, r.scale, ask)
    # A gradient that vanishes has no relative accuracy; that it is zero to rounding is all that can be said.
    at_rounding = error <= eps**0.5 * xp.maximum(r.scale, r.sensitivity * whole(xp, r.descent.scale))
    vanishing = at_rounding & ((r.stalls > 0) | (error > r.error)) & (n.grad <= VANISHING * error)
    unmet = xp.where(vanishing, int(Status.UNRESOLVED), int(Status.TOLERANCE_UNMET))
    resolved = xp.where(error <= RESOLVED * n.grad, int(Status.OK), int(Status.UNRESOLVED))
    status = xp.where(status == int(Status.OK), xp.where(met, resolved, unmet), status)

    def info(steps: Any, matvecs: Any, residual: Any, status: Any) -> SolveInfo:
        return SolveInfo(xp.asarray(steps), xp.asarray(matvecs), residual, xp.asarray(named(status), xp.int32))

    return Hypergradient(
        grad=p.grad, value=n.value, w=p.w, v=p.v, error=error, bound=xp.full_like(n.grad, xp.nan),
        proved=xp.asarray(False), scale=r.scale, lower=info(r.descent.step, r.lower, r.at_point, r.lower_status),
        adjoint=info(r.count, r.adjoint, n.l_w, r.status),
        error_info=info(r.count, r.last + probe.matvecs, n.l_w, of_probe), status=xp.asarray(status, xp.int32),
        method=name,
    )  # fmt: skip
