"""Constants of a bilevel problem: what proved error bounds are made of."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel import tree
from bilevel.lagrangian import Instance
from bilevel.linear.spectral import extreme_eigenvalues, power_iteration, probe_vector
from bilevel.precision import full_precision
from bilevel.problems import Problem
from bilevel.status import ProblemError

Tree = Any
Number = Any  # a scalar, Python's or an array

SWEEPS = 6  # of the alternating maximization
STARTS = 2
POWER_STEPS = 16


@tree.record
@dataclass(frozen=True)
class Constants:
    """Constants of the lower level ``F(w, lam) = 0`` and the upper objective ``U(w, lam)`` at one ``lam``.

    They are those of ``F`` itself, ``A = d_w F`` and ``B = d_lam F``, so that no step enters: of the map
    ``Phi = w - a F`` with a step a the papers' ``nu1``, ``nu2`` and ``L_Phi`` are a times ``nu1``, ``nu2`` and
    ``L_B`` here, and a fixed-point problem has ``a = 1``. All norms are 2-norms of raveled pytrees and of matrices
    between them. Lipschitz constants are needed between the solution ``w* = w(lam)`` and any ``w`` only. A constant
    that is not known is None.

    Attributes
    ----------
    mu
        ``|F(w) - F(w')| >= mu |w - w'|`` for all ``w, w'``: strong convexity of a loss, ``1 - q`` of a q-contraction.
        Unit F / w.
    L
        ``|A(w)| <= L`` for all w: smoothness of a loss, ``1 + q`` of a q-contraction. Unit F / w.
    q
        Contraction factor of the map of a fixed-point problem. That of gradient descent follows from ``mu``,
        ``L`` and its step.
    nu1, nu2
        ``|A(w) - A(w*)| <= nu1 |w - w*|`` and ``|B(w) - B(w*)| <= nu2 |w - w*|``. Units F / w^2 and F / (lam w).
    B0
        ``|B(w)| <= B0 + nu2 |w|`` for all w. Unit F / lam.
    mu1
        ``|d_w U(w) - d_w U(w*)| <= mu1 |w - w*|``. Unit U / w^2.
    mu2, mu2_growth
        ``|d_lam U(w) - d_lam U(w*)| <= (mu2 + mu2_growth R) |w - w*|`` where ``|w|, |w*| <= R``. Units U / (lam w)
        and U / (lam w^2).
    mu1_relative
        Beside ``mu1``, of a strongly convex loss: ``d2_ww U(w) <= mu1_relative A(w)`` for all w, smoothness of U
        relative to the loss (Lu, Freund and Nesterov 2018, arXiv 1610.05708). Often far below ``mu1 / mu``.
        Unit U / loss.
    self_concordance
        Beside or in place of ``mu``, of a convex loss: the a for which ``A(w') >= exp(-a |w - w'|) A(w)`` for all
        ``w, w'`` (Bach 2010, arXiv 0910.4627), and the same of ``d2_ww U``; 0 where both are constant. Unit 1 / w.
    D
        ``|w*| <= D``. Unit w. Gradient descent on a strongly convex loss, and a contraction, that start at zero
        stay in the ball ``|w - w*| <= D``.
    L_U, L_B
        ``|d_w U(w)| <= L_U`` and ``|B(w)| <= L_B`` on that ball; the papers' ``L_E`` and ``L_Phi / a``. Only
        a-priori bounds need these three; :func:`on_ball` finds them from the others.
    estimated
        Names of the constants that are estimates. A bound that uses one of them is not proved.

    References
    ----------
    Grazzi, Franceschi, Pontil, Salzo (2020), arXiv 2006.16218, Assumptions A and B; Ehrhardt and Roberts (2023),
    arXiv 2301.04764.

    Examples
    --------
    >>> c = Constants(mu=0.1, L=1.0, nu1=0.0, nu2=1.0, B0=0.0, mu1=2.0, mu2=0.0, estimated=("mu",))
    >>> c.given("L", "nu1"), c.given("L", "mu"), c.given("D")
    (True, False, False)
    """

    mu: Number = None
    L: Number = None
    q: Number = None
    nu1: Number = None
    nu2: Number = None
    B0: Number = None
    mu1: Number = None
    mu1_relative: Number = None
    mu2: Number = None
    mu2_growth: Number = 0.0
    self_concordance: Number = None
    D: Number = None
    L_U: Number = None
    L_B: Number = None
    estimated: tuple[str, ...] = field(default=(), metadata={"static": True})

    def __post_init__(self):
        names = {f.name for f in fields(self)} - {"estimated"}
        if unknown := set(self.estimated) - names:
            raise ProblemError(f"estimated= names {', '.join(sorted(unknown))}; constants are {', '.join(names)}.")

    def known(self, *names: str) -> bool:
        """Whether none of these is None."""
        return all(getattr(self, name) is not None for name in names)

    def filled(self, name: str, parts: tuple[str, ...], value: Callable[[], Number]) -> Self:
        """The same with ``name`` made of these parts, where it is None and they are known."""
        if self.known(name) or not self.known(*parts):
            return self
        estimated = self.estimated if self.given(*parts) else (*self.estimated, name)
        return replace(self, **{name: value()}, estimated=estimated)

    def given(self, *names: str) -> bool:
        """Whether all of these are known, and none is an estimate."""
        return self.known(*names) and not set(names) & set(self.estimated)


def constants_of(at: Instance) -> Constants:
    """Constants of a problem at its ``lam`` and data.

    Raises
    ------
    ProblemError
        The problem has something else in their place.
    """
    constants = at.problem.constants
    if callable(constants):
        constants = constants(at.lam, at.lower_data, at.upper_data)
    if not isinstance(constants, Constants):
        raise ProblemError(
            "constants must be bilevel.Constants, or a function (lam, lower_data, upper_data) that returns them, "
            f"but {'there are none' if constants is None else f'they are of type {type(constants).__name__}'}."
        )
    return constants


def on_ball(at: Instance, w0: Tree) -> Constants:
    """Constants of a problem with ``D``, ``L_U`` and ``L_B``; ``w0`` is any vector like w.

    ``D = |F(0)| / mu``, ``L_U = |d_w U(0)| + 2 mu1 D`` and ``L_B = B0 + 2 nu2 D``, where they are None and what they
    are made of is known: in the ball ``|w - w*| <= D`` of :class:`Constants`, ``|d_w U(w)| <= |d_w U(0)| +
    mu1 (|w*| + |w - w*|)`` and ``|w| <= 2 D``. They are estimates where one of their parts is. Cost: two matvecs.
    """
    c, zero = constants_of(at), tree.zeros_like(w0)
    F0, g0 = tree.norm(at.linearize(zero)[0]), tree.norm(at.upper_gradient(zero)[1])
    c = c.filled("D", ("mu",), lambda: F0 / c.mu)
    c = c.filled("L_U", ("mu1", "D"), lambda: g0 + 2 * c.mu1 * c.D)
    return c.filled("L_B", ("B0", "nu2", "D"), lambda: c.B0 + 2 * c.nu2 * c.D)


@full_precision
def estimate_constants(
    problem: Problem, lam: Tree, w: Tree, lower_data: Tree = None, upper_data: Tree = None
) -> tuple[Constants, int]:
    """Estimates of all constants at ``w``, best near the solution, and the matvecs they took.

    Symmetric problems: ``mu`` and ``L`` by Lanczos. Others: ``q`` and ``L`` by power iteration on ``J^T J``,
    ``J = d_w Phi``, and on ``A^T A``; ``mu = 1 - q``. They are not a number where the map is no contraction at ``w``,
    or the loss not convex. Lipschitz constants are norms of the derivatives at ``w``, multilinear forms such as
    ``d/dw <v, B(w) m> [e]``, by alternating maximization from random directions. All belong to one point, and all
    but the L of symmetric problems are from below: they are marked estimated, and a bound made of them is not
    proved.

    Notes
    -----
    Cost: 32 matvecs for symmetric problems, 64 for others, one product for each step of the alternating
    maximizations, 144 in all, and two gradients at zero; compiled once for all values.
    """
    return _estimate(Instance(problem, lam, lower_data, upper_data), w), _matvecs(problem, w)


def _matvecs(problem: Problem, w: Tree) -> int:
    spectral = min(2 * POWER_STEPS, tree.size(w)) if problem.lower.symmetric else 4 * POWER_STEPS
    arguments = 3 + 3 + 2 + 2 + 2  # of the five forms
    return spectral + STARTS * SWEEPS * arguments + 2


@jax.jit
def _estimate(at: Instance, w: Tree) -> Constants:
    lower, lam, zero = at.problem.lower, at.lam, tree.zeros_like(w)

    def pairing(v: Tree, w: Tree, lam: Tree) -> Float[Array, ""]:
        return lower.pairing(v, w, lam, at.lower_data)  # <v, F(w, lam)>

    def upper(w: Tree, lam: Tree) -> Float[Array, ""]:
        return at.problem.upper(w, lam, at.upper_data)

    nu1 = norm_of_form(lambda v, x, e: _along(lambda w: _along(lambda w: pairing(v, w, lam), w, x), w, e), w, w, w)
    nu2 = norm_of_form(
        lambda v, m, e: _along(lambda w: _along(lambda lam: pairing(v, w, lam), lam, m), w, e), w, lam, w
    )
    B0 = norm_of_form(lambda v, m: _along(lambda lam: pairing(v, zero, lam), lam, m), w, lam)
    mu1 = norm_of_form(lambda x, e: _along(lambda w: _along(lambda w: upper(w, lam), w, x), w, e), w, w)
    mu2 = norm_of_form(lambda m, e: _along(lambda w: _along(lambda lam: upper(w, lam), lam, m), w, e), lam, w)
    mu, L, q = _spectrum(at, w)
    every = ("mu", "L", "q", "nu1", "nu2", "B0", "mu1", "mu2", "mu2_growth")
    found = Constants(mu=mu, L=L, q=q, nu1=nu1, nu2=nu2, B0=B0, mu1=mu1, mu2=mu2, estimated=every)
    return on_ball(at._replace(problem=replace(at.problem, constants=found)), w)


def _spectrum(at: Instance, w: Tree) -> tuple[Number, Number, Number]:
    """``mu``, ``L`` and ``q`` at ``w``; not a number where the map is no contraction there."""
    _, A = at.linearize(w)
    if A.symmetric:
        least, greatest, _ = extreme_eigenvalues(A, w, 2 * POWER_STEPS)
        return jnp.where(least > 0, least, jnp.nan), greatest, None

    def norm(mv: Callable[[Tree], Tree], mv_transpose: Callable[[Tree], Tree]) -> Float[Array, ""]:
        return jnp.sqrt(power_iteration(lambda x: mv_transpose(mv(x)), probe_vector(w), POWER_STEPS))

    q = norm(lambda x: tree.sub(x, A.mv(x)), lambda x: tree.sub(x, A.mv_transpose(x)))
    return jnp.where(q < 1, 1 - q, jnp.nan), norm(A.mv, A.mv_transpose), q


def norm_of_form(form: Callable[..., Float[Array, ""]], *like: Tree) -> Float[Array, ""]:
    """``max |form(x_1, ..., x_m)|`` over unit vectors of a multilinear form, from below.

    Alternating maximization: with the others fixed the best ``x_i`` is the gradient in it, and the norm of that
    gradient the value (De Lathauwer, De Moor and Vandewalle 2000). The best of a few random starts.
    """

    def start(key: Array) -> list[Tree]:
        keys = jax.random.split(key, len(like))
        return [tree.standard_normal(k, x) for k, x in zip(keys, like, strict=True)]

    def sweep(xs: list[Tree], _: None) -> tuple[list[Tree], Float[Array, ""]]:
        size = jnp.zeros(())
        for i in range(len(xs)):
            slope = jax.grad(form, argnums=i)(*xs)
            size = tree.norm(slope)
            xs = [*xs[:i], tree.scale(1 / jnp.where(size > 0, size, 1.0), slope), *xs[i + 1 :]]
        return xs, size

    def from_start(key: Array) -> Float[Array, ""]:
        unit = [tree.scale(1 / tree.norm(x), x) for x in start(key)]
        return jax.lax.scan(sweep, unit, length=SWEEPS)[1][-1]

    return jnp.max(jax.lax.map(from_start, jax.random.split(jax.random.key(0), STARTS)))


def _along(f: Callable[[Tree], Float[Array, ""]], x: Tree, direction: Tree) -> Float[Array, ""]:
    """``d f(x) [direction]``."""
    return jax.jvp(f, (x,), (direction,))[1]
