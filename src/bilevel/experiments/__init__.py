"""The paper's figures, one experiment a module: records of what was computed, claims about them, and figures of them.

An experiment yields records, plain dicts of one JSON line each; claims, tables and figures are made of these alone.
:data:`~bilevel.experiments.catalog.EXPERIMENTS` has all by name.
"""

from bilevel.experiments.catalog import EXPERIMENTS, Experiment
from bilevel.experiments.checks import Check, Summary
from bilevel.experiments.lines import read_lines, write_lines

__all__ = ["EXPERIMENTS", "Check", "Experiment", "Summary", "read_lines", "write_lines"]
