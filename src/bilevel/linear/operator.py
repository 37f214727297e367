"""The linear operator ``A`` of a linear system, known by its products only."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from bilevel import tree
from bilevel.precision import full_precision
from bilevel.status import ProblemError, SolveInfo

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
    transposed
        Whether this is the transpose ``.T`` of the operator that was first built, so that what was made of one
        of the two (a factorization) can be used for the other.
    batch
        Whether this is block diagonal, that of a batch of independent problems: it is then never made dense.
    """

    mv: Callable[[Tree], Tree]
    mv_transpose: Callable[[Tree], Tree]
    symmetric: bool = False
    definite: bool = False
    step: Any = None
    transposed: bool = False
    batch: bool = False

    @property
    def T(self) -> "LinearOperator":  # noqa: N802 - the letter of the mathematics
        """``A^T``."""
        if self.symmetric:
            return self
        return replace(self, mv=self.mv_transpose, mv_transpose=self.mv, transposed=not self.transposed)

    @full_precision
    def block(self, V: Float[Array, "n k"], like: Tree) -> Float[Array, "n k"]:
        """``A V`` for raveled vectors of the space of ``like``, by one block of k products."""
        unravel = ravel_pytree(like)[1]
        # Vectors are rows inside: XLA multiplies X by rows twice as fast on CPU.
        return jax.vmap(lambda x: ravel_pytree(self.mv(unravel(x)))[0])(V.T).T

    def dense(self, like: Tree) -> Float[Array, "n n"]:
        """The matrix itself, by one block of n products with the unit vectors of the space of ``like``."""
        if self.batch:
            raise ProblemError(
                "The matrix of a batch is block diagonal and is not made dense: use CG or GMRES as the linear solver, "
                "or the automatic method, which factorizes the blocks."
            )
        return self.block(jnp.eye(tree.size(like), dtype=tree.dtype(like)), like)


def from_matrix(
    A: Float[Array, "n n"], *, symmetric: bool = False, definite: bool = False, step: Any = None
) -> LinearOperator:
    """Operator of an explicit matrix."""
    return LinearOperator(lambda x: A @ x, lambda x: A.T @ x, symmetric, definite, step)


def damped(A: LinearOperator, damping: Any) -> LinearOperator:
    """``A + damping I``; A itself for None.

    Its step ``b = a / (1 + a damping)`` has ``I - b (A + damping I) = (I - a A) / (1 + a damping)``: a contraction
    wherever ``I - a A`` is one, and a faster one.
    """
    if damping is None:
        return A
    return replace(
        A,
        mv=lambda x: tree.axpy(damping, x, A.mv(x)),
        mv_transpose=lambda x: tree.axpy(damping, x, A.mv_transpose(x)),
        step=None if A.step is None else A.step / (1 + A.step * damping),
    )


class LinearSolver(Protocol):
    """Solves ``A x = b``: ``linear(A, b, x0, preconditioner=..., rtol=..., steps=...) -> x, SolveInfo``.

    The rule is ``norm(b - A x) <= rtol * norm(b)``. With ``steps`` and no ``rtol`` exactly that many
    iterations run. ``preconditioner`` is a product with an approximate inverse of ``A``; without it, iterative
    solvers build the one of their field ``preconditioner``, a :class:`Preconditioner`.
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


class Preconditioner(Protocol):
    """Makes approximate inverses: ``preconditioner.build(A, like) -> M, matvecs``.

    ``M`` is callable, the product with an approximate inverse of ``A`` on the space of ``like``; ``matvecs`` are
    the products with ``A`` that it took. What the preconditioners of this library build is again a
    preconditioner, a pytree that builds itself at no cost: kept, it serves solves with ``A`` and ``A.T`` and with
    operators close to them.
    """

    def build(self, A: LinearOperator, like: Tree) -> tuple[Callable[[Tree], Tree], int]:
        """Build ``M``."""
        ...


def build(preconditioner: Preconditioner | None, A: LinearOperator, like: Tree) -> tuple[Callable[[Tree], Tree], int]:
    """The approximate inverse that a preconditioner builds, the identity for None, and the matvecs it took."""
    return (lambda r: r, 0) if preconditioner is None else preconditioner.build(A, like)


class Request(NamedTuple):
    """What one solve is asked for."""

    budget: bool  # exactly ``steps`` iterations, whatever the residual
    target: Any  # norm of the residual to be reached; zero on a budget
    steps: Any
    preconditioner: Callable[[Tree], Tree] | None
    matvecs: int  # that building the preconditioner took

    def precondition(self, r: Tree) -> Tree:
        """``M r``."""
        return r if self.preconditioner is None else self.preconditioner(r)


def request(
    solver: Any, A: LinearOperator, b: Tree, *, preconditioner: Any, rtol: Any, steps: Any, most: int
) -> Request:
    """What a call asks for, where it says nothing the fields of the solver; at most ``most`` steps by default."""
    rtol = solver.rtol if rtol is None else rtol
    steps = solver.steps if steps is None else steps
    budget = rtol is None and steps is not None
    target = 0.0 if budget else (default_rtol(b) if rtol is None else rtol) * tree.norm(b)
    matvecs = 0
    if preconditioner is None and solver.preconditioner is not None:
        preconditioner, matvecs = solver.preconditioner.build(A, b)
    return Request(budget, target, most if steps is None else steps, preconditioner, matvecs)


def transpose(mv: Callable[[Tree], Tree], like: Tree) -> Callable[[Tree], Tree]:
    """``x -> M^T x`` of a linear function ``x -> M x`` on the space of ``like``."""
    transposed = jax.linear_transpose(mv, like)
    try:
        jax.eval_shape(transposed, like)  # it is here that jax finds out
    except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise ProblemError(
            "The transpose of the preconditioner is needed, but JAX cannot transpose the function given: write it "
            "as a linear function of its argument in JAX, or use a solver that needs no transpose, such as GMRES."
        ) from error
    return lambda x: transposed(x)[0]


def start(A: LinearOperator, b: Tree, x0: Tree | None) -> tuple[Tree, Tree, int]:
    """Starting point, its residual ``b - A x0``, and the products that took: none for the zero start."""
    if x0 is None:
        return tree.zeros_like(b), b, 0
    x0 = tree.where(tree.norm(b) > 0, x0, tree.zeros_like(b))
    return x0, tree.sub(b, A.mv(x0)), 1


def default_rtol(b: Tree) -> float:
    """Relative tolerance of solvers where none is given: the square root of machine epsilon."""
    return tree.eps(b) ** 0.5


def divisor(x: Float[Array, ""]) -> Float[Array, ""]:
    """``x`` where it is positive, else one, to divide by; NaN comes through in what is divided."""
    return jnp.where(x > 0, x, 1.0)
