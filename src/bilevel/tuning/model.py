"""A fitted model that predicts from raw tables, and its file."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from bilevel.data import DataError, Encoder

FORMAT = 1


@dataclass(frozen=True)
class Model:
    """A generalized linear model with everything it needs to read raw tables.

    Attributes
    ----------
    family
        ``ridge``, ``logistic`` or ``multinomial``.
    target
        Name of the column it predicts.
    classes
        Labels in order; empty for ridge.
    encoder
        From raw tables to standardized features.
    coef, intercept
        On standardized features, shapes (d, c) and (c,); c is 1 but for more than two classes.
    target_mean, target_scale
        Ridge predicts ``target_mean + target_scale * score``; 0 and 1 for classes.
    penalties
        The penalty of every feature, shape (d,): the fit minimizes the sum over the rows of the negative
        log-likelihood (half the squared residual of the standardized target) plus ``1/2 sum_j penalty_j |w_j|^2``.
    """

    family: str
    target: str
    classes: tuple[Any, ...]
    encoder: Encoder
    coef: np.ndarray
    intercept: np.ndarray
    target_mean: float
    target_scale: float
    penalties: np.ndarray

    def predict(self, table: pd.DataFrame) -> np.ndarray:
        """Labels, or quantities in the units of the target, of the rows of a raw table.

        Parameters
        ----------
        table
            Has the columns that the model was trained on; others are ignored.

        Raises
        ------
        DataError
            A column is missing or holds what it did not hold in training.
        """
        scores = self.scores(table)
        if self.family == "ridge":
            return self.target_mean + self.target_scale * scores[:, 0]
        positions = scores.argmax(axis=1) if self.family == "multinomial" else (scores[:, 0] > 0).astype(int)
        return np.array(self.classes)[positions]

    def predict_proba(self, table: pd.DataFrame) -> Float[np.ndarray, "rows classes"]:
        """Probability of every class, in the order of ``classes``."""
        if self.family == "ridge":
            raise DataError(f"a ridge model of '{self.target}' predicts quantities and has no probabilities")
        scores = self.scores(table)
        if self.family == "logistic":
            scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)

    def scores(self, table: pd.DataFrame) -> Float[np.ndarray, "rows c"]:
        """Linear scores: standardized quantities, log-odds of the second class, or unnormalized log-probabilities."""
        return self.encoder(table) @ self.coef + self.intercept

    def save(self, path: Path) -> None:
        """Write the model as JSON; numbers come back exactly."""
        values = {**asdict(self), "encoder": self.encoder.to_dict(), "format": FORMAT}
        arrays = {name: getattr(self, name).tolist() for name in ("coef", "intercept", "penalties")}
        path.write_text(json.dumps({**values, **arrays}, indent=1), encoding="utf-8")


def load_model(path: str | Path) -> Model:
    """Read a model that ``bilevel tune --out DIR`` wrote; ``path`` is the directory or its ``model.json``.

    Raises
    ------
    DataError
        There is no such file, or it is not such a model.
    """
    file = Path(path) / "model.json" if Path(path).is_dir() else Path(path)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise DataError(f"{file} was written by another version of bilevel; tune again")
        arrays = {name: np.array(values[name], dtype=float) for name in ("coef", "intercept", "penalties")}
        encoder = Encoder.from_dict(values["encoder"])
        return Model(**{**values, **arrays, "encoder": encoder, "classes": tuple(values["classes"])})
    except OSError as error:
        raise DataError(f"cannot read the model {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} is not a model written by bilevel tune") from error
