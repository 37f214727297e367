"""Methods side by side on one problem: what each gets wrong, and what it costs."""

from bilevel.comparison.methods import METHODS, Budget
from bilevel.comparison.output import write
from bilevel.comparison.record import record
from bilevel.comparison.run import Comparison, Row, compare

__all__ = ["METHODS", "Budget", "Comparison", "Row", "compare", "record", "write"]
