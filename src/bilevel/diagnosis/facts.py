"""What is measured of ``A = d_w F`` at a point: symmetry, spectrum, contraction, condition, and the matvecs it took."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel import tree
from bilevel.lagrangian import Instance
from bilevel.linear.operator import LinearOperator
from bilevel.linear.spectral import extreme_eigenvalues, power_iteration, probe_vector

Tree = Any

DENSE_SIZE = 300  # unknowns up to which A is formed and its spectrum is exact
LANCZOS_STEPS = (32, 64, 128)  # as long as the least eigenvalue still falls by more than a tenth
SETTLED = 0.9
POWER_STEPS = 64
PROBES = 8  # pairs of random vectors for the symmetry
ROUNDING = 100.0  # units of rounding, times sqrt(n), that <A x, y> - <x, A y> may be wrong by, relative to A


@dataclass(frozen=True)
class Facts:
    """Measured at one point; NaN where ``A`` is not finite.

    Attributes
    ----------
    asymmetry
        ``norm(A - A^T) / norm(A)`` in the Frobenius norm, estimated.
    symmetric
        Whether that is rounding.
    least
        Least eigenvalue of a symmetric ``A``; NaN of others.
    smallest, largest
        Extreme singular values; ``smallest`` is NaN where an iteration cannot tell, on large indefinite ``A``.
    settled
        Whether these are known; a Ritz value that still fell is only an upper bound of what it estimates.
    radius, norm
        Of the Jacobian of the map ``w - step F``: its spectral radius and its 2-norm.
    step
        That of the map: one for fixed points and roots, for minimizations the problem's or ``2 / (L + mu)``.
    n, eps
        Unknowns, and machine epsilon of their dtype.
    matvecs
        Products that all this took.
    """

    asymmetry: float
    symmetric: bool
    n: int
    eps: float
    matvecs: int
    least: float = math.nan
    smallest: float = math.nan
    largest: float = math.nan
    settled: bool = False
    radius: float = math.nan
    norm: float = math.nan
    step: float = 1.0

    @property
    def finite(self) -> bool:
        """Whether A is."""
        return math.isfinite(self.largest)

    @property
    def rounding(self) -> float:
        """What rounding makes of an eigenvalue that is zero."""
        return self.n * self.eps * self.largest

    @property
    def singular(self) -> bool:
        """Whether solution and adjoint are not unique, up to rounding."""
        return self.smallest <= self.rounding

    @property
    def indefinite(self) -> bool:
        """Whether a symmetric A has negative eigenvalues, up to rounding."""
        return self.symmetric and self.least < -self.rounding

    @property
    def condition(self) -> float:
        """``largest / smallest``; a lower bound where the smallest is not settled."""
        return self.largest / self.smallest if self.smallest != 0 else math.inf

    @property
    def contracts(self) -> bool:
        """Whether the iteration of the map converges near the point."""
        return self.radius < 1

    @property
    def floor(self) -> float:
        """``eps cond(A)``: the relative error of a hypergradient that rounding alone makes, roughly."""
        return self.eps * self.condition


def measure(at: Instance, w: Tree) -> Facts:
    """All facts at ``w``; dense up to :data:`DENSE_SIZE` unknowns, else by Lanczos and power iteration."""
    asymmetry = float(_asymmetry(at, w))
    n, eps = tree.size(w), tree.eps(w)
    symmetric = asymmetry <= ROUNDING * eps * math.sqrt(n)
    spectrum = _dense if n <= DENSE_SIZE else _iterative
    return spectrum(at, w, Facts(asymmetry, symmetric, n=n, eps=eps, matvecs=2 * PROBES))


def _dense(at: Instance, w: Tree, known: Facts) -> Facts:
    A = np.asarray(_matrix(at, w), np.float64)
    known = replace(known, matvecs=known.matvecs + len(A))
    if not np.isfinite(A).all():
        return known
    if known.symmetric:
        eigenvalues = np.linalg.eigvalsh((A + A.T) / 2)
        sizes = np.abs(eigenvalues)
        return _symmetric(at, known, float(eigenvalues[0]), float(sizes.min()), float(eigenvalues[-1]), True)
    values = np.linalg.svd(A, compute_uv=False)
    M = np.eye(len(A)) - A
    radius = float(np.max(np.abs(np.linalg.eigvals(M))))
    return replace(
        known, smallest=float(values[-1]), largest=float(values[0]), settled=True, radius=radius,
        norm=float(np.linalg.norm(M, 2)),
    )  # fmt: skip


def _iterative(at: Instance, w: Tree, known: Facts) -> Facts:
    if known.symmetric:
        least, largest, settled, matvecs = _extremes(at, w, "A")
        known = replace(known, matvecs=known.matvecs + matvecs)
        return _symmetric(at, known, least, least if least > 0 else math.nan, largest, settled)
    least, largest, settled, matvecs = _extremes(at, w, "A^T A")
    _, norm, _, more = _extremes(at, w, "M^T M")
    return replace(
        known, smallest=math.sqrt(max(least, 0.0)), largest=math.sqrt(largest), settled=settled,
        radius=float(_radius(at, w)), norm=math.sqrt(norm), matvecs=known.matvecs + matvecs + more + POWER_STEPS,
    )  # fmt: skip


def _symmetric(at: Instance, known: Facts, least: float, smallest: float, largest: float, settled: bool) -> Facts:
    """Facts from the ends of a real spectrum; the best step of a minimization is ``2 / (L + mu)``."""
    lower = at.problem.lower
    step = 1.0
    if lower.kind == "minimization":
        step = 2 / (largest + max(least, 0.0)) if lower.step is None else float(lower.step)
    q = max(abs(1 - step * least), abs(1 - step * largest))
    size = max(abs(least), abs(largest))
    return replace(known, least=least, smallest=smallest, largest=size, settled=settled, radius=q, norm=q, step=step)


def _extremes(at: Instance, w: Tree, of: str) -> tuple[float, float, bool, int]:
    """Extreme eigenvalues of A, A^T A or M^T M, with more Lanczos steps until the least stays."""
    spent, before = 0, math.inf
    least, largest = math.nan, math.nan
    for steps in LANCZOS_STEPS:
        least, largest = map(float, _lanczos(at, w, of, steps))
        spent += steps * (1 if of == "A" else 2)
        if not least < SETTLED * before:
            return least, largest, True, spent
        before = least
    return least, largest, False, spent


@jax.jit
def _asymmetry(at: Instance, w: Tree) -> Float[Array, ""]:
    _, A = at.linearize(w)

    def pair(key: Array) -> tuple[Array, Array]:
        x, y = (tree.standard_normal(k, w) for k in jax.random.split(key))
        one, other = tree.dot(A.mv(x), y), tree.dot(x, A.mv(y))
        return one - other, one

    difference, size = jax.vmap(pair)(jax.random.split(jax.random.key(2), PROBES))
    size = tree.norm(size)
    return tree.norm(difference) / jnp.where(size > 0, size, 1.0)


@jax.jit
def _matrix(at: Instance, w: Tree) -> Float[Array, "n n"]:
    return at.linearize(w)[1].dense(w)


def _lanczos_run(at: Instance, w: Tree, of: str, steps: int) -> tuple[Array, Array]:
    _, A = at.linearize(w)
    transpose = jax.linear_transpose(A.mv, w)

    def map_mv(x: Tree) -> Tree:
        return tree.sub(x, A.mv(x))

    products = {
        "A": A.mv,
        "A^T A": lambda x: transpose(A.mv(x))[0],
        "M^T M": lambda x: _transposed_map(transpose, map_mv(x)),
    }
    operator = LinearOperator(products[of], products[of], symmetric=True)
    return extreme_eigenvalues(operator, w, steps)[:2]


def _transposed_map(transpose: Any, x: Tree) -> Tree:
    return tree.sub(x, transpose(x)[0])


_lanczos = jax.jit(_lanczos_run, static_argnums=(2, 3))


@jax.jit
def _radius(at: Instance, w: Tree) -> Float[Array, ""]:
    _, A = at.linearize(w)
    return power_iteration(lambda x: tree.sub(x, A.mv(x)), probe_vector(w), POWER_STEPS)
