"""The command line: a thin shell over the library."""

from bilevel.cli.app import main

__all__ = ["main"]
