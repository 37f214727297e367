"""The column to predict: which task it poses, and its values as numbers."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from bilevel.data.columns import as_numbers, refuse_missing
from bilevel.data.errors import DataError, listed

Task = Literal["regression", "classification"]
MOST_CLASSES = 20  # more different whole numbers than this are quantities


@dataclass(frozen=True)
class Target:
    """The target of every row as numbers.

    Attributes
    ----------
    task
        ``"regression"`` or ``"classification"``.
    classes
        The labels in order, as text, numbers or truth values; empty for regression.
    values
        Class positions, or the quantities in their own units; shape (rows,), float64.
    """

    task: Task
    classes: tuple[Any, ...]
    values: np.ndarray


def read_target(column: pd.Series, task: str = "auto") -> Target:
    """Read the target.

    ``"auto"`` takes text, truth values and at most 20 different whole numbers (ten rows each on average) for
    classes, everything else for a quantity.

    Raises
    ------
    DataError
        Values are missing, not finite, all equal, or not numbers where a quantity was asked for.
    """
    refuse_missing(column)
    if task not in ("auto", "regression", "classification"):
        raise DataError(f"unknown task '{task}': choose auto, regression or classification")
    if column.nunique() < 2:
        raise DataError(f"the target '{column.name}' is constant ('{column.iloc[0]}'); there is nothing to predict")
    quantity = task == "regression" or (task == "auto" and not _are_classes(column))
    return _quantity(column) if quantity else _classes(column)


def _are_classes(column: pd.Series) -> bool:
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        text = not pd.api.types.is_bool_dtype(column) and not isinstance(column.dtype, pd.CategoricalDtype)
        numbers: Any = pd.to_numeric(column.astype(str).str.strip(), errors="coerce") if text else None
        if numbers is not None and numbers.notna().mean() > 0.5:
            as_numbers(column)  # numbers with junk among them: says where
            return _are_classes(numbers)
        return True
    values = as_numbers(column)
    distinct = len(np.unique(values))
    whole = bool(np.all(values == np.round(values)))
    return whole and (distinct == 2 or distinct <= min(MOST_CLASSES, len(values) // 10))


def _quantity(column: pd.Series) -> Target:
    return Target("regression", (), as_numbers(column))


def _classes(column: pd.Series) -> Target:
    if pd.api.types.is_float_dtype(column):
        as_numbers(column)  # refuses infinities
    classes, codes = np.unique(np.array(_plain(column), dtype=object), return_inverse=True)
    return Target("classification", tuple(classes.tolist()), codes.astype(float))


def _plain(column: pd.Series) -> list[Any]:
    """Labels as plain Python values, whole floats as integers; mixtures of types as text."""
    values = [value.item() if isinstance(value, np.generic) else value for value in column]
    values = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
    mixed = len({type(value) for value in values}) > 1
    return [str(value) for value in values] if mixed or not isinstance(values[0], bool | int | float) else values


def refuse_rare_classes(codes: np.ndarray, classes: tuple[Any, ...], folds: int) -> None:
    """Raise :class:`DataError` where a class has fewer training rows than there are folds."""
    counts = np.bincount(codes.astype(int), minlength=len(classes))
    rare = [f"'{name}' ({count})" for name, count in zip(classes, counts, strict=True) if count < folds]
    if rare:
        raise DataError(
            f"too few training rows for {folds} folds in the class(es) {listed(rare, 5)}; use fewer --folds, merge or "
            "remove these classes, or choose --task regression"
        )
