"""The automatic method: accuracy in, hypergradient out."""

from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from bilevel import tree
from bilevel.automatic.flat import on_vectors
from bilevel.automatic.kernels import Sizes, Stationary, defect, layouts_of, picard, prepare, stationarity, unravel
from bilevel.automatic.rounds import LOOSE, ROUNDING, Ask, Rounds, accepts, rounds, serious, whole
from bilevel.automatic.tools import BLOCK, DENSE_MOST, Dense, Products
from bilevel.certificates.aposteriori import certify
from bilevel.certificates.estimate import RESOLVED
from bilevel.engine import HOST, TRACED, Engine
from bilevel.lagrangian import Instance
from bilevel.linear.dense import fixed_vector
from bilevel.linear.spectral import probe_vector
from bilevel.methods.base import Hypergradient
from bilevel.problems import Problem
from bilevel.solvers.base import MAX_NEWTON_STEPS
from bilevel.solvers.newton import RUNNING, Descent, begin_at
from bilevel.solvers.newton_krylov import PICARD_STEPS
from bilevel.status import SolveInfo, Status

Tree = Any

UNLIMITED = 2**30
SMALL = 1e7  # multiplications of a dense matrix and its inverse that cost less than the steering from the host
SHARE = 0.1  # of what a direction holds of a random vector on average: eleven of twelve hold more
STABLE = 0.3  # relative change of A, against its inverse, over the distance to the solution
VANISHING = 100.0  # a gradient below so many times its own rounding error is zero for all that can be known


@tree.record
@dataclass(frozen=True)
class Automatic:
    """TODO."""

    tol: Any = 1e-4
    atol: Any = None
    max_matvecs: Any = None

    def check(self, problem: Problem) -> None:
        """Every problem is allowed."""

    def __call__(self, problem, lam, w0, v0, lower_data, upper_data, key=None, *, error=True) -> Hypergradient:
        """All in one program, for use inside transformations."""
        at = Instance(problem, lam, lower_data, upper_data)
        return _complete(TRACED, at, w0, v0, self, dense=self.max_matvecs is None and _is_small(at, w0))

    def staged(self, problem, lam, w0, v0, lower_data, upper_data) -> Hypergradient:
        """Eagerly: small problems by one program, larger ones steered from the host."""
        at = Instance(problem, lam, lower_data, upper_data)
        if _is_small(at, w0) and (self.max_matvecs is None or 3 * tree.size(w0) <= int(self.max_matvecs)):
            return _small(self, at, w0, v0)
        with np.errstate(all="ignore"):
            return jax.device_put(_complete(HOST, at, w0, v0, self, dense=False))


def _is_small(at: Instance, w: Tree) -> bool:
    """Whether a dense matrix and its inverse cost less than the calls that steer the other way."""
    n = sum(map(prod, layouts_of(at, w)[0].shapes))
    return tree.size(w) * (n * n + tree.size(at.lower_data)) <= SMALL


@jax.jit
def _small(ask: Automatic, at: Instance, w0: Tree, v0: Tree | None) -> Hypergradient:
    return _complete(TRACED, at, w0, v0, ask, dense=True)


def _complete(
    engine: Engine, at: Instance, w0: Tree, v0: Tree | None, method: Automatic, *, dense: bool
) -> Hypergradient:
    """On vectors, and back to pytrees."""
    (w, v, lam), single = prepare(at, w0, v0, narrow=engine.eager)
    layouts = layouts_of(at, w0)
    flat = on_vectors(at, *layouts)._replace(lam=lam)
    if single is not None:
        single = flat._replace(lam=single[0], lower_data=single[1], upper_data=None)
    h = _on_vectors(engine, flat, single, w, v, method, dense=dense)
    if not all(x is not None and x.trivial for x in layouts):
        h = replace(h, **dict(zip(("w", "v", "grad"), unravel(layouts, h.w, h.v, h.grad), strict=True)))
    return _certified(engine, at, h)


