"""The page ``docs/trust.md``, from the records of one run only."""

from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "trust.md"
WRONG = 0.01  # relative error above which a cell says "wrong by"
WIDTH = 110


def render(records):
    """The page."""
    libraries = dict.fromkeys(r["library"] for r in records)
    versions = {r["library"]: r["versions"] for r in records}
    lines = [
        "# What comes back where hypergradients are hard",
        "",
        f"Made by `python benchmarks/trust.py` on {records[0]['run'][:10]}. Every library is given the same numbers;",
        "the truth is in closed form, or by dense algebra with extended residuals. The upper objective is half the",
        "squared distance of `w` to a target, `lam` is a scalar. *Silent* means: no exception, no warning, no status",
        f'that is seen by default. Errors are relative; above {100 * WRONG:.0f} % a cell says "wrong by".',
        "",
        *summary(records, libraries),
        "",
        "## Where a hypergradient exists",
        "",
        *tables([r for r in records if r["truth"] is not None]),
        "## Where none exists",
        "",
        "A saddle, a solution that is not unique, or none at all: any number is wrong, and only a refusal is right.",
        "",
        *tables([r for r in records if r["truth"] is None]),
        "## Settings",
        "",
        *SETTINGS,
        "",
        *(f"- {name}: {', '.join(f'{k} {v}' for k, v in numbers.items())}." for name, numbers in versions.items()),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


SETTINGS = (
    "- bilevel: `bl.hypergradient(problem, lam, w0)`, and with `tol=1e-6`; nothing else is chosen. *says* is its own",
    "  estimate `h.relative_error`.",
    "- jaxopt: the named solver with its defaults, and tightened as said; implicit differentiation by default.",
    "- optimistix: the named solver with `rtol = atol` as said (it has no defaults); its default adjoint.",
    "- hypertorch: 1000 steps of the map, or of gradient descent with the step 1/L, which it must be told; then the",
    "  named method with its default tolerance.",
)


def summary(records, libraries):
    """How often each library was silently wrong, over its settings."""
    lines = ["```", f"{'library':<12} silently wrong  refused though it exists  of cells"]
    for library in libraries:
        mine = [r for r in records if r["library"] == library]
        silent = sum(is_silent(r) for r in mine)
        refused = sum(r["truth"] is not None and r["raised"] for r in mine)
        lines.append(f"{library:<12} {silent:>14}  {refused:>24}  {len(mine):>8}")
    return [*lines, "```"]


def is_silent(r):
    """A finite number that is wrong, with nothing said."""
    if r["said"] or not isinstance(r["grad"], float):
        return False
    return r["truth"] is None or r["error"] > WRONG


def tables(records):
    """One block for every fault."""
    lines = ["```"]
    for fault in dict.fromkeys(r["fault"] for r in records):
        lines.append(fault)
        lines += [
            f"  {r['library'] + ', ' + r['setting']:<44} {cell(r)}"[:WIDTH] for r in records if r["fault"] == fault
        ]
    return [*lines, "```", ""]


def cell(r):
    """What came back, in words."""
    if r["raised"]:
        return f"refused: {r['said']}"
    flag = f", warns: {r['said']}" if r["said"] else ""
    if not isinstance(r["grad"], float):
        return f"{r['grad']}{flag or ', no reason given'}"
    if r["truth"] is None:
        return f"returns {r['grad']:.3g}{flag or ', silent'}"
    if r["error"] > WRONG:
        return f"wrong by {percent(r['error'])}{flag or ', silent'}"
    claimed = "" if r["claimed"] is None else f", says {r['claimed']:.0e}"
    return f"{r['error']:.0e}{claimed}{flag}"


def percent(error):
    return f"{100 * error:.0f} %" if error < 100 else f"a factor {error:.0e}"
