"""The linear operator ``A`` of a linear system, known by its products only."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from bilevel import tree
from bilevel.status import SolveInfo

Tree = Any


@dataclass(frozen=True)
class LinearOperator:
    """A square matrix ``A`` on a space of pytrees, by its products.

    Attributes
    ----------
    mv, mv_transpose
        ``x -> A x`` and ``x -> A^T x``.
    symmetric
        Whether ``A = A^T``; CG is refused where it is not.
    definite
        Whether ``A`` must be positive definite to make sense (a Hessian at a minimum): a solver that can
        see negative curvature then reports it.
    step
        The ``a`` for which ``I - a A`` is the Jacobian of the lower-level map; None where it is not known.
    """

    mv: Callable[[Tree], Tree]
    mv_transpose: Callable[[Tree], Tree]
    symmetric: bool = False
    definite: bool = False
    step: Any = None

    @property
    def T(self) -> "LinearOperator":  # noqa: N802 - the letter of the mathematics
        """``A^T``."""
        return self if self.symmetric else replace(self, mv=self.mv_transpose, mv_transpose=self.mv)

    def dense(self, like: Tree) -> Float[Array, "n n"]:
        """The matrix itself, by one block of n products with the unit vectors of the space of ``like``."""
        flat, unravel = ravel_pytree(like)
        return jax.vmap(lambda e: ravel_pytree(self.mv(unravel(e)))[0], out_axes=1)(
            jnp.eye(flat.size, dtype=flat.dtype)
        )


def from_matrix(
    A: Float[Array, "n n"], *, symmetric: bool = False, definite: bool = False, step: Any = None
) -> LinearOperator:
    """Operator of an explicit matrix."""
    return LinearOperator(lambda x: A @ x, lambda x: A.T @ x, symmetric, definite, step)


class LinearSolver(Protocol):
    """Solves ``A x = b``: ``linear(A, b, x0, preconditioner=..., rtol=..., steps=...) -> x, SolveInfo``.

    The rule is ``norm(b - A x) <= rtol * norm(b)``. With ``steps`` and no ``rtol`` exactly that many
    iterations run. ``preconditioner`` is a product with an approximate inverse of ``A``.
    """

    @property
    def needs_symmetry(self) -> bool:
        """Whether the solver is wrong on a nonsymmetric operator."""
        ...

    def __call__(
        self,
        A: LinearOperator,
        b: Tree,
        x0: Tree | None = None,
        *,
        preconditioner: Callable[[Tree], Tree] | None = None,
        rtol: Any = None,
        steps: Any = None,
    ) -> tuple[Tree, SolveInfo]:
        """Solve."""
        ...


def start(A: LinearOperator, b: Tree, x0: Tree | None) -> tuple[Tree, Tree, int]:
    """Starting point, its residual ``b - A x0``, and the products that took: none for the zero start."""
    if x0 is None:
        return tree.zeros_like(b), b, 0
    x0 = tree.where(tree.norm(b) > 0, x0, tree.zeros_like(b))
    return x0, tree.sub(b, A.mv(x0)), 1


def default_rtol(b: Tree) -> float:
    """Relative tolerance of solvers where none is given: the square root of machine epsilon."""
    return tree.eps(b) ** 0.5
