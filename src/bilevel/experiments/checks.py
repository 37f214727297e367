"""What is told of records in words: claims, and a table."""

from typing import NamedTuple


class Check(NamedTuple):
    """A claim about records, whether it holds there, and what was seen."""

    claim: str
    holds: bool
    seen: str


class Summary(NamedTuple):
    """A table of what was seen: titles of the columns, and rows of as many cells."""

    titles: tuple[str, ...]
    rows: list[tuple[str, ...]]
