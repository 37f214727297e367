"""The tables of ``docs/race.md`` and its figures, from the records of races:

    for name in quadratics ijcnn1 covtype datacleaning-0.5 datacleaning-0.7 datacleaning-0.9; do
        bilevel race $name --epochs 10 --seconds 2 --out benchmarks/records
    done
    python benchmarks/race_page.py

The pictures move from the records to ``docs/figures``.
"""

import math
from pathlib import Path

from page import read

from bilevel.racing import TASKS, summary
from bilevel.racing.plot import figure
from bilevel.racing.summary import common

RECORDS = Path(__file__).parent / "records"
PAGE = Path(__file__).parents[1] / "docs" / "race.md"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->"
DEFAULT, TUNED = "AdaptiveSOBA", ("SOBA", "SABA", "SRBA", "AmIGO")
MARKS = {"published": "", "ours": "*", "default": "+", "given": "", "own": ""}


def main():
    races = {name: lines for name in TASKS if (lines := read(RECORDS / f"race-{name}.jsonl"))}
    parts = against_default(races)
    for name, lines in races.items():
        parts += section(name, lines)
        figure(lines).savefig(PAGE.parent / "figures" / f"race-{name}.png", dpi=100)
        (RECORDS / f"race-{name}.png").unlink(missing_ok=True)
    text = PAGE.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n".join(parts) + "\n" + END + after)


def against_default(races):
    """The upper values of the default and of the best of four that were tuned."""
    rows = []
    for name, lines in races.items():
        values = {row.name: row.value for row in summary(lines)}
        if math.isnan(values.get(DEFAULT, math.nan)):
            continue
        best = min((other for other in TUNED if not math.isnan(values[other])), key=values.get)
        default = values[DEFAULT]
        rows.append(f"| {name} | {best} | {values[best]:#.5g} | {default:#.5g} | {default / values[best]:.3f} |")
    return [
        "",
        f"| task | best of {', '.join(TUNED)} | its upper value | {DEFAULT} | ratio |",
        "|---|---|---|---|---|",
        *rows,
    ]


def section(name, lines):
    """Title, facts, table and figure of a task."""
    first, config = lines[0], lines[0]["config"]
    epochs = common(lines, "samples") / (config["lower_rows"] + config["upper_rows"])
    return [
        "", f"### {name}", "",
        f"{first['about'][:1].upper()}{first['about'][1:]}. Metric: {first['metric_name']}. "
        f"Equal samples: {epochs:.3g} epochs; equal seconds: {common(lines, 'seconds'):.3g}. "
        f"{'One run' if config['runs'] == 1 else 'Medians of ' + str(config['runs']) + ' runs'} on {first['device']}, "
        f"jax {first['versions']['jax']}, {first['time'][:10]}.",
        "",
        "| algorithm | step, ratio | in the end | equal samples | equal seconds | upper value | steps / s | status |",
        "|---|---|---|---|---|---|---|---|",
        *[cells(row, next(line for line in lines if line["algorithm"] == row.name)) for row in summary(lines)],
        "", f"![{name}](figures/race-{name}.png)", "",
    ]  # fmt: skip


def cells(row, line):
    given = line["setting"]
    setting = f"{given['step']:.4g}, {given['ratio']:.3g}{MARKS[row.origin]}" if given else "its own"
    numbers = [number(x) for x in (row.final, row.at_samples, row.at_seconds)]
    value = "" if math.isnan(row.value) else f"{row.value:#.5g}"
    rate = "" if math.isnan(row.steps_per_second) else f"{row.steps_per_second:,.0f}"
    return f"| {' | '.join([row.name, setting, *numbers, value, rate, row.status.lower()])} |"


def number(x):
    return "" if math.isnan(x) else f"{x:#.3g}" if 1e-2 <= abs(x) < 1e3 else f"{x:.1e}"


if __name__ == "__main__":
    main()
