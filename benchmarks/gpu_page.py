"""The page ``docs/gpu.md``, from the newest records only."""

from pathlib import Path

from gpu_minibatch_page import upper_levels
from page import block, comparison_tables, faster, in_words, notes, read

RECORDS = Path(__file__).parent / "records" / "gpu.jsonl"
PRECISION_RECORDS = RECORDS.with_name("gpu_precision.jsonl")
PAGE = Path(__file__).parents[1] / "docs" / "gpu.md"
PRECISIONS = ("highest", "default")


def newest_run(path):
    """The records of the last run in a file."""
    records = read(path)
    return [r for r in records if r["run"] == records[-1]["run"]]


def render(records, precision_records):
    """The page."""
    lines = [
        "# On a GPU",
        "",
        "In float32 a GPU multiplies matrices with ten bits of mantissa (TF32) unless it is told otherwise: by",
        "`jax.default_matmul_precision`, or by the variable `JAX_DEFAULT_MATMUL_PRECISION`. float64 is not touched.",
        "`bl.hypergradient` and `bl.optimize` ask for the highest precision unless one of the two is set; then they",
        "keep yours.",
    ]
    if precision_records:
        lines += precision(precision_records)
    hypergradients, others = [], []
    for r in records:
        (others if r["table"] in ("soba", "optimize") else hypergradients).append(r)
    if hypergradients:
        lines += benchmark(hypergradients)
    if others:
        lines += upper_levels(others)
    return "\n".join(lines) + "\n"


def precision(records):
    """What the default precision does to float32."""
    r = records[0]
    problems = [r for r in records if r["table"] == "hypergradient"]
    return [
        "",
        "## What TF32 does to float32",
        "",
        f"Measured by `python benchmarks/gpu_precision.py` on one {r['device']}, {in_words(r['versions'])},",
        f"{r['run'][:10]}. Relative errors of single products of random matrices (X is n x d, V is d x 16):",
        "",
        *block(product_table([r for r in records if r["table"] == "product"])),
        "",
        "Matrix-vector products of small matrices are sums and stay exact; blocks, batches under `vmap` and large",
        "matrices do not. Hypergradients of random problems of condition 10 to 100, by the automatic method to 1e-2,",
        "1e-3 and 1e-4, and by gradient descent or Picard, CG or Richardson, and one refinement:",
        "",
        "- *true*, *said*: true relative error and `h.relative_error` where they differ most, among those accepted;",
        "- *wrong*: accepted by the automatic method with a true error above its tolerance; *refused*: not accepted.",
        "",
        *block(error_table(problems)),
    ]


def product_table(records):
    """Errors of single products at both precisions."""
    lines = ["n x d        product          highest  default"]
    for r in records:
        if r["precision"] == "highest":
            same = (o for o in records if (o["n"], o["product"]) == (r["n"], r["product"]))
            other = next(o for o in same if o["precision"] == "default")
            lines.append(f"{r['n']}x{r['d']}".ljust(13) + f"{r['product']:<15} {r['error']:8.0e} {other['error']:8.0e}")
    return "\n".join(lines)


def error_table(records):
    """For every family where true and estimated error differ most, at both precisions."""
    lines = [" " * 41 + "highest" + " " * 25 + "default"]
    lines += ["family                  n  draws   " + "     true     said wrong refused" * 2]
    for family, n in dict.fromkeys((r["family"], r["n"]) for r in records):
        halves = [[r for r in records if (r["family"], r["n"], r["precision"]) == (family, n, p)] for p in PRECISIONS]
        lines.append(f"{family:<22}{n:>4} {len(halves[0]):>5}   " + "".join(map(error_cells, halves)))
    return "\n".join(lines)


