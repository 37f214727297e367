"""Which prior: the strongest one that is as good as the best, judged on rows its penalties were tuned without."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Losses = list[Float[np.ndarray, " n"]]
TO_LEAVE = 1.5  # standard errors that the single penalty must be worse by: the best of many looks better than it is
PATIENCE = 3  # strengths in a row without a better selection loss


@dataclass(frozen=True)
class Choice:
    """The chosen point of the path.

    Attributes
    ----------
    chosen, best
        Position of the chosen point and of the one with the least selection loss; 0 is the single penalty.
    means
        Mean selection loss of every point.
    excess, standard_error
        Mean and standard error of the selection loss of every point minus that of the best, row by row.
    """

    chosen: int
    best: int
    means: tuple[float, ...]
    excess: tuple[float, ...]
    standard_error: tuple[float, ...]

    def reason(self) -> str:
        """One sentence."""
        k = self.chosen
        if k == self.best == 0:
            return "no weaker prior had a lower selection loss"
        gap = (
            f"its selection loss is {self.excess[k]:.4f} above the lowest, standard error {self.standard_error[k]:.4f}"
        )
        if k == 0:
            return f"no prior is clearly better ({gap}; {TO_LEAVE:g} of them are asked for to leave the single penalty)"
        if k == self.best:
            return "it has the lowest selection loss, and every stronger prior is clearly worse"
        return f"the strongest prior that is not clearly worse than the best ({gap})"


def choose(losses: Losses) -> Choice:
    """The one-standard-error rule on paired differences: rows are hard or easy for all points alike.

    One and a half standard errors for the single penalty.

    Parameters
    ----------
    losses
        Selection losses of the rows at every point, strongest prior first.
    """
    means = np.array([np.mean(loss) for loss in losses])
    best = int(np.argmin(means))
    differences = np.stack(losses) - losses[best]
    excess = differences.mean(axis=1)
    error = differences.std(axis=1, ddof=1) / np.sqrt(differences.shape[1])
    allowed = np.concatenate([TO_LEAVE * error[:1], error[1:]])
    chosen = int(np.argmax(excess <= allowed))
    return Choice(chosen, best, *(tuple(map(float, values)) for values in (means, excess, error)))


def hopeless(losses: Losses) -> bool:
    """Whether weaker priors need not be tried: clearly worse already, or no better for a while."""
    choice = choose(losses)
    last = len(losses) - 1
    if choice.best == last:
        return False
    return choice.excess[last] > 2 * choice.standard_error[last] or last - choice.best >= PATIENCE
