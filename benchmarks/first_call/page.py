"""The part of a page on first calls, from records of ``benchmarks/records/first_call.jsonl``."""

import statistics
from pathlib import Path

from first_call.libraries import BY_HAND

RECORDS = Path(__file__).parents[1] / "records" / "first_call.jsonl"
OURS, PEERS = "bilevel", ("jaxopt", "optimistix")
LABELS = {BY_HAND: "JAX by hand"}
WIDTHS = {"import": 8, "first": 8, "thirty": 8, "warm": 10}
RATIOS = ("first", "thirty", "warm")
OTHERS = {"the faster": PEERS, LABELS[BY_HAND]: (BY_HAND,)}


def newest(records):
    """The last record of every row and library, rows in order of their first."""
    last = {(r["row"], r["library"]): r for r in records}
    return list(last.values())


def render(records):
    """The part of the page, from its heading on."""
    rows = {name: {r["library"]: r for r in records if r["row"] == name} for name in {r["row"]: None for r in records}}
    if not rows:
        return "## The first call\n\nNot measured yet."
    lines = [
        "## The first call",
        "",
        "What one waits for, made by `python benchmarks/first_call.py`: medians of new processes,",
        f"{span(records, 'repetitions')} of each library, which find nothing compiled. All libraries read the same",
        "arrays. We are asked for `tol=1e-6` and nothing else and estimate the error, too; every other library has the",
        "fastest setting of a grid for which all thirty calls are accurate to 1e-6, which takes knowing the answers.",
        "*JAX by hand* is Newton-CG, dense Newton or Picard in one compiled program, tuned alike.",
        f"{span(records, 'dtype')}, {span(records, 'threads')} CPU threads, {span(records, 'device')}, "
        f"{span(records, 'time', 10)}.",
        "",
        "- *import*: seconds until the library is imported;",
        "- *first*: seconds from the start to the first hypergradient, import and compilation included;",
        "- *thirty*: the same to the thirtieth, each of other hyperparameters and from the solution before;",
        "- *warm*: milliseconds of a call that starts afresh and has nothing to compile;",
        "- *error*, *worst*: true relative error of the first and of the worst of the thirty;",
        "- *misses*: how many of the thirty are off by more than 1e-6;",
        "- *over the faster*: our time over that of the faster of jaxopt and optimistix, below 1 we are faster.",
        "",
        *block("\n\n".join(table(row) for row in rows.values())),
        "",
        *overall(rows),
        "",
        "Settings:",
        "",
        *(setting(r) for r in records if r["library"] != OURS and not r["failure"]),
        "",
        "Versions:",
        "",
        *(f"- {label(library)}: {words}." for library, words in versions(records).items()),
    ]  # fmt: skip
    return "\n".join(lines)


def table(row):
    """One row: a line for every library, and the ratios."""
    head = f"{'':<14}{'import':>8}{'first':>8}{'thirty':>8}{'warm':>10}{'error':>8}{'worst':>8}{'misses':>8}"
    lines = [next(iter(row.values()))["title"], head, *map(line, row.values())]
    return "\n".join([*lines, *(ratio_line(row, name, others) for name, others in OTHERS.items())])


def line(r):
    """One library."""
    lead = f"  {label(r['library']):<12}"
    if r["failure"]:
        return f"{lead}  {r['failure']}"[:80]
    cells = "".join(
        f"{1e3 * seconds(r, name) if name == 'warm' else seconds(r, name):{WIDTHS[name]}.2f}" for name in WIDTHS
    )
    return f"{lead}{cells}{small(r['error'])}{small(r['worst_error'])}{r['failures']:>8}"


def ratio_line(row, name, others):
    """Our times over the least of others."""
    ratios = {measure: ratio(row, others, measure) for measure in RATIOS}
    cells = (f"{'-' if value is None else format(value, '.2f'):>{WIDTHS[key]}}" for key, value in ratios.items())
    return f"  {'over ' + name:<{12 + WIDTHS['import']}}" + "".join(cells)


def ratio(row, others, measure):
    """Our median over the least of others, None where there is none or we failed."""
    times = [seconds(row[other], measure) for other in others if other in row and reached(row[other])]
    return seconds(row[OURS], measure) / min(times) if times and OURS in row and reached(row[OURS]) else None


def reached(r):
    """Whether all hypergradients came, and as accurate as asked for."""
    return not r["failure"] and not r["failures"]


def overall(rows):
    """Median and largest ratios over the rows."""
    lines = []
    for name, others in OTHERS.items():
        for measure in RATIOS:
            ratios = [value for row in rows.values() if (value := ratio(row, others, measure)) is not None]
            if ratios:
                lines.append(
                    f"- {measure}, over {name}: median {statistics.median(ratios):.2f}, largest {max(ratios):.2f}, "
                    f"at most 1 in {sum(value <= 1 for value in ratios)} of {len(ratios)} rows."
                )
    return lines or ["No row has times of ours and of another library."]


def seconds(r, measure):
    return r["seconds"][measure]["median"]


def setting(r):
    """What was searched for a library."""
    words = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in r["setting"].items() if value is not None)
    return f"- {r['title']}, {label(r['library'])}: {words}."


def versions(records):
    """The versions of every library, of its last record."""
    return {
        r["library"]: ", ".join(f"{name} {version}" for name, version in r["versions"].items())
        for r in records
        if r["versions"]
    }


def label(library):
    return LABELS.get(library, library)


def small(error):
    return f"{'-' if error is None else format(error, '.0e'):>8}"


def span(records, key, length=None):
    """All values of a key, in words."""
    return ", ".join(sorted({str(r[key])[:length] for r in records if key in r}))


def block(text):
    return ["```", text, "```"]
