"""Every family by name, and one call that draws a problem of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from bilevel.certificates.constants import Constants
from bilevel.models import (
    affine,
    biased_regularization,
    equilibrium,
    hyper_representation,
    kernel_ridge,
    logistic,
    multinomial,
    ridge,
)
from bilevel.models.samples import Instance
from bilevel.problems import Problem
from bilevel.status import ProblemError

Tree = Any

SIZE, CONDITION = 300, 100.0
LARGEST_SIZE = 10_000  # the samplers factorize dense matrices of this order


class Case(NamedTuple):
    """A problem at one ``lam``, with its start and its data."""

    problem: Problem
    lam: Tree
    w0: Tree
    lower_data: Tree = None
    upper_data: Tree = None


class Family(NamedTuple):
    """A family: its problem, a draw ``sample(seed, n, condition, dtype)`` with w of about n entries, its constants."""

    problem: Callable[[], Problem]
    sample: Callable[[int, int, float, Any], Instance]
    constants: Callable[[Tree, Tree, Tree], Constants]


def draw(name: str, *, size: int = SIZE, condition: float = CONDITION, seed: int = 0, dtype: Any = None) -> Case:
    """Draw a problem of a family.

    Parameters
    ----------
    name
        A key of :data:`CATALOG`; hyphens stand for underscores.
    size
        Number of lower-level unknowns, from 2 to 10000; rounded where they come in blocks.
    condition
        Condition number of ``A = d_w F``, at least 1, as the sampler of the family means it.
    seed
        Of the draw, at least 0.
    dtype
        Of the arrays; None for the default floating dtype.

    Raises
    ------
    ProblemError
        The name is unknown, or the family has no such instance.

    Examples
    --------
    >>> case = draw("kernel-ridge", size=5, condition=10.0)
    >>> case.w0.shape
    (5,)
    """
    family = CATALOG.get(name.replace("-", "_"))
    if family is None:
        raise ProblemError(f"unknown problem '{name}': the built-in ones are {', '.join(CATALOG)}")
    if not 2 <= size <= LARGEST_SIZE:
        raise ProblemError(f"size must be from 2 to {LARGEST_SIZE}, but is {size}")
    if not 1 <= condition < float("inf"):
        raise ProblemError(f"condition must be a number from 1 on, but is {condition:g}")
    if seed < 0:
        raise ProblemError(f"seed must be 0 or more, but is {seed}")
    try:
        instance = family.sample(seed, size, condition, dtype)
    except ValueError as error:
        raise ProblemError(f"{name} cannot be drawn with condition {condition:g}: {error}") from error
    return Case(family.problem(), *instance)


def _regression(module: Any) -> Family:
    """A linear model with somewhat more than twice as many samples as features."""
    return Family(
        module.problem,
        lambda seed, n, condition, dtype: module.sample(seed, 2 * n + 20, n, condition, dtype),
        module.constants,
    )


def _kernel_ridge(seed: int, n: int, condition: float, dtype: Any) -> Instance:
    return kernel_ridge.sample(seed, n, 2, max(condition, 2.0), dtype)  # condition one is an infinite penalty


def _multinomial(seed: int, n: int, condition: float, dtype: Any) -> Instance:
    d = max(n // 3, 2)
    return multinomial.sample(seed, 12 * d + 20, d, condition, dtype)


def _equilibrium(seed: int, n: int, condition: float, dtype: Any) -> Instance:
    states = 4 if n < 100 else 20
    return equilibrium.sample(seed, max(n // states, 1), states, condition, dtype)


CATALOG: dict[str, Family] = {
    "ridge": _regression(ridge),
    "logistic": _regression(logistic),
    "multinomial": Family(multinomial.problem, _multinomial, multinomial.constants),
    "kernel_ridge": Family(kernel_ridge.problem, _kernel_ridge, kernel_ridge.constants),
    "biased_regularization": _regression(biased_regularization),
    "hyper_representation": _regression(hyper_representation),
    "equilibrium": Family(equilibrium.problem, _equilibrium, equilibrium.constants),
    "affine": Family(affine.problem, affine.sample, affine.constants),
}
