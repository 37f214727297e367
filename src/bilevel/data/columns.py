"""What a column holds, and refusal of what cannot be used: nothing is imputed or guessed silently."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from bilevel.data.errors import DataError

MOSTLY = 0.5  # a text column of which this fraction reads as numbers was meant to be numeric
FEW_CATEGORIES = 20


def is_numeric(values: pd.Series) -> bool:
    """Whether a column holds numbers (or truth values) rather than categories.

    Text that reads as numbers throughout counts as numbers.

    Raises
    ------
    DataError
        Values are missing, dates, numbers mixed with junk, or text that names rows rather than categories.
    """
    name = values.name
    refuse_missing(values)
    if pd.api.types.is_bool_dtype(values):
        return True
    if pd.api.types.is_complex_dtype(values) or pd.api.types.is_datetime64_any_dtype(values):
        raise DataError(f"column '{name}' holds {values.dtype} values; turn them into numbers or leave it out")
    if pd.api.types.is_numeric_dtype(values) and not isinstance(values.dtype, pd.CategoricalDtype):
        return True
    if isinstance(values.dtype, pd.CategoricalDtype):
        return False
    return _text_is_numeric(values)


def _text_is_numeric(values: pd.Series) -> bool:
    numbers: Any = pd.to_numeric(values.astype(str).str.strip(), errors="coerce")
    junk = numbers.isna().to_numpy()
    if not junk.any():
        return True
    if junk.mean() < MOSTLY:
        first = int(np.flatnonzero(junk)[0])
        raise DataError(
            f"column '{values.name}' is numeric but for {int(junk.sum())} value(s), the first being "
            f"'{values.iloc[first]}' in row {_row(values, first)}; repair or remove them"
        )
    distinct = values.astype(str).nunique()
    if distinct > FEW_CATEGORIES and distinct > len(values) / 2:
        raise DataError(
            f"column '{values.name}' has {distinct} different texts in {len(values)} rows: names or free text, not "
            "categories; leave it out"
        )
    return False


def as_numbers(values: pd.Series) -> Float[np.ndarray, " rows"]:
    """The column as finite float64 numbers.

    Raises
    ------
    DataError
        A value is missing, infinite, or not a number.
    """
    refuse_missing(values)
    text = values.astype(str).str.strip() if not pd.api.types.is_numeric_dtype(values) else values
    if pd.api.types.is_bool_dtype(values):
        text = values.astype(float)
    column: Any = pd.to_numeric(text, errors="coerce")
    numbers = column.to_numpy(dtype=float, na_value=np.nan)
    bad = ~np.isfinite(numbers)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"column '{values.name}' has {int(bad.sum())} value(s) that are not finite numbers, the first being "
            f"'{values.iloc[first]}' in row {_row(values, first)}; repair or remove them"
        )
    return numbers


def as_categories(values: pd.Series) -> list[str]:
    """The column as texts; none may be missing."""
    refuse_missing(values)
    return [str(value) for value in values]


def refuse_missing(values: pd.Series) -> None:
    """Raise :class:`DataError` where values are missing."""
    missing = values.isna().to_numpy()
    if missing.any():
        first = int(np.flatnonzero(missing)[0])
        raise DataError(
            f"column '{values.name}' has {int(missing.sum())} missing value(s) (empty, NA or NaN), the first in row "
            f"{_row(values, first)}; fill or remove them, nothing is imputed"
        )


def _row(values: pd.Series, position: int) -> int:
    """Number of the row in the file, the first below the header being 1."""
    label = values.index[position]
    return int(label) + 1 if isinstance(label, int | np.integer) else position + 1
