"""The automatic method: accuracy in, hypergradient out."""

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from bilevel import tree
from bilevel.automatic.flat import on_vectors
from bilevel.automatic.kernels import Sizes, Stationary, layouts_of, picard, prepare, stationarity, unravel
from bilevel.automatic.rounds import LOOSE, Ask, Rounds, rounds
from bilevel.automatic.tools import BLOCK, DENSE_MOST, Dense, Products
from bilevel.automatic.verdict import probe, verdict
from bilevel.certificates.aposteriori import certify
from bilevel.engine import HOST, TRACED, Engine
from bilevel.lagrangian import Instance
from bilevel.methods.base import Hypergradient
from bilevel.problems import Problem
from bilevel.solvers.newton import RUNNING, Descent, begin_at
from bilevel.solvers.newton_krylov import PICARD_STEPS
from bilevel.status import Status

Tree = Any

UNLIMITED = 2**30
SMALL = 1e7  # multiplications of a dense matrix and its inverse that take no longer than steering from the host


@tree.record
@dataclass(frozen=True)
class Automatic:
    """Hypergradient to an accuracy, ``error <= tol * norm(grad) + atol``, with nothing to tune.

    Parameters
    ----------
    tol
        Relative accuracy of the hypergradient.
    atol
        Absolute accuracy; default ``tol * sqrt(eps) * scale``, see :class:`~bilevel.methods.base.Hypergradient`.
    max_matvecs
        Budget of everything: lower level, adjoint, probe and error estimate, give or take a few for what surrounds the
        solves. Where it is spent first the status is ``TOLERANCE_UNMET``. Default no limit.

    Notes
    -----
    Rounds of Newton's method on the stationarity of the Lagrangian (:mod:`bilevel.automatic.rounds`), in which the
    change of the hypergradient over a round is the error of the one before. Where a dense matrix costs next to nothing
    all is one program on its inverse. Else a few small kernels are steered from the host, each compiled when it is
    first needed: products are in float32 where that is enough, residuals and so the error in the precision of the
    problem, and A is inverted once the products have cost as much. Inside transformations there are products only.

    A cold start ends with a probe: one solve with a random right-hand side, which meets negative curvature and null
    directions that those of the problem need not contain.
    """

    tol: Any = 1e-4
    atol: Any = None
    max_matvecs: Any = None

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
        """All in one program, for use inside transformations."""
        at = Instance(problem, lam, lower_data, upper_data)
        return _complete(TRACED, at, w0, v0, self, dense=self.max_matvecs is None and _is_small(at, w0))

    def staged(
        self, problem: Problem, lam: Tree, w0: Tree, v0: Tree | None, lower_data: Tree, upper_data: Tree
    ) -> Hypergradient:
        """The same called eagerly: small problems by one program, larger ones steered from the host."""
        at = Instance(problem, lam, lower_data, upper_data)
        # A budget must allow the inverses at the start, on the way and at the solution.
        affordable = self.max_matvecs is None or 3 * tree.size(w0) <= int(self.max_matvecs)
        if affordable and _is_small(at, w0):
            return _small(self, at, w0, v0)
        with np.errstate(all="ignore"):  # infinite norms are looked at, not warned of
            return jax.device_put(_complete(HOST, at, w0, v0, self, dense=False))


def _is_small(at: Instance, w: Tree) -> bool:
    """Whether a dense matrix and its inverse take no longer than to steer the other way."""
    n = sum(map(prod, layouts_of(at, w)[0].shapes))
    return tree.size(w) * (n * n + tree.size(at.lower_data)) <= SMALL


@jax.jit
def _small(method: Automatic, at: Instance, w0: Tree, v0: Tree | None) -> Hypergradient:
    return _complete(TRACED, at, w0, v0, method, dense=True)


def _complete(
    engine: Engine, at: Instance, w0: Tree, v0: Tree | None, method: Automatic, *, dense: bool
) -> Hypergradient:
    """On vectors, and back to pytrees."""
    (w, v, lam), narrow = prepare(at, w0, v0, narrow=engine.eager)
    layouts = layouts_of(at, w0)
    flat = on_vectors(at, *layouts)._replace(lam=lam)
    single = None if narrow is None else flat._replace(lam=narrow[0], lower_data=narrow[1], upper_data=None)
    h = _on_vectors(engine, flat, single, w, v, method, dense)
    if not all(layout is not None and layout.trivial for layout in layouts):
        w, v, grad = unravel(layouts, h.w, h.v, h.grad)
        h = replace(h, w=w, v=v, grad=grad)
    if at.problem.constants is None:
        return h
    certificate = (_certify if engine.eager else certify)(at, h.w, h.v, h.grad, h.lower.matvecs + h.adjoint.matvecs)
    if certificate is None:
        return h
    bound, proved, matvecs = certificate
    return replace(h, bound=bound, proved=proved, error_info=h.error_info.plus(matvecs))


_certify = jax.jit(certify)


def _on_vectors(
    engine: Engine, at: Instance, single: Instance | None, w0: Array, v0: Array | None, method: Automatic, dense: bool
) -> Hypergradient:
    """Steps of the map, the rounds, the probe, and the verdict."""
    xp, eps, real, cold = engine.xp, tree.eps(w0), tree.dtype(w0), v0 is None
    is_map = at.problem.lower.kind == "fixed_point"
    ask = Ask(
        xp.asarray(method.tol, real), method.atol, UNLIMITED if method.max_matvecs is None else method.max_matvecs
    )
    if dense:
        tools = Dense(engine, at)
    else:
        price = w0.size / BLOCK if engine.eager and w0.shape[-1] <= DENSE_MOST else None
        tools = Products(engine, at, single, contraction=engine.eager and is_map, price=price)
    rtol = xp.clip(LOOSE * xp.sqrt(ask.tol), eps**0.75, 0.3 * LOOSE)  # one Newton step squares it
    start, spent = w0, 0
    if is_map:
        start, info = engine.call(picard, at, w0, rtol, xp.clip(ask.most - 2, 0, PICARD_STEPS))
        spent = xp.sum(info.matvecs)
    descent = begin_at(engine, at, tools, start, xp.zeros(w0.shape[:-1], real))
    r = rounds(engine, at, tools, ask, _begin(engine, at, tools, descent, v0, rtol, spent), rtol, cold)
    tools.price = None  # the probe is no reason for an inverse
    left = ask.most - r.lower - r.adjoint - r.last
    return verdict(engine, at, ask, r, probe(engine, at, tools, r, left, cold), tools.name)


def _begin(engine: Engine, at: Instance, tools: Any, d: Descent, v0: Array | None, rtol: Any, spent: Any) -> Rounds:
    """Before the first round: at the given adjoint, or where there is none nowhere."""
    xp, w0, zero = engine.xp, d.point.w, 0 * rtol
    if v0 is None:
        point = Stationary(w0, xp.zeros(w0.shape, w0.dtype), w0, at.lam)
        sizes = Sizes(zero, zero, zero, zero, zero, zero, zero == 0)
    else:
        point, sizes = engine.call(stationarity, at, w0, v0, v0, zero, at.lam)
    none = xp.asarray(0)
    return Rounds(
        point, sizes, at_point=d.size.residual, descent=d, expected=xp.maximum(rtol, tools.finest),
        error=xp.full_like(zero, xp.inf), scale=sizes.scale, sensitivity=zero, trusted=none > 0, count=none,
        stalls=none, lower=xp.sum(d.matvecs) + spent, adjoint=none, last=none,
        lower_status=xp.where(d.status == RUNNING, int(Status.OK), d.status), status=0 * d.step, running=none == 0,
    )  # fmt: skip
