"""Proximal maps ``prox_(step g)(u) = argmin_w g(w) + |w - u|^2 / (2 step)``, for :func:`~bilevel.problems.composite`.

Their derivatives, by ``u`` and by their parameters, are elements of conservative Jacobians: right wherever there is a
derivative, and at the kinks those of one of the pieces (Bolte, Le, Pauwels and Silveti-Falls 2021, arXiv 2106.04350).
Projections on boxes, balls and simplices, the proximal maps of constraints, are in ``optax.projections``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import tree

Tree = Any
Number = Any  # a scalar, an array that broadcasts with u, or a pytree of these that is a prefix of u


def zero(u: Tree, _lam: Tree = None, _step: Any = None) -> Tree:
    """That of ``g = 0``: ``u``. With it :func:`~bilevel.problems.composite` is plain gradient descent."""
    return u


def soft_threshold(u: Tree, threshold: Number) -> Tree:
    """``sign(u) max(|u| - threshold, 0)``, that of ``g(w) = l1 |w|_1`` for ``threshold = step l1``.

    Parameters
    ----------
    u
        Any pytree of floating arrays.
    threshold
        Not negative; a number, or one for every leaf or entry of ``u``. Unit u.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> print(soft_threshold(jnp.array([-3.0, 0.5, 2.0]), 1.0))
    [-2.  0.  1.]
    """

    def shrink(x, t):
        # At |x| = t the derivative of x - sign(x) t: with t = 0 that of the identity, at x = 0, too.
        return jnp.where(jnp.abs(x) >= t, x - jnp.sign(x) * t, jnp.zeros_like(x))

    return jax.tree.map(shrink, u, jax.tree.broadcast(threshold, u))


def elastic_net(u: Tree, l1: Number, l2: Number, step: Any) -> Tree:
    """``soft_threshold(u, step l1) / (1 + step l2)``, that of ``g(w) = l1 |w|_1 + l2/2 |w|^2``.

    Parameters
    ----------
    u
        Any pytree of floating arrays.
    l1, l2
        Not negative; numbers, or one for every leaf or entry of ``u``.
    step
        Positive.

    References
    ----------
    Parikh and Boyd (2014), Proximal Algorithms, Section 6.5.3.
    """
    shrunk = soft_threshold(u, jax.tree.map(lambda a: step * a, l1))
    return jax.tree.map(lambda x, a: x / (1 + step * a), shrunk, jax.tree.broadcast(l2, u))


@dataclass(frozen=True)
class ProximalGradient:
    """The map ``G(T(w))`` of proximal gradient descent: ``T = w - step d_w smooth(w)``, ``G = prox``.

    Parameters as in :func:`~bilevel.problems.composite`.
    """

    smooth: Callable[[Tree, Tree, Tree], Any]
    prox: Callable[[Tree, Tree, Any], Tree]
    step: float | Callable[[Tree, Tree], Any]

    def __call__(self, w: Tree, lam: Tree, data: Tree) -> Tree:
        """``G(T(w, lam), lam)``."""
        return self.backward(self.forward(w, lam, data), lam, data)

    def forward(self, w: Tree, lam: Tree, data: Tree) -> Tree:
        """``T(w, lam) = w - step d_w smooth(w, lam)``, an expectation where ``smooth`` is one."""
        return tree.axpy(-self._step_at(lam, data), jax.grad(self.smooth)(w, lam, data), w)

    def backward(self, u: Tree, lam: Tree, data: Tree) -> Tree:
        """``G(u, lam) = prox(u, lam, step)``."""
        return self.prox(u, lam, self._step_at(lam, data))

    def _step_at(self, lam: Tree, data: Tree) -> Any:
        return self.step(lam, data) if callable(self.step) else self.step
