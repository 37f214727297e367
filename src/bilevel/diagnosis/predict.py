"""How many steps, products and bytes the methods of the literature take to an accuracy, before they are run.

With the contraction factor q of the map, the condition kappa of ``A``, and the relative errors that the start
``w0`` and a zero adjoint make, ``E_w`` and ``E_v``, measured once:

    T of the plain map      E_w q^T <= tol / 2
    k of AID-FP             E_v q^k <= tol / 2
    k of AID-CG             2 sqrt(kappa) E_v p^k <= tol / 2,      p = (sqrt(kappa) - 1) / (sqrt(kappa) + 1)
    T of ITD                (E_w max(1, T (1 - q)) + E_v) q^T <= tol / 2

AID-GMRES is given the k of AID-CG where A is symmetric, else that of AID-FP, which it needs at most. Neither
Krylov method is given more than n.

References
----------
Grazzi, Franceschi, Pontil, Salzo (2020), arXiv 2006.16218, Section 2: the rates, with worst-case constants.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax.interpreters import partial_eval

from bilevel import tree
from bilevel.automatic.tools import DENSE_MOST
from bilevel.diagnosis.facts import Facts
from bilevel.lagrangian import Instance
from bilevel.linear.cg import CG
from bilevel.linear.gmres import GMRES
from bilevel.linear.richardson import Richardson
from bilevel.methods.aid import AID
from bilevel.methods.exact import Exact
from bilevel.methods.itd import ITD
from bilevel.solvers.picard import Picard

Tree = Any

MOST = 1_000_000  # steps beyond which a method is not worth a number
VECTORS = 10  # of n that an iterative solve holds
MATRICES = 4  # of n by n that a dense solve holds


@dataclass(frozen=True)
class Alternative:
    """A method, with what it would take; or why it cannot be used.

    Attributes
    ----------
    name
        As in the literature.
    method
        Ready to be passed as ``method=``; None where it cannot be used.
    steps, products
        Lower-level iterations T, and products k of the adjoint.
    matvecs
        Predicted, both levels together, without an error estimate.
    memory
        Bytes beside the arguments.
    reason
        Why it cannot be used; empty where it can.
    """

    name: str
    method: Any = None
    steps: int = 0
    products: int = 0
    matvecs: int = 0
    memory: int = 0
    reason: str = ""


class Counts(NamedTuple):
    """Step of the map, its contraction factor, and what each part needs."""

    step: float
    steps: int  # of the map, for w
    unrolled: int  # of the map, for ITD
    fixed_point: int  # products of AID-FP
    krylov: int  # products of CG, or of GMRES as a bound


class Start(NamedTuple):
    """Relative errors of the hypergradient at the beginning, and the largest eigenvalue of ``A`` there."""

    from_w: float  # at w0 with its exact adjoint
    from_v: float  # with the adjoint zero
    largest: float


class _Sizes(NamedTuple):
    """Bytes of one number, of ``w``, and of what reverse mode keeps of a step; number of hyperparameters."""

    item: int
    w: int
    saved: int
    lam: int


def predict(at: Instance, w: Tree, facts: Facts, start: Start, tol: float, lower: int) -> list[Alternative]:
    """All methods; ``lower`` are the matvecs that a Newton method takes for ``w``."""
    counts = _counts(at, facts, start, tol)
    size = _sizes(at, w)
    return [*_itd(counts, size), *_aid(counts, facts, size), _exact(facts, size, lower)]


def memory_of_automatic(at: Instance, w: Tree, facts: Facts, spent: int) -> int:
    """Bytes of the automatic method beside its arguments: Krylov solves, and a factorization of A where it made one.

    That takes n products, so a run that ``spent`` fewer has made none.
    """
    size = _sizes(at, w)
    dense = facts.n * (MATRICES * size.w + size.saved) if facts.n <= min(spent, DENSE_MOST) else 0
    krylov = 0 if at.problem.lower.symmetric else _basis(size, facts.n)
    return dense + krylov + VECTORS * size.w + size.saved


def _basis(size: _Sizes, steps: int) -> int:
    """Bytes of the Arnoldi basis of GMRES and of its small matrices."""
    m = min(GMRES().restart, steps)
    return 2 * (m + 1) * size.w + 3 * m * m * size.item


def _counts(at: Instance, facts: Facts, start: Start, tol: float) -> Counts | str:
    """The formulas at the top; or why the map cannot be iterated."""
    step, q = _map(at, facts, start)
    if facts.singular or facts.indefinite or not facts.finite:
        return "no unique solution was found"
    if not q < 1:
        return f"the map is no contraction: spectral radius {q:.3g}"
    per_digit = 1 / math.log(1 / q) if q > 0 else 0.0
    w, v = math.log(max(2 * start.from_w / tol, 1.0)), math.log(max(2 * start.from_v / tol, 1.0))
    steps, products = math.ceil(w * per_digit), max(math.ceil(v * per_digit), 1)
    unrolled = max(steps, products)
    for _ in range(3):  # a contraction of its own, as T enters by its logarithm
        size = start.from_w * max(unrolled * (1 - q), 1.0) + start.from_v
        unrolled = max(math.ceil(math.log(max(2 * size / tol, 1.0)) * per_digit), 1)
    if unrolled > MOST:
        return f"it needs more than {MOST} steps"
    root = math.sqrt(facts.condition)
    krylov = products
    if facts.symmetric:
        p = (root - 1) / (root + 1)
        krylov = math.ceil((math.log(2 * root) + v) / math.log(1 / p)) if p > 0 else 1
    return Counts(step, steps, unrolled, products, max(min(krylov, facts.n), 1))


def _map(at: Instance, facts: Facts, start: Start) -> tuple[float, float]:
    """Step and contraction factor of the map; a step that is free is safe at the start, too."""
    lower = at.problem.lower
    if lower.kind != "minimization" or lower.step is not None:
        return facts.step, facts.radius
    step = 1 / max(facts.largest, start.largest)
    return step, 1 - step * facts.smallest


def _sizes(at: Instance, w: Tree) -> _Sizes:
    item = tree.dtype(w).itemsize
    return _Sizes(item, tree.size(w) * item, max(kept_of_a_step(at, w), tree.size(w) * item), tree.size(at.lam))


def kept_of_a_step(at: Instance, w: Tree) -> int:
    """Bytes that reverse mode keeps of one step of the map: what of its derivative depends on ``w``."""

    def kept(w: Tree, lam: Tree, data: Tree) -> list:
        step = jax.vjp(lambda w, lam: tree.sub(w, at.problem.lower.residual(w, lam, data)), w, lam)[1]
        return jax.tree.leaves(step)

    jaxpr = jax.make_jaxpr(kept)(w, at.lam, at.lower_data).jaxpr
    count = len(jax.tree.leaves(w))
    total = 0
    for i, out in enumerate(jaxpr.outvars):
        only = [j == i for j in range(len(jaxpr.outvars))]
        _, used = partial_eval.dce_jaxpr(jaxpr, only)
        if any(used[:count]):
            total += math.prod(out.aval.shape) * out.aval.dtype.itemsize
    return total


def _itd(counts: Counts | str, size: _Sizes) -> list[Alternative]:
    names = "ITD", "ITD, checkpointed", "ITD, truncated", "ITD, forward"
    if isinstance(counts, str):
        return [Alternative(name, reason=counts) for name in names]
    T, K = counts.unrolled, min(counts.fixed_point, counts.unrolled)
    solver = Picard(steps=T, step=counts.step)
    segment = max(math.isqrt(T), 1)
    base = VECTORS * size.w
    checkpoints = (T // segment) * size.w + segment * size.saved
    tangents = size.lam * (size.saved + 2 * size.w)
    return [
        Alternative(names[0], ITD(solver), T, T, 2 * T + 1, base + T * size.saved),
        Alternative(names[1], ITD(solver, checkpoint="sqrt"), T, 2 * T, 3 * T + 1, base + checkpoints),
        Alternative(names[2], ITD(solver, truncate=K), T, K, T + K + 1, base + K * size.saved),
        Alternative(names[3], ITD(solver, mode="forward"), T, T * size.lam, T + 1 + T * size.lam, base + tangents),
    ]


def _aid(counts: Counts | str, facts: Facts, size: _Sizes) -> list[Alternative]:
    names = "AID-FP", "AID-CG", "AID-GMRES"
    if isinstance(counts, str):
        return [Alternative(name, reason=counts) for name in names]
    T, k, memory = counts.steps, counts.krylov, VECTORS * size.w + size.saved
    solver = Picard(steps=T, step=counts.step)

    def made(name: str, linear: Any, products: int, memory: int) -> Alternative:
        return Alternative(name, AID(solver, linear), T, products, T + 1 + products, memory)

    return [
        made(names[0], Richardson(steps=counts.fixed_point, step=counts.step), counts.fixed_point, memory),
        made(names[1], CG(steps=k), k, memory)
        if facts.symmetric
        else Alternative(names[1], reason="A is not symmetric"),
        made(names[2], GMRES(steps=k), k, memory + _basis(size, k)),
    ]


def _exact(facts: Facts, size: _Sizes, lower: int) -> Alternative:
    if facts.singular or not facts.finite:
        return Alternative("Exact", reason="A is singular or not finite")
    memory = facts.n * (MATRICES * size.w + size.saved)
    return Alternative("Exact", Exact(), 0, facts.n, lower + 3 * facts.n, memory)