def _on_vectors(
    engine: Engine,
    at: Instance,
    single: Instance | None,
    w0: Array,
    v0: Array | None,
    method: Automatic,
    *,
    dense: bool,
) -> Hypergradient:
    """The lower level, the adjoint and the rounds, the probe, and the verdict."""
    xp, eps, real = engine.xp, tree.eps(w0), tree.dtype(w0)
    tol = xp.asarray(method.tol, real)
    ask = Ask(tol, method.atol, UNLIMITED if method.max_matvecs is None else method.max_matvecs)
    n = w0.shape[-1]
    if dense:
        tools = Dense(engine, at)
    else:
        contraction = engine.eager and at.problem.lower.kind == "fixed_point"
        price = w0.size / BLOCK if engine.eager and n <= DENSE_MOST else None
        tools = Products(engine, at, single, contraction, price)
    rtol = xp.clip(0.1 * xp.sqrt(tol), eps**0.75, 0.3 * LOOSE)
    start, spent = w0, 0
    if at.problem.lower.kind == "fixed_point":
        start, info = engine.call(picard, at, w0, rtol, xp.clip(ask.most - 2, 0, PICARD_STEPS))
        spent = xp.sum(info.matvecs)
    zero = xp.zeros(w0.shape[:-1], real)
    d = begin_at(engine, at, tools, start, zero)
    r = rounds(engine, at, tools, ask, _begin(engine, at, tools, d, v0, rtol, spent), rtol, v0 is None)
    if engine.eager:
        tools.price = None
    probe = _probe(engine, at, tools, r, ask.most - r.lower - r.adjoint - r.last, v0 is None)
    return _verdict(engine, at, ask, r, probe, tools.name)


def _begin(engine: Engine, at: Instance, tools: Any, d: Descent, v0: Array | None, rtol: Any, spent: Any) -> Rounds:
    """Before the first round."""
    xp, w0, zero = engine.xp, d.point.w, 0 * rtol
    if v0 is None:
        point, sizes = Stationary(w0, xp.zeros(w0.shape, w0.dtype), w0, at.lam), Sizes(*[zero] * 6, zero == 0)
    else:
        point, sizes = engine.call(stationarity, at, w0, v0, v0, zero, at.lam)
    infinite, none, each = xp.full_like(zero, xp.inf), xp.asarray(0), 0 * d.step
    lower_status = xp.where(d.status == RUNNING, 0, d.status)
    return Rounds(
        point, sizes, d.size.F, d, xp.maximum(rtol, tools.finest), infinite, sizes.scale, zero, none > 0, none, none,
        xp.sum(d.matvecs) + spent, none, none, lower_status, each, none == 0,
    )  # fmt: skip


class _Probe(NamedTuple):
    status: Any
    growth: Any  # by which the inverse of A enlarges rounding of F, in units of w
    matvecs: Any


def _probe(engine, at, tools, r: Rounds, left, wanted: bool) -> _Probe:
    """Look for negative curvature and null directions by ``A x = z`` with a random z."""
    xp, d = engine.xp, r.descent
    w, n, ones = d.point.w, d.point.w.shape[-1], xp.ones_like(d.size.F)
    if not wanted or (engine.eager and np.any(r.status + r.lower_status)):
        return _Probe(0 * r.status, 0 * r.scale, 0 * r.count)
    one = fixed_vector(n).astype(w.dtype) if engine.eager or n <= 4096 else probe_vector(w[..., :])
    z, norm_z, memory = xp.broadcast_to(one, w.shape), n**0.5, d.memory
    rtol = min(0.3 * LOOSE, SHARE / n**0.5)
    x, s = tools.solve(memory, w, z, ones, rtol * ones, xp.inf * ones, left)
    unit = at.problem.lower.kind == "fixed_point"  # A = I - J is known to rounding of J, that is of one
    growth = (1.0 if unit else s.A) * s.norm / norm_z
    # Whether x still solves A(w') x = z nearly at a w' as far away as the solution may be: what the last step has left,
    # and along x what rounding leaves of w.
    part = xp.minimum(d.size.F / xp.where(d.last_F > 0, d.last_F, 1.0), 1.0)
    blur = 32 * tree.eps(w) * growth * d.size.w / xp.where(s.norm > 0, s.norm, 1.0)
    _, change = engine.call(defect, at, w, d.p, part, x, blur, z)
    unseen = unit & (100 * tree.eps(w) * growth >= 1)
    unseen |= (s.status == int(Status.MAX_STEPS)) | (s.status == int(Status.STAGNATED))
    unseen |= (s.status == 0) & ~(change <= STABLE * norm_z)
    unseen &= s.matvecs < left
    status = xp.where(unseen, int(Status.SINGULAR), s.status)
    return _Probe(
        xp.where(tools.status(memory) > 0, tools.status(memory), status), xp.max(growth), xp.sum(s.matvecs + 1)
    )


