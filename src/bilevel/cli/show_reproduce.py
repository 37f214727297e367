"""What a person sees of an experiment: a table, and what was claimed."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bilevel.experiments import Check, Summary

WIDTH = 80


def show(name: str, summary: Summary, checks: list[Check], out: Path | None) -> None:
    """Print the table and the claims; no line is longer than 80 characters."""
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH)
    console.print(Text(name, "bold"))
    console.print(_table(summary))
    for check in checks:
        mark = Text("holds  ", "green") if check.holds else Text("FAILS  ", "bold red")
        console.print(Text.assemble(mark, f"{check.claim}: {check.seen}"))
    if out is not None:
        console.print(Text(f"written: {out}"))


def _table(summary: Summary) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in summary.titles:
        table.add_column(title, no_wrap=True)
    for row in summary.rows:
        table.add_row(*row)
    return table
