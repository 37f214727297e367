"""Data sets by name: four that come with scikit-learn and two noisy demonstrations."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn import datasets

from bilevel.data.errors import DataError

INFORMATIVE = 10
FEATURES = 100


def noisy_classification(draw: int = 1) -> pd.DataFrame:
    """400 rows, 2 classes, 100 standard normal features of which 10 matter.

    ``P(yes) = 1 / (1 + exp(-2 x^T w))``, ``|w_j|`` uniform in [0.5, 1.5] on the informative features. ``draw`` is the
    seed of the data.
    """
    rng = np.random.default_rng(draw)
    X, signal = _signal(rng, 400)
    labels = np.where(rng.uniform(size=len(X)) < 1 / (1 + np.exp(-2 * signal)), "yes", "no")
    return _frame(X, labels)


def noisy_regression(draw: int = 1) -> pd.DataFrame:
    """300 rows, 100 standard normal features of which 10 matter: ``y = x^T w + N(0, 1)``, ``w`` as above."""
    rng = np.random.default_rng(draw)
    X, signal = _signal(rng, 300)
    return _frame(X, signal + rng.standard_normal(len(X)))


def _signal(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    X = rng.standard_normal((rows, FEATURES))
    w = np.zeros(FEATURES)
    w[:INFORMATIVE] = rng.choice([-1.0, 1.0], INFORMATIVE) * rng.uniform(0.5, 1.5, INFORMATIVE)
    return X, X @ w


def _frame(X: np.ndarray, target: np.ndarray) -> pd.DataFrame:
    names = [f"signal_{j}" if j < INFORMATIVE else f"noise_{j}" for j in range(X.shape[1])]
    return pd.DataFrame(X, columns=names).assign(target=target)


def _from_sklearn(loader: Callable) -> Callable[[], pd.DataFrame]:
    """The table of a scikit-learn loader, classes by their names (digits: by their numbers)."""

    def load() -> pd.DataFrame:
        bunch = loader(as_frame=True)
        names = getattr(bunch, "target_names", None)
        target = bunch.target
        if names is not None and isinstance(names[0], str):
            target = target.map(dict(enumerate(map(str, names))))
        return bunch.data.assign(target=target)

    return load


BUNDLED: dict[str, Callable[[], pd.DataFrame]] = {
    "breast_cancer": _from_sklearn(datasets.load_breast_cancer),
    "digits": _from_sklearn(datasets.load_digits),
    "wine": _from_sklearn(datasets.load_wine),
    "diabetes": _from_sklearn(datasets.load_diabetes),
    "noisy_classification": noisy_classification,
    "noisy_regression": noisy_regression,
}


def load_bundled(name: str) -> pd.DataFrame:
    """The bundled table of this name; its target column is called ``target``."""
    if name not in BUNDLED:
        raise DataError(f"unknown data set '{name}': give a file or one of {', '.join(BUNDLED)}")
    return BUNDLED[name]()