def _verdict(engine: Engine, at: Instance, ask: Ask, r: Rounds, probe: _Probe, name: str) -> Hypergradient:
    xp, p, n, eps = engine.xp, r.point, r.sizes, tree.eps(r.point.w)
    minimization = at.problem.lower.kind == "minimization"
    OK, SADDLE = 0, int(Status.SADDLE)
    named = lambda x: xp.where(x == int(Status.NEGATIVE_CURVATURE), SADDLE, x) if minimization else x
    error = xp.maximum(r.error, eps * (ROUNDING + probe.growth) * n.scale)
    member = OK * r.status
    for x in (serious(xp, probe.status), r.status, r.lower_status):
        member = xp.where(x > OK, named(x), member)
    status = xp.max(member)
    status = xp.where((status == OK) & ~n.finite, int(Status.NONFINITE), status)
    met = r.trusted & accepts(xp, error, n.grad, r.scale, ask)
    at_rounding = error <= eps**0.5 * xp.maximum(r.scale, r.sensitivity * whole(xp, r.descent.scale))
    vanishing = at_rounding & ((r.stalls > 0) | (error > r.error)) & (n.grad <= VANISHING * error)
    unmet = xp.where(vanishing, int(Status.UNRESOLVED), int(Status.TOLERANCE_UNMET))
    unresolved = xp.where(error <= RESOLVED * n.grad, OK, int(Status.UNRESOLVED))
    # A descent that has neither failed nor taken all its steps was cut short by the budget.
    cut = (status == int(Status.MAX_STEPS)) & xp.all(r.descent.step < MAX_NEWTON_STEPS)
    status = xp.where(cut, int(Status.TOLERANCE_UNMET), status)
    status = xp.where(status == OK, xp.where(met, unresolved, unmet), status)
    i32 = lambda x: xp.asarray(x, xp.int32)
    info = lambda steps, matvecs, residual, st: SolveInfo(xp.asarray(steps), xp.asarray(matvecs), residual, i32(st))
    nan, no = xp.full_like(n.grad, xp.nan), xp.asarray(False)
    return Hypergradient(
        grad=p.grad, value=n.value, w=p.w, v=p.v, error=error, bound=nan, proved=no, scale=r.scale,
        lower=info(r.descent.step, r.lower, r.at_point, r.lower_status),
        adjoint=info(r.count, r.adjoint, n.l_w, named(r.status)),
        error_info=info(r.count, r.last + probe.matvecs, n.l_w, named(serious(xp, probe.status))),
        status=i32(status), method=name,
    )  # fmt: skip


def _certified(engine: Engine, at: Instance, h: Hypergradient) -> Hypergradient:
    """The result with a bound, where the problem has constants."""
    if at.problem.constants is None:
        return h
    found = (_certify if engine.eager else certify)(at, h.w, h.v, h.grad, h.lower.matvecs + h.adjoint.matvecs)
    if found is None:
        return h
    return replace(h, bound=found.bound, proved=found.proved, error_info=h.error_info.plus(found.matvecs))


_certify = jax.jit(certify)
