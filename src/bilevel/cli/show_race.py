"""What a person sees of a race: the task, a row for each algorithm, and what to read from them."""

import math
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bilevel.experiments.lines import Line
from bilevel.racing.summary import Row, common, summary

WIDTH = 80
UNKNOWN = "-"
COLUMNS = ("in the\nend", "at equal\nsamples", "at equal\nseconds", "upper\nvalue", "steps\n/ s", "samples\n/ s")
MARKS = {"published": "", "ours": "*", "default": "+", "given": "", "own": ""}
LEGENDS = {"ours": "* settings chosen here", "default": "+ default settings"}


def show_race(lines: list[Line], out: Path | None) -> None:
    """Print task, table, failures in words, and a conclusion; no line is longer than 80 characters."""
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH)
    rows = summary(lines)
    first = lines[0]
    console.print(Text.assemble((first["experiment"], "bold"), f": {first['about']}, {first['dtype']}"))
    console.print(Text(f"metric: {first['metric_name']}"))
    console.print(_table(rows))
    for text in (*_ends(lines), _legend(lines, rows), conclusion(rows)):
        console.print(Text(text))
    if out is not None:
        console.print(Text(f"written: {out}"))


def conclusion(rows: list[Row]) -> str:
    """The best at equal samples and the best at equal seconds, in one sentence."""
    usable = [row for row in rows if not (row.failed or math.isnan(row.at_samples) or math.isnan(row.at_seconds))]
    if not usable:
        return "No algorithm came to an end that is known."
    samples = min(usable, key=lambda row: row.at_samples)
    seconds = min(usable, key=lambda row: row.at_seconds)
    start = f"Best at equal samples: {samples.name}, {_number(samples.at_samples)}"
    if samples is seconds:
        return f"{start}, which is also the best at equal seconds, {_number(seconds.at_seconds)}."
    return f"{start}; at equal seconds: {seconds.name}, {_number(seconds.at_seconds)}."


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("\nalgorithm", no_wrap=True)
    for title in COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("\nstatus", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name + MARKS[row.origin], _number(row.final), _number(row.at_samples), _number(row.at_seconds),
            UNKNOWN if math.isnan(row.value) else f"{row.value:#.5g}", _rate(row.steps_per_second),
            _rate(row.samples_per_second), row.status.lower(),
        )  # fmt: skip
    return table


def _ends(lines: list[Line]) -> list[str]:
    """A sentence for every way to end that is not ``OK``, after the names of the algorithms that did."""
    sentences: dict[str, list[str]] = {}
    for line in lines:
        if line["status"] != "OK":
            sentences.setdefault(line["sentence"], []).append(line["algorithm"])
    return [f"{', '.join(dict.fromkeys(names))}: {sentence}" for sentence, names in sentences.items()]


def _legend(lines: list[Line], rows: list[Row]) -> str:
    samples, seconds = common(lines, "samples"), common(lines, "seconds")
    config = lines[0]["config"]
    epoch = config["lower_rows"] + config["upper_rows"]
    marks = [legend for origin, legend in LEGENDS.items() if any(row.origin == origin for row in rows)]
    runs = "1 run" if config["runs"] == 1 else f"medians of {config['runs']} runs"
    reached = [] if math.isnan(samples) else [f"equal samples: {samples / epoch:.3g} epochs"]
    reached += [] if math.isnan(seconds) else [f"equal seconds: {seconds:.3g}"]
    return "; ".join([runs, *reached, "the value is that at the solved lower level", *marks]) + "."


def _number(value: float) -> str:
    """Three digits."""
    if math.isnan(value):
        return UNKNOWN
    return f"{value:#.3g}" if 1e-2 <= abs(value) < 1e3 else f"{value:.1e}"


def _rate(value: float) -> str:
    if math.isnan(value):
        return UNKNOWN
    return f"{value / 1e6:.1f}M" if value >= 1e6 else f"{value / 1e3:.1f}k" if value >= 1e3 else f"{value:.3g}"
