"""What a person sees of a comparison: the problem, a row for each method, and what to read from them."""

import math
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bilevel.comparison.record import facts
from bilevel.comparison.run import Comparison, Row

WIDTH = 80
UNKNOWN = "-"
COLUMNS = (
    "true\nerror", "est.\nerror", "lower\nmv", "adj.\nmv", "error\nmv", "compile\ns", "run\nms", "memory\nMB",
)  # fmt: skip


def show_comparison(found: Comparison, out: Path | None) -> None:
    """Print problem, table, failures in words, and a conclusion; no line is longer than 80 characters."""
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH)
    for text in (_problem(found), _table(found), *_failures(found), _legend(found), Text(conclusion(found))):
        console.print(text)
    if out is not None:
        console.print(Text(f"written: {out}"))


def conclusion(found: Comparison) -> str:
    """The cheapest method below the tolerance, or the closest to it, in one sentence."""
    tol, kind = f"{found.budget.tol:.0e}", "true" if found.judged else "estimated"
    usable = [row for row in found.rows if not row.failed and not math.isnan(found.error_of(row))]
    if not usable:
        return "No method gave a hypergradient whose error is known."
    below = [row for row in usable if found.error_of(row) <= found.budget.tol]
    if not below:
        closest = min(usable, key=found.error_of)
        return f"No {kind} error is below {tol}; the smallest is that of {closest.name}, {found.error_of(closest):.1e}."
    fewest = min(below, key=lambda row: row.matvecs or 0)
    fastest = min(below, key=lambda row: row.run_seconds)
    start = f"Fewest matvecs with the {kind} error below {tol}: {fewest.name}, {fewest.matvecs}"
    if fewest is fastest:
        return f"{start}, which is also the fastest."
    return f"{start}; the fastest is {fastest.name}, {_milliseconds(fastest.run_seconds)} ms."


def _problem(found: Comparison) -> Text:
    about, truth = facts(found.case), found.truth
    return Text.assemble(
        (found.name, "bold"),
        f": {about['kind'].replace('_', ' ')}, n = {about['unknowns']}, dim lam = {about['hyperparameters']}, ",
        f"{about['dtype']}; ",
        f"truth: {truth.how}" if found.judged else f"no truth, as {truth.how} failed: {truth.note}",
    )


def _table(found: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("\nmethod", no_wrap=True)
    for title in COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("\nstatus")
    for row in found.rows:
        table.add_row(
            row.name, _true_error(found, row), _error(row.estimated_error), _count(row.lower), _count(row.adjoint),
            _count(row.error), _seconds(row.compile_seconds), _milliseconds(row.run_seconds), _megabytes(row.memory),
            row.status.lower().replace("_", " "),
        )  # fmt: skip
    return table


def _failures(found: Comparison) -> list[Text]:
    """A sentence for every way to fail, after the names of the methods that failed so."""
    sentences: dict[str, list[str]] = {}
    for row in found.rows:
        if row.failed:
            sentences.setdefault(row.sentence, []).append(row.name)
    return [Text(f"{', '.join(names)}: {sentence}") for sentence, names in sentences.items()]


def _legend(found: Comparison) -> Text:
    truth = f"The truth is known to {found.truth.relative_error:.0e}. " if found.judged else ""
    return Text(
        f"{truth}mv: matvecs. run: median of {found.runs} calls taken in turn, error estimate included. memory: "
        "of the compiled program; for auto of the one that it becomes under jit."
    )


def _true_error(found: Comparison, row: Row) -> str:
    """The true error, or the bound below which the truth itself is not known."""
    resolved = found.truth.relative_error
    return f"<{resolved:.0e}" if row.true_error < resolved else _error(row.true_error)


def _error(value: float) -> str:
    return UNKNOWN if math.isnan(value) else f"{value:.1e}"


def _count(value: int | None) -> str:
    if value is None:
        return UNKNOWN
    return str(value) if value < 100_000 else f"{value / 1000:.0f}k"


def _seconds(value: float) -> str:
    return UNKNOWN if math.isnan(value) else f"{value:.2f}"


def _milliseconds(value: float) -> str:
    return UNKNOWN if math.isnan(value) else _three_digits(1e3 * value)


def _megabytes(value: int | None) -> str:
    return UNKNOWN if value is None else _three_digits(value / 1e6)


def _three_digits(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"
