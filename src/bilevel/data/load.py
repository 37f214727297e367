"""Read a table: CSV, Parquet, svmlight (plain or compressed) or a bundled name."""

import bz2
import gzip
import lzma
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_svmlight_file

from bilevel.data.bundled import BUNDLED, load_bundled
from bilevel.data.errors import DataError, listed

COMPRESSED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
SVMLIGHT_LINE = re.compile(r"^\s*[-+.\deE,]+(\s+qid:\d+)?(\s+\d+:[^\s:]+)+\s*(#.*)?$")
MOST_BYTES = 2**31  # of a sparse file made dense


@dataclass(frozen=True)
class Table:
    """Features and target as they were read, nothing changed.

    Attributes
    ----------
    name
        What it was called: the bundled name or the file name.
    features
        One column per feature, one row per sample.
    target
        The column to predict, aligned with ``features``.
    """

    name: str
    features: pd.DataFrame
    target: pd.Series


def load(source: str, target: str | None = None) -> Table:
    """Read ``source`` and split off the column ``target``.

    Parameters
    ----------
    source
        A bundled name, or the path of a CSV (``.csv``, ``.tsv``), Parquet (``.parquet``, ``.pq``) or svmlight file
        (``.svm``, ``.svmlight``, ``.libsvm``, or any file whose first line has that form); CSV and
        svmlight also compressed as ``.gz``, ``.bz2`` or ``.xz``. A file goes before a bundled name.
    target
        Name of the column to predict. Bundled and svmlight data call theirs ``target``, so None will do.

    Raises
    ------
    DataError
        The source cannot be read, is empty, or has no such column.
    """
    path = Path(source)
    if not path.exists() and source in BUNDLED:
        return _split(source, load_bundled(source), target or "target")
    if not path.exists():
        if not path.suffix and path.parent == Path():
            load_bundled(source)  # says which names there are
        raise DataError(f"no such file: {source}")
    if not path.is_file():
        raise DataError(f"not a file: {source}")
    reader, own_target = _reader(path)
    frame = _read(path, reader)
    if target is None and own_target is None:
        raise DataError(f"say which column to predict with --target; {path.name} has {listed(frame.columns)}")
    return _split(path.name, frame, target or own_target or "")


def _split(name: str, frame: pd.DataFrame, target: str) -> Table:
    if target not in frame.columns:
        raise DataError(f"no column '{target}' in {name}; it has {listed(frame.columns)}")
    if len(frame) < 2:
        raise DataError(f"{name} has {len(frame)} row{'s' * (len(frame) != 1)}; tuning needs many")
    features = frame.drop(columns=target)
    if features.shape[1] == 0:
        raise DataError(f"{name} has no column besides the target '{target}'")
    column: Any = frame[target]
    return Table(name, features, column)


def _reader(path: Path) -> tuple[Callable[[Path], pd.DataFrame], str | None]:
    """How to read the file and, where the format fixes it, what its target is called."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    kind = suffixes[-1] if suffixes else ""
    if kind in (".csv", ".tsv"):
        return _read_tsv if kind == ".tsv" else _read_csv, None
    if kind in (".parquet", ".pq"):
        return pd.read_parquet, None
    if kind in (".svm", ".svmlight", ".libsvm") or _looks_like_svmlight(path):
        return _read_svmlight, "target"
    raise DataError(f"cannot tell the format of {path.name}: name it .csv, .parquet or .svmlight")


def _read(path: Path, reader: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
    """Whatever the readers raise, as one line."""
    try:
        frame = reader(path)
    except DataError:
        raise
    except pd.errors.EmptyDataError:
        raise DataError(f"{path.name} is empty") from None
    except Exception as error:  # readers raise a dozen types, of three libraries
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"cannot read {path.name}: {reason}") from error
    frame.columns = [str(column) for column in frame.columns]
    repeated = frame.columns[frame.columns.duplicated()]
    if len(repeated):
        raise DataError(f"{path.name} has more than one column '{repeated[0]}'")
    return frame


def _read_csv(path: Path, separator: str = ",") -> pd.DataFrame:
    with warnings.catch_warnings():  # mixed types are reported column by column later
        warnings.simplefilter("ignore", pd.errors.DtypeWarning)
        return pd.read_csv(path, sep=separator, skipinitialspace=True, low_memory=False)


def _read_tsv(path: Path) -> pd.DataFrame:
    return _read_csv(path, "\t")


def _read_svmlight(path: Path) -> pd.DataFrame:
    with COMPRESSED.get(path.suffix.lower(), open)(path, "rb") as file:
        if not file.read(1):
            raise DataError(f"{path.name} is empty")
        file.seek(0)
        X, y = load_svmlight_file(file)[:2]
    if X.shape[0] * X.shape[1] * 8 > MOST_BYTES:
        raise DataError(
            f"{path.name} has {X.shape[0]} x {X.shape[1]} entries, more than {MOST_BYTES // 2**30} GiB when dense; "
            "keep fewer features"
        )
    names = [f"feature_{j + 1}" for j in range(X.shape[1])]
    frame = pd.DataFrame(np.asarray(X.todense()), columns=names)
    return frame.assign(target=y)


def _looks_like_svmlight(path: Path) -> bool:
    """Whether the first line that says something has the form ``label index:value ...``."""
    try:
        with COMPRESSED.get(path.suffix.lower(), open)(path, "rt", encoding="ascii") as file:
            for line in file:
                if line.strip() and not line.lstrip().startswith("#"):
                    return bool(SVMLIGHT_LINE.match(line))
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError):
        pass
    return False
