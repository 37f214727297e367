"""Tune one penalty per feature of a linear model by hypergradients, without overfitting the validation data."""

from bilevel.tuning.model import Model, load_model
from bilevel.tuning.output import check_destination, write
from bilevel.tuning.record import record
from bilevel.tuning.run import Result, tune
from bilevel.tuning.settings import Settings

__all__ = ["Model", "Result", "Settings", "check_destination", "load_model", "record", "tune", "write"]
