"""Anderson's acceleration of the lower-level map."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel import tree
from bilevel.linear.spectral import basis_combine, basis_dot
from bilevel.problems import Lower
from bilevel.solvers.iteration import solve_by_iteration, with_map_step

Tree = Any

RIDGE = 100.0  # eps of regularization of the normal equations, whose columns have norm one
GROWTH = 10.0  # a residual so many times the smallest since the memory began says that the memory misleads
NOISE = 100.0  # eps of w: differences of residuals below are rounding, and mixing them is noise


class _Memory(NamedTuple):
    w: Tree
    last_w: Tree
    last_r: Tree
    iterates: Tree  # differences of iterates, leading axis m
    residuals: Tree  # differences of residuals, leading axis m
    held: Int[Array, ""]  # differences taken since the memory began
    least: Float[Array, ""]  # smallest norm of a residual since the memory began


@tree.record
@dataclass(frozen=True)
class Anderson:
    """Anderson acceleration of ``w <- w + r``, ``r = -step * F(w, lam)``.

    From the last m differences ``dW`` of iterates and ``dR`` of residuals

        gamma = argmin |r - dR gamma|,      w <- w + damping r - (dW + damping dR) gamma.

    On affine maps this is GMRES(m)-like; it often converges where the map is no contraction. The memory is
    dropped where the residual is ten times the smallest it has seen, and at rounding, where plain steps go on.

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
        rounding = norm_r <= NOISE * tree.eps(r) * tree.norm(jax.lax.stop_gradient(state.w))
        begins = (state.held < 0) | (norm_r > GROWTH * state.least) | rounding
        held = jnp.where(begins, 0, state.held + 1)
        slot = jnp.maximum(held - 1, 0) % self.memory
        dW = _put(state.iterates, slot, tree.sub(state.w, state.last_w))
        dR = _put(state.residuals, slot, tree.sub(r, state.last_r))
        scaled_dW, scaled_dR, used = _scaled(dW, dR, jnp.arange(self.memory) < held)
        gamma = _mixing(scaled_dR, r, used)
        mixed = tree.axpy(self.damping, basis_combine(scaled_dR, gamma), basis_combine(scaled_dW, gamma))
        w = tree.sub(tree.axpy(self.damping, r, state.w), mixed)
        return _Memory(w, state.w, r, dW, dR, held, jnp.where(begins, norm_r, jnp.minimum(state.least, norm_r)))


def _put(basis: Tree, slot: Any, x: Tree) -> Tree:
    return jax.tree.map(lambda B, x: B.at[slot].set(x), basis, x)


def _scaled(dW: Tree, dR: Tree, held: Bool[Array, " m"]) -> tuple[Tree, Tree, Bool[Array, " m"]]:
    """Both in units in which the columns of dR have norm one, and which columns are used.

    The least-squares problem does not feel the units: for differentiation they are constants.
    """
    size = jax.vmap(tree.norm)(jax.lax.stop_gradient(dR))
    used = held & (size > 0)
    unit = jnp.where(used, 1 / jnp.where(used, size, 1.0), 0.0)
    return *(jax.tree.map(lambda B: jax.vmap(jnp.multiply)(unit.astype(B.dtype), B), basis) for basis in (dW, dR)), used


def _mixing(dR: Tree, r: Tree, used: Bool[Array, " m"]) -> Float[Array, " m"]:
    """``argmin |r - dR gamma|`` by regularized normal equations; columns that are not used are zero."""
    gram = jax.vmap(lambda x: basis_dot(dR, x))(dR)
    identity = jnp.eye(len(used), dtype=gram.dtype)
    gram = jnp.where(used[:, None] & used[None], gram, identity) + RIDGE * tree.eps(r) * identity
    return jax.scipy.linalg.solve(gram, basis_dot(dR, r), assume_a="pos")
