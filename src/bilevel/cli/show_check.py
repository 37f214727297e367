"""What a person sees of a check: the problem, a row for each part, and the conclusion."""

import math

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bilevel.checking.report import Check, Part
from bilevel.comparison.record import facts
from bilevel.models.catalog import Case

WIDTH = 80
STYLES = {"right": "", "wrong": "bold red", "undecided": "yellow"}


def show_check(found: Check, name: str, case: Case) -> None:
    """Print problem, verdicts, remarks and conclusion; no line is longer than 80 characters."""
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH)
    for text in (_problem(name, case), _table(found), Text(found.differences_in_words), *map(Text, found.advice)):
        console.print(text)
    console.print(Text(found.summary, style="" if found.ok else "bold"))


def _problem(name: str, case: Case) -> Text:
    about = facts(case)
    return Text.assemble(
        (name, "bold"),
        f": {about['kind'].replace('_', ' ')}, n = {about['unknowns']}, dim lam = {about['hyperparameters']}, ",
        about["dtype"],
    )


def _table(found: Check) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("part", "compared"):
        table.add_column(title, no_wrap=True)
    for title in ("error", "limit"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for part in found.parts:
        table.add_row(part.name, part.what, _number(part.error), _number(part.limit), _verdict(part))
    return table


def _verdict(part: Part) -> Text:
    return Text(part.verdict, style=STYLES[part.verdict])


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1e}"