def error_cells(records):
    accepted = [r for r in records if r["status"] == "OK"]
    if not accepted:
        return f"{'-':>9}{'-':>9}{0:6d}{len(records):8d}"
    worst = max(accepted, key=lambda r: r["true_error"] / max(r["estimated_error"], 1e-7))
    wrong = sum(r["tol"] is not None and r["true_error"] > r["tol"] for r in accepted)
    return f"{worst['true_error']:9.0e}{worst['estimated_error']:9.0e}{wrong:6d}{len(records) - len(accepted):8d}"


def benchmark(records):
    """Times, against other libraries and against the device."""
    r = records[0]
    exact, rounded = ([r for r in records if r["precision"] == name] for name in PRECISIONS)
    budget = [r for r in exact if r["table"] == "budget"]
    return [
        "",
        "## The same work",
        "",
        f"Measured by `python benchmarks/gpu.py` on one {r['device']}, {in_words(r['versions'])}, {r['time'][:10]}.",
        "The problem is logistic regression with one penalty per feature, as many validation as training samples; all",
        "arrays are on the device, products of the highest precision. 100 gradient steps on the lower level, then 20",
        "products of CG for the adjoint (AID-CG), or reverse mode through the steps (ITD).",
        "",
        f"- *ms*, *min*, *max*: one call, median and range over {calls(budget)} calls; the libraries take turns;",
        "- *first*: seconds of the first call, compilation included;",
        "- *ratio*: their time over ours without the error estimate; above 1 we are faster;",
        "- *error*: true relative error, against a dense solution in float64;",
        "- *differs*: relative distance to our hypergradient.",
        "",
        *blocks(comparison_tables(budget)),
        "Not quite the same:",
        "",
        *notes(budget),
        "",
        "jaxopt's own unrolling (`implicit_diff=False`), which keeps a copy of the data for every step, is left out.",
        "",
        *faster(budget),
        "",
        "## Where the time goes",
        "",
        "This library's calls, and jaxopt's to compare with:",
        "",
        "- *busy*: ms in which the device computes, in one traced call; the rest is launches and waits for the host;",
        "- *kernels*, *reads*: what the device runs, and its copies to the host. The host waits for one before every",
        "  step of a loop that may end early; loops of a given length go on without;",
        "- *floor*: passes over a data matrix x the time of one `X @ v` on the device, two passes for each step and",
        "  product and two more. Not a strict bound: products with the transpose take times of their own;",
        "- */floor*: ms over the floor; *GB/s*: at which `X @ v` reads X; *first*: seconds of the first call.",
        "",
        f"The automatic method (`hypergradient` without a method) is asked for {tolerances(exact)}.",
        "",
        *block(split_table([r for r in exact if r["table"] != "batch" and r["library"] != "optimistix"])),
        "",
        "## A batch of small problems",
        "",
        *batch_lines([r for r in exact if r["table"] == "batch"]),
        "",
        *block(batch_table([r for r in exact if r["table"] == "batch"])),
        "",
        "## The same with products of the default precision",
        "",
        "float32 with TF32 in all libraries (`JAX_DEFAULT_MATMUL_PRECISION=default`), against the above; ms and true",
        "relative error:",
        "",
        *block(precision_table(exact, rounded)),
        *refusals(rounded),
    ]


def calls(records):
    """How often the calls were timed."""
    counts = [r["seconds"]["calls"] for r in records if not r["failure"]]
    return f"{min(counts)} to {max(counts)}"


def tolerances(records):
    """Those of the automatic method."""
    tols = {r["dtype"]: r["setting"]["tol"] for r in records if r["table"] == "accuracy"}
    return " and ".join(f"{tol:.0e} in {dtype}".replace("e-0", "e-") for dtype, tol in tols.items())


def refusals(records):
    """Why calls returned no hypergradient."""
    failed = [r for r in records if r["table"] != "batch" and r["failure"]]
    lines = ["", "*failed*: the call raised instead of returning a hypergradient:", ""] if failed else []
    for r in failed:
        reason = r["failure"].split(": ")[-1].split(" [")[0]
        reason += "" if reason.endswith(".") else " ..."  # long ones are cut
        lines.append(f"- {r['n']}x{r['d']}, {work_name(r)}, {r['label']}: {reason}")
    return lines


