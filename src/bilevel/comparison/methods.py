"""The methods that are compared: one line each, made for a problem and a budget."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from bilevel import tree
from bilevel.automatic.method import Automatic
from bilevel.linear.cg import CG
from bilevel.linear.gmres import GMRES
from bilevel.linear.richardson import Richardson
from bilevel.methods.aid import AID
from bilevel.methods.itd import ITD
from bilevel.models.catalog import Case
from bilevel.solvers.anderson import Anderson
from bilevel.solvers.momentum import HeavyBall
from bilevel.solvers.picard import GradientDescent, Picard
from bilevel.status import ProblemError

FORWARD_SIZE = 64


@dataclass(frozen=True)
class Budget:
    """What the methods may spend.

    Parameters
    ----------
    tol
        Relative accuracy that the automatic method works to.
    steps
        Steps T of the lower-level iterations.
    products
        Matrix-vector products K of the adjoint solves, and steps of truncated ITD.

    Raises
    ------
    ProblemError
        A value is not positive.
    """

    tol: float = 1e-4
    steps: int = 100
    products: int = 20

    def __post_init__(self):
        for name in ("tol", "steps", "products"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ProblemError(f"{name} must be positive, but is {getattr(self, name):g}")


class Setting(NamedTuple):
    """What a method is made for."""

    case: Case
    budget: Budget

    @property
    def minimization(self) -> bool:
        """Whether the lower level is one."""
        return self.case.problem.lower.kind == "minimization"

    @property
    def symmetric(self) -> bool:
        """Whether ``d_w F`` is known to be symmetric."""
        return self.case.problem.lower.symmetric

    @property
    def plain(self) -> Any:
        """T steps of the plain iteration: gradient descent, or Picard's on a map."""
        return (GradientDescent if self.minimization else Picard)(steps=self.budget.steps)

    @property
    def heavy_ball(self) -> HeavyBall:
        """T steps with momentum, for minimizations."""
        return HeavyBall(steps=self.budget.steps)

    @property
    def anderson(self) -> Anderson:
        """T accelerated steps."""
        return Anderson(steps=self.budget.steps)

    @property
    def truncates(self) -> bool:
        """Whether K steps are fewer than T."""
        return self.budget.products < self.budget.steps

    @property
    def few_hyperparameters(self) -> bool:
        """Whether forward mode, whose cost is proportional to dim(lam), is worth a look."""
        return tree.size(self.case.lam) <= FORWARD_SIZE


class Entry(NamedTuple):
    """A method of the list: its name, how it is made, and for which problems."""

    name: str
    make: Callable[[Setting], Any]
    fits: Callable[[Setting], bool] = lambda _: True


METHODS = (
    Entry("auto", lambda s: Automatic(s.budget.tol)),
    Entry("aid-newton", lambda _: AID()),
    Entry("aid-cg", lambda s: AID(s.plain, CG(steps=s.budget.products)), lambda s: s.symmetric),
    Entry("aid-cg-refined", lambda s: AID(s.plain, CG(steps=s.budget.products), refine=1), lambda s: s.symmetric),
    Entry("aid-fp", lambda s: AID(s.plain, Richardson(steps=s.budget.products))),
    Entry("aid-gmres", lambda s: AID(s.plain, GMRES(steps=s.budget.products))),
    Entry("aid-heavy-ball", lambda s: AID(s.heavy_ball, CG(steps=s.budget.products)), lambda s: s.minimization),
    Entry("aid-anderson", lambda s: AID(s.anderson, GMRES(steps=s.budget.products)), lambda s: not s.minimization),
    Entry("itd", lambda s: ITD(s.plain)),
    Entry("itd-truncated", lambda s: ITD(s.plain, truncate=s.budget.products), lambda s: s.truncates),
    Entry("itd-checkpoint", lambda s: ITD(s.plain, checkpoint="sqrt")),
    Entry("itd-forward", lambda s: ITD(s.plain, mode="forward"), lambda s: s.few_hyperparameters),
    Entry("itd-heavy-ball", lambda s: ITD(s.heavy_ball), lambda s: s.minimization),
)


def choose(setting: Setting, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Methods for a problem by name, in the order of the list; all that fit it where no names are given.

    Raises
    ------
    ProblemError
        A name is unknown, or that method does not fit the problem.
    """
    known, fitting = [entry.name for entry in METHODS], [entry for entry in METHODS if entry.fits(setting)]
    wanted = [entry.name for entry in fitting] if names is None else list(names)
    for name in wanted:
        if name not in known:
            raise ProblemError(f"unknown method '{name}': the methods are {', '.join(known)}")
        if name not in [entry.name for entry in fitting]:
            raise ProblemError(
                f"method '{name}' does not fit this problem; those that do are {', '.join(e.name for e in fitting)}"
            )
    if not wanted:
        raise ProblemError(f"no method is named: choose among {', '.join(known)}")
    return {entry.name: entry.make(setting) for entry in fitting if entry.name in wanted}
