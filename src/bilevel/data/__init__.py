"""Tables: reading, checking, splitting and encoding them without leakage."""

from bilevel.data.bundled import BUNDLED
from bilevel.data.encode import Encoder, fit_encoder
from bilevel.data.errors import DataError
from bilevel.data.load import Table, load
from bilevel.data.split import assign_folds, split_rows
from bilevel.data.target import Target, read_target

__all__ = [
    "BUNDLED",
    "DataError",
    "Encoder",
    "Table",
    "Target",
    "assign_folds",
    "fit_encoder",
    "load",
    "read_target",
    "split_rows",
]
