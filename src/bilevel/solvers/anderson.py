"""Anderson's acceleration of the lower-level map."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel import tree
from bilevel.linear.spectral import basis_combine, basis_dot
from bilevel.problems import Lower
from bilevel.solvers.iteration import solve_by_iteration, with_map_step

Tree = Any

RIDGE = 100.0  # eps of regularization of the normal equations, whose columns have norm one
GROWTH = 10.0  # a residual that has grown by so much since the memory began says that the memory misleads


class _Memory(NamedTuple):
    w: Tree
    last_w: Tree
    last_r: Tree
    iterates: Tree  # differences of iterates, leading axis m
    residuals: Tree  # differences of residuals, leading axis m
    held: Int[Array, ""]  # differences taken since the memory began
    first: Float[Array, ""]  # norm of the residual with which the memory began


@tree.record
@dataclass(frozen=True)
class Anderson:
    """Anderson acceleration of ``w <- w + r``, ``r = -step * F(w, lam)``.

    From the last m differences ``dW`` of iterates and ``dR`` of residuals

        gamma = argmin |r - dR gamma|,      w <- w + damping r - (dW + damping dR) gamma.

    On affine maps this is GMRES(m)-like; it often converges where the map is no contraction. The memory is
    dropped where the residual has grown tenfold.

    Parameters
    ----------
    steps, rtol, step
        As in :class:`~bilevel.solvers.picard.Picard`.
    memory
        Number m of differences kept.
    damping
        In (0, 1]; below 1 more cautious.

    Notes
    -----
    Cost: one matvec a step, one for the residual of the value returned, 17 where the step of a minimization is
    estimated; ``2 m`` vectors. Statuses: ``MAX_STEPS``, ``DIVERGED``, ``NONFINITE``.

    References
    ----------
    Walker and Ni (2011), Anderson acceleration for fixed-point iterations.
    """

    steps: int | None = field(default=None, metadata={"static": True})
    rtol: Any = None
    step: Any = None
    memory: int = field(default=5, metadata={"static": True})
    damping: Any = 1.0

    __call__ = solve_by_iteration

    def prepare(self, lower: Lower, lam: Tree, w0: Tree, data: Tree) -> tuple[Self, int]:
        """Make the step a number."""
        return with_map_step(self, lower, lam, w0, data)

    def init(self, w0: Tree) -> _Memory:
        """Start with an empty memory."""
        empty = jax.tree.map(lambda x: jnp.zeros((self.memory, *x.shape), x.dtype), w0)
        infinite = jnp.asarray(jnp.inf, tree.dtype(w0))
        return _Memory(w0, w0, tree.zeros_like(w0), empty, empty, jnp.asarray(-1), infinite)

    def params(self, state: _Memory) -> Tree:
        """``w``."""
        return state.w

    def advance(self, state: _Memory, F: Tree) -> _Memory:
        """Remember the last difference, mix, and step."""
        r = tree.scale(-self.step, F)
        norm_r = tree.norm(jax.lax.stop_gradient(r))
        begins = (state.held < 0) | (norm_r > GROWTH * state.first)
        held = jnp.where(begins, 0, state.held + 1)
        slot = jnp.maximum(held - 1, 0) % self.memory
        dW = _put(state.iterates, slot, tree.sub(state.w, state.last_w))
        dR = _put(state.residuals, slot, tree.sub(r, state.last_r))
        gamma = _mixing(dR, r, jnp.arange(self.memory) < held)
        mixed = tree.add(basis_combine(dW, gamma), tree.scale(self.damping, basis_combine(dR, gamma)))
        w = tree.sub(tree.axpy(self.damping, r, state.w), mixed)
        return _Memory(w, state.w, r, dW, dR, held, jnp.where(begins, norm_r, state.first))


def _put(basis: Tree, slot: Any, x: Tree) -> Tree:
    return jax.tree.map(lambda B, x: B.at[slot].set(x), basis, x)


def _mixing(dR: Tree, r: Tree, used: Any) -> Float[Array, " m"]:
    """``argmin |r - dR gamma|`` by regularized normal equations in columns of norm one; 0 for unused columns."""
    squares = jax.vmap(lambda x: tree.dot(x, x))(dR)
    used = used & (squares > 0)
    size = jnp.sqrt(jnp.where(used, squares, 1.0))
    gram = jax.vmap(lambda x: basis_dot(dR, x))(dR) / (size[:, None] * size[None])
    both = used[:, None] & used[None]
    identity = jnp.eye(len(size), dtype=size.dtype)
    gram = jnp.where(both, gram, identity) + RIDGE * tree.eps(r) * identity
    rhs = jnp.where(used, basis_dot(dR, r) / size, 0.0)
    return jnp.where(used, jax.scipy.linalg.solve(gram, rhs, assume_a="pos") / size, 0.0)
