"""The page ``docs/accuracy.md``, from the newest records of every row only."""

import statistics
from pathlib import Path

from page import OURS, block, in_words
from rows import ACCURACY

RECORDS = Path(__file__).parent / "records" / "accuracy.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "accuracy.md"
PEERS = ("jaxopt", "optimistix", "hypertorch")


def newest(records):
    """For every row the records of its last run, by library."""
    runs = {key(r): r["run"] for r in records}
    rows = {row: {} for row in sorted(runs)}
    for r in records:
        if r["run"] == runs[key(r)]:
            rows[key(r)][r["library"]] = r
    return rows


def key(r):
    return r["n"] * r["d"], r["n"], r["d"], r["condition"]


def render(rows):
    """The page."""
    own = [row[OURS] for row in rows.values()]
    threads = " and ".join(sorted({str(r["threads"]) for r in own}))
    days = sorted({r["time"][:10] for r in own})
    versions = {r["library"]: in_words(r["versions"]) for row in rows.values() for r in row.values()}
    lines = [
        "# Time to a relative error of 1e-6",
        "",
        "Made by `python benchmarks/accuracy.py`. l2-regularized logistic regression with one penalty per feature, as",
        "many validation as training samples, of the given condition at `w = 0`; float64,",
        f"{threads} CPU threads, {own[0]['device']}, {', '.join(days)}.",
        "",
        "bilevel is called as `bl.hypergradient(problem, lam, w0, ..., tol=1e-6)` and chooses everything itself; its",
        "own error estimate is in the time. For every other library the fastest setting of a grid that reaches a true",
        "relative error of 1e-6 was picked, which takes knowing the answer: L-BFGS, implicit differentiation, CG. The",
        "libraries on JAX alternate in one process; hypertorch takes turns with it in a process of its own, with one",
        "thread on small tables, and is timed once only where it is far behind.",
        "",
        "- times are medians in ms; *ratio*: our time over that of the best other library, below 1 we are faster;",
        "- *matvecs*: gradients and Hessian-vector products of ours: lower level + adjoint + error estimate; most of",
        "  them, those that prepare or approximate, in float32;",
        "- *error*, *says*: our true relative error, and `h.relative_error`.",
        "",
        *block(table(rows)),
        "",
        *summary(rows),
        "",
        "## Settings",
        "",
        "What was timed, and the true relative error it reached; *tried*: settings looked at before.",
        "",
        *block(settings(rows)),
        "",
        *(f"- {name}: {numbers}." for name, numbers in versions.items()),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def table(rows):
    """One line for every row."""
    lines = ["n x d, condition    bilevel  jaxopt  optimistix  hypertorch  ratio  matvecs         error   says"]
    for row in rows.values():
        own = row[OURS]
        counts = own["matvecs"] or {}
        lines.append(
            f"{name(own):<19} {cell(own, 7)} {cell(row.get('jaxopt'), 7)} {cell(row.get('optimistix'), 11)} "
            f"{cell(row.get('hypertorch'), 11)} {'-' if ratio(row) is None else format(ratio(row), '.2f'):>6}  "
            f"{' + '.join(map(str, counts.values())) or '-':<14} {small(own['true_error'])} "
            f"{small(own['estimated_error'])}"
        )
    return "\n".join(lines)


def name(r):
    return f"{r['n']} x {r['d']}, {r['condition']}"


def cell(r, width):
    """Milliseconds; ``failed`` where the accuracy was not reached, ``-`` where the library was left out."""
    if r is None:
        return "-".rjust(width)
    return "failed".rjust(width) if r["failure"] else f"{1e3 * r['seconds']['median']:{width}.2f}"


def small(error):
    return f"{'-' if error is None else format(error, '.0e'):>6}"


def ratio(row):
    """Our median over that of the best other library, None where there is none or we missed the accuracy."""
    times = [row[peer]["seconds"]["median"] for peer in PEERS if peer in row and not row[peer]["failure"]]
    return row[OURS]["seconds"]["median"] / min(times) if times and reached(row[OURS]) else None


def reached(r):
    """Whether a hypergradient came, and as accurate as asked for."""
    return not r["failure"] and r["true_error"] <= ACCURACY


def summary(rows):
    """Median and largest ratio, and the rows where another library was faster."""
    ratios = {name(row[OURS]): ratio(row) for row in rows.values() if ratio(row) is not None}
    failed = [name(row[OURS]) for row in rows.values() if not reached(row[OURS])]
    slower = [f"- {row}: {value:.2f}." for row, value in ratios.items() if value > 1]
    if not ratios:
        return ["No row has accurate times of ours and of another library."]
    return [
        f"**Median ratio {statistics.median(ratios.values()):.2f}, largest {max(ratios.values()):.2f}**, over "
        f"{len(ratios)} rows.",
        *(["", f"bilevel did not reach it on: {'; '.join(failed)}."] if failed else []),
        *(["", "Where another library was faster, the ratio:", "", *slower] if slower else []),
    ]


def settings(rows):
    """One line for every row and library."""
    lines = ["n x d, condition    library      median     min     max calls  error  tried  setting"]
    for row in rows.values():
        for r in row.values():
            lead = f"{name(r):<19} {r['library']:<11}"
            lines.append(f"{lead} {r['failure']}" if r["failure"] else lead + times(r))
    return "\n".join(lines)


def times(r):
    seconds = r["seconds"]
    spread = "".join(f"{1e3 * seconds[which]:8.2f}" for which in ("median", "min", "max"))
    words = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in r["setting"].items())
    return f"{spread} {seconds['calls']:>5} {small(r['true_error'])}  {len(r['tried']):>5}  {words}"
