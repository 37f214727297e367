"""Numbers from a table: one-hot categories and standardization, learned from the training rows alone."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from bilevel.data.columns import as_categories, as_numbers, is_numeric
from bilevel.data.errors import DataError, listed


@dataclass(frozen=True)
class Column:
    """How one column of the table is read: as numbers where ``categories`` is None, else one-hot."""

    name: str
    categories: tuple[str, ...] | None


@dataclass(frozen=True)
class Encoder:
    """From raw tables to standardized matrices; made by :func:`fit_encoder`.

    Attributes
    ----------
    columns
        The columns of the raw table it needs.
    names
        Names of the d encoded features, ``column`` or ``column=category``.
    kept
        Their positions among all encoded features; those constant on the training rows are left out.
    mean, scale
        What is subtracted and divided by, shape (d,), in the units of the columns.
    """

    columns: tuple[Column, ...]
    names: tuple[str, ...]
    kept: tuple[int, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]

    def __call__(self, features: pd.DataFrame) -> Float[np.ndarray, "rows d"]:
        """Encode the rows of a raw table. A category never seen in training becomes zeros in its columns.

        Raises
        ------
        DataError
            A column is missing, or holds missing, infinite or non-numeric values where numbers were learned.
        """
        encoded = _encode(features, self.columns)[:, list(self.kept)]
        return (encoded - np.asarray(self.mean)) / np.asarray(self.scale)

    def unseen(self, features: pd.DataFrame) -> list[str]:
        """Categories of this table, as ``column=category``, that the training rows did not have."""
        return [
            f"{column.name}={value}"
            for column in self.columns
            if column.categories is not None
            for value in sorted(set(as_categories(_take(features, column.name))) - set(column.categories))
        ]

    @property
    def encoded(self) -> int:
        """Number of encoded features before the constant ones were left out."""
        return sum(len(_feature_names(column)) for column in self.columns)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Encoder":
        """The inverse of :meth:`to_dict`, after JSON has made lists of tuples."""
        columns = tuple(
            Column(c["name"], None if c["categories"] is None else tuple(c["categories"])) for c in values["columns"]
        )
        rest = {key: tuple(values[key]) for key in ("names", "kept", "mean", "scale")}
        return cls(columns, **rest)


def fit_encoder(features: pd.DataFrame) -> Encoder:
    """Learn categories, means and standard deviations from the training rows.

    Two categories make one 0/1 feature, more make one each.

    Parameters
    ----------
    features
        The training rows only.

    Raises
    ------
    DataError
        A column cannot be used, or none varies.
    """
    columns = tuple(_column(_take(features, name)) for name in features.columns)
    encoded = _encode(features, columns)
    names = np.array([name for column in columns for name in _feature_names(column)])
    mean, scale = encoded.mean(axis=0), encoded.std(axis=0)
    kept = np.flatnonzero(scale > 1e-12 * np.maximum(np.abs(mean), np.finfo(float).tiny))
    if not len(kept):
        raise DataError(f"no feature varies on the training rows: {listed(features.columns)}")
    if not np.all(np.isfinite(scale)):
        worst = names[~np.isfinite(scale)][0]
        raise DataError(f"the values of '{worst}' are too large to standardize; rescale the column")
    return Encoder(
        columns, tuple(map(str, names[kept])), tuple(map(int, kept)),
        tuple(map(float, mean[kept])), tuple(map(float, scale[kept])),
    )  # fmt: skip


def _column(values: pd.Series) -> Column:
    name = str(values.name)
    return Column(name, None if is_numeric(values) else tuple(sorted(set(as_categories(values)))))


def _feature_names(column: Column) -> list[str]:
    if column.categories is None:
        return [column.name]
    return [f"{column.name}={category}" for category in _shown(column.categories)]


def _shown(categories: tuple[str, ...]) -> tuple[str, ...]:
    return categories[1:] if len(categories) == 2 else categories


def _encode(features: pd.DataFrame, columns: tuple[Column, ...]) -> Float[np.ndarray, "rows all"]:
    missing = [column.name for column in columns if column.name not in features.columns]
    if missing:
        raise DataError(f"the table lacks the columns {listed(missing)}")
    parts = []
    for column in columns:
        values = _take(features, column.name)
        if column.categories is None:
            parts.append(as_numbers(values)[:, None])
        else:
            given = np.array(as_categories(values), dtype=object)
            parts.append(np.stack([given == category for category in _shown(column.categories)], axis=1))
    return np.concatenate([part.astype(float) for part in parts], axis=1)


def _take(features: pd.DataFrame, name: str) -> Any:
    """One column."""
    return features[name]