def blocks(tables):
    return [line for table in tables for line in [*block(table), ""]]


def split_table(records):
    """Wall time, busy time and floor of calls that were traced."""
    lines = ["size         dtype    call                     ms    busy kernels reads   floor  /floor   GB/s   first"]
    for r in records:
        if r["failure"]:
            lines.append(f"{name(r)} {r['failure']}"[:80])
            continue
        seconds, traced = r["seconds"]["median"], r["traced"]
        bandwidth = r["n"] * r["d"] * {"float32": 4, "float64": 8}[r["dtype"]] / r["product"] / 1e9
        lines.append(
            f"{name(r)} {1e3 * seconds:7.2f} {in_ms(traced['busy'])} {traced['kernels']:7d} {traced['reads']:5d} "
            f"{in_ms(r['floor'])} {seconds / r['floor']:7.2f} {bandwidth:6.0f} {r['first_call']:7.2f}"
        )
    return "\n".join(lines)


def name(r):
    """Size, dtype, and work by whom."""
    whose = "jaxopt " if r["library"] == "jaxopt" else ""
    call = whose + work_name(r) + (", with error" if r["label"].endswith("its error") else "")
    return f"{r['n']}x{r['d']}".ljust(12) + f" {r['dtype']:<8} {call:<19}"


def work_name(r):
    return "automatic" if r["work"] == "accuracy" else r["work"]


def in_ms(seconds):
    return f"{'-':>7}" if seconds is None else f"{1e3 * seconds:7.2f}"


def batch_lines(records):
    r = records[0]
    return [
        f"{r['count']} logistic problems of {r['n']} x {r['d']} and condition number 100, each with its own data, in",
        "one compiled call under `vmap`, and in a Python loop over calls of `bl.hypergradient`. Work and tolerances as",
        "above, AID-CG without its error estimate; times in ms, *first* (call of the batch) in s.",
        "",
        "- *ratio*: the loop's time over that of the batch;",
        "- *differs*: relative distance of the two results: rounding, which 20 products of CG enlarge;",
        "- *failed*: problems without a hypergradient.",
    ]


def batch_table(records):
    """A vmapped call against a loop."""
    lines = ["dtype    work          vmap ms    busy  first   loop ms    busy  ratio  differs failed"]
    for r in records:
        one, many = r["seconds"]["one by one"]["median"], r["seconds"]["together"]["median"]
        busy = {way: in_ms(traced["busy"]) for way, traced in r["traced"].items()}
        lines.append(
            f"{r['dtype']:<8} {r['work']:<10} {1e3 * many:10.2f} {busy['together']} "
            f"{r['first_call']['together']:6.1f} {1e3 * one:9.1f} {busy['one by one']} {one / many:6.1f} "
            f"{r['difference']:8.0e} {r['failed']:6d}"
        )
    return "\n".join(lines)


def precision_table(exact, rounded):
    """Times and true errors of float32 at both precisions."""
    key = ("n", "d", "dtype", "work", "label")
    full = {tuple(r[k] for k in key): r for r in exact if r["table"] != "batch"}
    lines = [" " * 47 + "highest:  ms    error  default:  ms    error"]
    for r in rounded:
        other = full.get(tuple(r[k] for k in key)) if r["table"] != "batch" else None
        if other:
            cells = "  ".join(map(precision_cells, (other, r)))
            lines.append(f"{r['n']}x{r['d']}".ljust(12) + f" {work_name(r):<9} {r['label']:<24}{cells}".rstrip())
    return "\n".join(lines)


def precision_cells(r):
    if r["failure"]:
        return f"{'failed':>9}" + " " * 9
    return f"{1e3 * r['seconds']['median']:9.2f} {r['true_error']:8.0e}"
