"""The panels of ``p1-figure1``: four bilevel problems on synthetic data, and the box their ``lam`` comes from.

Sizes, condition numbers and boxes are chosen here: those of the paper are not known. The condition numbers are such
that the slowest of the curves that converge falls by some eight decades along the paper's axis of t.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.certificates.constants import Constants
from bilevel.hypergradient import hypergradient
from bilevel.methods.exact import Exact
from bilevel.models import biased_regularization, hyper_representation, kernel_ridge, logistic
from bilevel.models.samples import Instance
from bilevel.problems import Problem
from bilevel.solvers.momentum import HeavyBall

Tree = Any

SPREAD = 0.02  # of the entries of a representation


class Box(NamedTuple):
    """Least and largest hyperparameters, pytrees like ``lam``."""

    low: Tree
    high: Tree

    def draw(self, rng: np.random.Generator) -> Tree:
        """A ``lam`` with every entry uniform between its limits."""
        return jax.tree.map(lambda a, b: a + (b - a) * jnp.asarray(rng.uniform(size=a.shape), a.dtype), *self)


@dataclass(frozen=True)
class Panel:
    """One problem of the figure.

    Attributes
    ----------
    key, title
        Name in the records, and in the figure.
    family
        Module of :mod:`bilevel.models`.
    box
        ``box(instance) -> Box``, for the instance of the family that was drawn.
    n, d
        Training samples and dimension, as the family's sampler takes them.
    condition
        Condition number of the Hessian, as the sampler means it.
    inner
        Lower-level solver; its parameters are the optimal ones for the constants ``mu`` and ``L`` at ``lam``.
    steps
        Largest t.
    """

    key: str
    title: str
    family: Any
    box: Callable[[Instance], Box]
    n: int
    d: int
    condition: float
    inner: Literal["gradient descent", "heavy ball"]
    steps: int

    @property
    def config(self) -> dict[str, Any]:
        """What its records say of the panel."""
        names = ("n", "d", "condition", "inner", "steps")
        return {name: getattr(self, name) for name in names}

    @property
    def contracts(self) -> bool:
        """Whether the iteration is a contraction in the 2-norm: a-priori bounds speak of it, not of heavy ball."""
        return self.inner == "gradient descent"

    def solver(self, c: Constants, at: Any, w0: Tree) -> HeavyBall:
        """The lower-level solver for these constants; gradient descent is heavy ball without momentum.

        Both have the same numbers in the same places, so that they share compiled programs.
        """
        if self.contracts:
            return HeavyBall(step=map_step(c), momentum=jnp.zeros_like(c.L), mu=c.mu, L=c.L)
        return HeavyBall(mu=c.mu, L=c.L).prepare(at.problem.lower, at.lam, w0, at.lower_data)[0]

    def truth(self, problem: Problem, lam: Tree, w0: Tree, lower_data: Tree, upper_data: Tree) -> Tree:
        """The exact hypergradient: the closed form of the family; logistic regression has none, but ``Exact``."""
        if self.family is not logistic:
            return self.family.hypergradient(lam, lower_data, upper_data)
        return hypergradient(problem, lam, w0, lower_data=lower_data, upper_data=upper_data, method=Exact()).grad


def map_step(c: Constants) -> Any:
    """``2 / (L + mu)``, with which gradient descent contracts fastest."""
    return 2 / (c.L + c.mu)


def _penalties(instance: Instance) -> Box:
    """From 2/3 of the least to 3/2 of the greatest of the sampler, which keeps the condition number near its own."""
    least, greatest = jnp.min(instance.lam), jnp.max(instance.lam)
    return Box(jnp.full_like(instance.lam, least / 1.5), jnp.full_like(instance.lam, 1.5 * greatest))


def _widths(instance: Instance) -> Box:
    """Inverse widths 5 to 20 times those of the sampler, whose kernels have few large eigenvalues; its penalty."""
    gamma, beta = instance.lam["gamma"], instance.lam["beta"]
    low, high = ({"gamma": a * gamma, "beta": b * beta} for a, b in ((5.0, 0.5), (20.0, 2.0)))
    return Box(low, high)


def _center(instance: Instance) -> Box:
    return Box(jnp.full_like(instance.lam, -2.0), jnp.full_like(instance.lam, 2.0))


def _representation(instance: Instance) -> Box:
    return Box(instance.lam - SPREAD, instance.lam + SPREAD)


LOGISTIC = Panel(
    "LR", "Logistic regression", logistic, _penalties,
    n=250, d=15, condition=130.0, inner="gradient descent", steps=1250,
)  # fmt: skip
KERNEL_RIDGE = Panel(
    "KRR", "Kernel ridge regression", kernel_ridge, _widths,
    n=100, d=5, condition=100.0, inner="heavy ball", steps=200,
)  # fmt: skip
BIASED = Panel(
    "BR", "Biased regularization", biased_regularization, _center,
    n=100, d=20, condition=15.0, inner="heavy ball", steps=150,
)  # fmt: skip
REPRESENTATION = Panel(
    "HR", "Hyper-representation", hyper_representation, _representation,
    n=100, d=20, condition=60.0, inner="heavy ball", steps=500,
)  # fmt: skip
BIASED_DESCENT = replace(BIASED, key="BR-GD", title="Biased regularization, gradient descent", inner="gradient descent")
PANELS = (LOGISTIC, KERNEL_RIDGE, BIASED, REPRESENTATION, BIASED_DESCENT)
