"""What a person sees of a diagnosis: findings in sentences, and a row for each method."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bilevel.diagnosis.report import Diagnosis

WIDTH = 80
COLUMNS = "steps T", "products k", "matvecs", "memory MB"


def show_diagnosis(found: Diagnosis, name: str, *, cite: bool) -> None:
    """Print findings, recommendation and table, and the papers where asked; no line is longer than 80 characters."""
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH)
    console.print(Text(name, style="bold"))
    for sentence in found.findings:
        console.print(Text(sentence))
    console.print(Text(found.advice, style="bold"))
    if found.alternatives:
        console.print(_table(found))
        console.print(Text(_legend(found)))
    if cite:
        console.out(found.citations)


def _table(found: Diagnosis) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for title in COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("not used, as")
    if found.recommendation is not None:
        r = found.recommendation
        table.add_row(Text("recommended", style="bold"), "", "", str(r.matvecs), _megabytes(r.memory), "")
    for a in found.alternatives:
        if a.reason:
            table.add_row(a.name, "", "", "", "", a.reason)
        else:
            table.add_row(a.name, _count(a.steps), _count(a.products), str(a.matvecs), _megabytes(a.memory), "")
    return table


def _legend(found: Diagnosis) -> str:
    return (
        f"Matvecs to the relative error {found.tol:.0e}: of the recommended method what it took, its error estimate "
        "included; of the others predictions, without one. Memory: predicted, beside the data."
    )


def _count(value: int) -> str:
    return str(value) if value else ""


def _megabytes(value: int) -> str:
    return f"{value / 1e6:.2g}" if value < 1e8 else f"{value / 1e6:.0f}"
