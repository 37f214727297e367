"""Which rows train, which test, and to which fold each training row belongs."""

import numpy as np
from jaxtyping import Int
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split

from bilevel.data.errors import DataError
from bilevel.data.target import Target, refuse_rare_classes

FEWEST_TRAINING_ROWS_PER_FOLD = 2


def split_rows(
    target: Target, test_fraction: float, seed: int
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
    """Row numbers of the training and the test part, at random; classes keep their proportions.

    Raises
    ------
    DataError
        There are too few rows, of a class or altogether.
    """
    rows = np.arange(len(target.values))
    labels = target.values.astype(int) if target.task == "classification" else None
    fewest = max(2, len(target.classes))
    tested = round(test_fraction * len(rows))
    if tested < fewest or len(rows) - tested < fewest:
        raise DataError(
            f"a test part of {test_fraction:g} of {len(rows)} rows leaves too few rows on one side; give more rows or "
            "another --test-fraction"
        )
    if labels is not None:
        refuse_rare_classes(target.values, target.classes, 2)
    train, test = train_test_split(rows, test_size=tested, random_state=seed, stratify=labels)
    return np.sort(train), np.sort(test)


def assign_folds(target: Target, rows: Int[np.ndarray, " train"], folds: int, seed: int) -> Int[np.ndarray, " train"]:
    """Fold of every training row, 0 to folds - 1, at random; classes spread evenly.

    Raises
    ------
    DataError
        A class, or the training part, has too few rows for so many folds.
    """
    values = target.values[rows]
    if len(rows) < FEWEST_TRAINING_ROWS_PER_FOLD * folds:
        raise DataError(f"{len(rows)} training rows are too few for {folds} folds; give more rows or fewer --folds")
    if target.task == "classification":
        refuse_rare_classes(values, target.classes, folds)
        splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(rows, values.astype(int))
    else:
        splits = KFold(folds, shuffle=True, random_state=seed).split(rows)
    assigned = np.empty(len(rows), dtype=int)
    for fold, (_, held_out) in enumerate(splits):
        assigned[held_out] = fold
    return assigned
