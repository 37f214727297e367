"""What can be chosen about a tuning run."""

from dataclasses import dataclass

from bilevel.data import DataError

FEWEST_FOLDS, MOST_FOLDS = 3, 20


@dataclass(frozen=True)
class Settings:
    """Choices of :func:`bilevel.tuning.tune`; the defaults work.

    Parameters
    ----------
    task
        ``"auto"``, ``"regression"`` or ``"classification"``.
    validation
        ``"folds"``: the validation loss is that of K-fold cross-validation; ``"holdout"``: that of one fold.
    folds
        K, from 3 to 20.
    test_fraction
        Part of the rows that only the final scores see, between 0 and 1.
    seed
        Of the splits, at least 0.
    dtype
        ``"float64"`` (needs JAX's x64 mode) or ``"float32"``.

    Raises
    ------
    DataError
        A value is not among these.
    """

    task: str = "auto"
    validation: str = "folds"
    folds: int = 5
    test_fraction: float = 0.2
    seed: int = 0
    dtype: str = "float64"

    def __post_init__(self):
        for name, allowed in ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise DataError(f"{name} must be one of {', '.join(allowed)}, but is '{getattr(self, name)}'")
        if not FEWEST_FOLDS <= self.folds <= MOST_FOLDS:
            raise DataError(f"folds must be from {FEWEST_FOLDS} to {MOST_FOLDS}, but is {self.folds}")
        if not 0 < self.test_fraction < 1:
            raise DataError(f"the test fraction must be between 0 and 1, but is {self.test_fraction:g}")
        if not 0 <= self.seed < 2**32:
            raise DataError(f"the seed must be from 0 to 2^32 - 1, but is {self.seed}")


ALLOWED = {
    "task": ("auto", "regression", "classification"),
    "validation": ("folds", "holdout"),
    "dtype": ("float64", "float32"),
}
