"""What a step along hypergradients tells, whatever the algorithm."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float

from bilevel.methods.base import Hypergradient

Tree = Any


class StepInfo(NamedTuple):
    """What is known of the hyperparameters that a step looked at.

    Attributes
    ----------
    lam, w
        The hyperparameters, and the lower-level solution there.
    value
        ``U(w, lam)``.
    hypergradient
        The hypergradient there; None where the step needed none.
    gradient_norm
        Norm of the projected gradient; NaN without a hypergradient.
    samples
        Rows drawn; 0 where all data were used.
    accepted
        Of a search: whether ``lam`` is the best so far.
    ended
        Of a search: whether it has come as far as it can.
    details
        What an algorithm tells besides.
    """

    lam: Tree
    w: Tree
    value: Float[Array, ""]
    hypergradient: Hypergradient | None
    gradient_norm: Any
    samples: Any = 0
    accepted: Any = True
    ended: Any = False
    details: Any = None

    @property
    def matvecs(self) -> Any:
        """What the hypergradient has cost."""
        return 0 if self.hypergradient is None else self.hypergradient.matvecs

    @property
    def error(self) -> Any:
        """The error of the hypergradient, NaN where there is none."""
        return float("nan") if self.hypergradient is None else self.hypergradient.error


def told(lam: Tree, h: Hypergradient, gradient_norm: Any, **rest: Any) -> StepInfo:
    """What a hypergradient at ``lam`` tells."""
    return StepInfo(lam, h.w, h.value, h, gradient_norm, **rest)
