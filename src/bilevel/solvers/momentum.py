"""Gradient methods with momentum: Polyak's heavy ball and Nesterov's acceleration."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel import tree
from bilevel.linear.spectral import extreme_eigenvalues
from bilevel.problems import Lower
from bilevel.solvers.base import map_step, require_minimization
from bilevel.solvers.iteration import solve_by_iteration

Tree = Any


class _Ball(NamedTuple):
    w: Tree
    last: Tree


@tree.record
@dataclass(frozen=True)
class HeavyBall:
    """``w_{i+1} = w_i - step * d_w loss(w_i, lam) + momentum * (w_i - w_{i-1})``.

    On quadratics with spectrum in ``[mu, L]`` the optimal parameters

        step = 4 / (sqrt L + sqrt mu)^2,      momentum = ((sqrt L - sqrt mu) / (sqrt L + sqrt mu))^2

    give the rate ``(sqrt kappa - 1) / (sqrt kappa + 1)``, ``kappa = L / mu``, of conjugate gradients. The
    method has no guarantee beyond quadratics; the gradient of the T-step objective follows the same rate.

    Parameters
    ----------
    steps, rtol
        As in :class:`~bilevel.solvers.picard.Picard`.
    step, momentum
        Default: the optimal parameters for ``mu`` and ``L``.
    mu, L
        Bounds of the spectrum of the Hessian. Default: extreme eigenvalues of the Hessian at ``w0`` by Lanczos,
        which finds L well but a mu of a large condition number only from above: give it where it is known.

    Notes
    -----
    Cost: one matvec a step, one for the residual of the value returned, 33 where mu or L is estimated.
    Statuses: ``MAX_STEPS``, ``DIVERGED``, ``NONFINITE``.

    References
    ----------
    Polyak (1964), Some methods of speeding up the convergence of iteration methods.
    """

    steps: int | None = field(default=None, metadata={"static": True})
    rtol: Any = None
    step: Any = None
    momentum: Any = None
    mu: Any = None
    L: Any = None

    __call__ = solve_by_iteration

    def prepare(self, lower: Lower, lam: Tree, w0: Tree, data: Tree) -> tuple[Self, int]:
        """Make step and momentum numbers."""
        require_minimization("HeavyBall", lower, "Picard or Anderson")
        if self.step is not None and self.momentum is not None:
            return self, 0
        mu, L, matvecs = _spectrum(self.mu, self.L, lower, lam, w0, data)
        root_mu, root_L = jnp.sqrt(mu), jnp.sqrt(L)
        step = 4 / (root_L + root_mu) ** 2 if self.step is None else self.step
        momentum = ((root_L - root_mu) / (root_L + root_mu)) ** 2 if self.momentum is None else self.momentum
        return replace(self, step=step, momentum=momentum), matvecs

    def init(self, w0: Tree) -> _Ball:
        """Start at rest."""
        return _Ball(w0, w0)

    def params(self, state: _Ball) -> Tree:
        """``w_i``."""
        return state.w

    def advance(self, state: _Ball, F: Tree) -> _Ball:
        """``w - step F + momentum (w - w_last)``."""
        inertia = tree.axpy(self.momentum, tree.sub(state.w, state.last), state.w)
        return _Ball(tree.axpy(-self.step, F, inertia), state.w)


class _Extrapolated(NamedTuple):
    y: Tree
    x: Tree
    t: Float[Array, ""]


@tree.record
@dataclass(frozen=True)
class Nesterov:
    """``x_{i+1} = y_i - step * d_w loss(y_i, lam)``, ``y_{i+1} = x_{i+1} + momentum_i (x_{i+1} - x_i)``; w is y.

    With ``mu`` the momentum is the constant ``(1 - r) / (1 + r)``, ``r = sqrt(mu * step)``; its rate is
    ``sqrt(1 - r)``. Without, it grows as ``(t_i - 1) / t_{i+1}``, ``t_{i+1} = (1 + sqrt(1 + 4 t_i^2)) / 2``, and
    restarts where it points uphill, which finds the accelerated rate with no knowledge of mu.

    Parameters
    ----------
    steps, rtol
        As in :class:`~bilevel.solvers.picard.Picard`.
    step
        Default: one over ``L``, else that of the problem, else one over the largest eigenvalue at ``w0``.
    momentum
        Constant momentum; default as above.
    mu, L
        Strong convexity and smoothness of the loss.

    Notes
    -----
    Cost: one matvec a step, one for the residual of the value returned, 17 where the step is estimated.
    Statuses: ``MAX_STEPS``, ``DIVERGED``, ``NONFINITE``.

    References
    ----------
    Nesterov (2018), Lectures on Convex Optimization, Section 2.2; O'Donoghue and Candes (2015), arXiv
    1204.3982, gradient restart.
    """

    steps: int | None = field(default=None, metadata={"static": True})
    rtol: Any = None
    step: Any = None
    momentum: Any = None
    mu: Any = None
    L: Any = None

    __call__ = solve_by_iteration

    def prepare(self, lower: Lower, lam: Tree, w0: Tree, data: Tree) -> tuple[Self, int]:
        """Make the step, and the momentum where it is constant, numbers."""
        require_minimization("Nesterov", lower, "Picard or Anderson")
        step, matvecs = self.step, 0
        if step is None and self.L is not None:
            step = 1 / self.L
        elif step is None:
            step, matvecs = map_step(lower, lam, w0, data)
        momentum = self.momentum
        if momentum is None and self.mu is not None:
            root = jnp.sqrt(self.mu * step)
            momentum = (1 - root) / (1 + root)
        return replace(self, step=step, momentum=momentum), matvecs

    def init(self, w0: Tree) -> _Extrapolated:
        """Start without momentum."""
        return _Extrapolated(w0, w0, jnp.ones((), tree.dtype(w0)))

    def params(self, state: _Extrapolated) -> Tree:
        """``y_i``, where the gradient is taken."""
        return state.y

    def advance(self, state: _Extrapolated, F: Tree) -> _Extrapolated:
        """A gradient step from y, then extrapolation."""
        x = tree.axpy(-self.step, F, state.y)
        moved = tree.sub(x, state.x)
        if self.momentum is None:
            uphill = tree.dot(F, moved) > 0
            t = jnp.where(uphill, 1.0, state.t)
            following = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
            momentum = (t - 1) / following
        else:
            momentum, following = self.momentum, state.t
        return _Extrapolated(tree.axpy(momentum, moved, x), x, following)


def _spectrum(mu: Any, L: Any, lower: Lower, lam: Tree, w0: Tree, data: Tree) -> tuple[Any, Any, int]:
    """Mu and L as given, else estimated at ``w0``, and the matvecs that took."""
    if mu is not None and L is not None:
        return mu, L, 0
    lam, w0 = jax.lax.stop_gradient((lam, w0))
    _, A = lower.linearize(w0, lam, data)
    least, greatest, matvecs = extreme_eigenvalues(A, w0)
    # Without convexity there: a momentum for the most ill-conditioned problem that could be told from it.
    least = jnp.maximum(least, tree.eps(w0) * greatest)
    return least if mu is None else mu, greatest if L is None else L, matvecs + 1
