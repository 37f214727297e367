"""``bilevel bounds``: true errors of ITD and AID against what is proved of them, before and after they are computed."""

import json
import math
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

from bilevel import tree
from bilevel.certificates import apriori
from bilevel.certificates.constants import Constants, estimate_constants, on_ball
from bilevel.cli.environment import configure_jax
from bilevel.cli.options import AsJson, Condition, Dtype, ProblemName, Seed, Size, find_case
from bilevel.cli.show_bounds import Bounds, Row, plot, show
from bilevel.comparison.output import make_directory
from bilevel.comparison.record import facts
from bilevel.comparison.truth import Truth, find_truth
from bilevel.experiments.counted import aid, itd
from bilevel.hypergradient import hypergradient
from bilevel.lagrangian import Instance
from bilevel.linear.cg import CG
from bilevel.linear.richardson import Richardson
from bilevel.models.catalog import CATALOG, Case
from bilevel.problems import validate
from bilevel.records import plain, versions
from bilevel.solvers.picard import Picard
from bilevel.status import BilevelError, ProblemError

Tree = Any

STEPS, POINTS = 1000, 7
FIXED = 10  # products of the curve whose k does not grow with t


def bounds_command(
    problem: ProblemName,
    steps: Annotated[int, typer.Option(help="Largest number of steps t.")] = STEPS,
    size: Size = None,
    condition: Condition = None,
    seed: Seed = None,
    dtype: Dtype = "float64",
    out: Annotated[
        Path | None, typer.Option(help="Directory for bounds.json and bounds.png.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show true errors of hypergradients against their a-priori and a-posteriori bounds."""
    if steps < 1:
        raise ProblemError(f"steps must be positive, but is {steps}")
    configure_jax(dtype)
    with redirect_stdout(sys.stderr):  # users' files may print
        case, origin = find_case(problem, dtype, size=size, condition=condition, seed=seed)
        if "file" not in origin:
            constants = CATALOG[problem.replace("-", "_")].constants
            case = case._replace(problem=replace(case.problem, constants=constants))
        if out is not None:
            make_directory(out)
        found = compute(case, Path(problem).name, steps)
    values = record(found, origin)
    if out is not None:
        try:
            text = json.dumps(values, indent=2, allow_nan=False)
            (out / "bounds.json").write_text(text + "\n", encoding="utf-8")
            plot(found, out / "bounds.png")
        except OSError as error:
            raise ProblemError(f"cannot write to {out}: {error.strerror or error}") from error
    if as_json:
        sys.stdout.write(json.dumps(values, indent=2, allow_nan=False) + "\n")
    else:
        show(found, out)


def compute(case: Case, name: str, steps: int) -> Bounds:
    """Errors and bounds of ITD, AID-FP and AID-CG over t in a geometric grid, all started at zero.

    Raises
    ------
    ProblemError
        The problem has no map with a known contraction: it is a root, or no constants say so.
    BilevelError
        The true hypergradient could not be computed.
    """
    jax.eval_shape(validate, case.problem, case.lam, case.w0, case.lower_data, case.upper_data)
    if case.problem.lower.kind == "root":
        raise ProblemError("bounds are about a minimization or a fixed-point map, but the problem is a root.")
    case = case._replace(w0=tree.strong(tree.zeros_like(case.w0)), lam=tree.strong(case.lam))
    truth = find_truth(case)
    if truth.grad is None:
        raise BilevelError(f"the true hypergradient is not known: {truth.note}")
    if case.problem.constants is None:
        w = hypergradient(*case[:3], lower_data=case.lower_data, upper_data=case.upper_data, error=True).w
        estimated, _ = estimate_constants(case.problem, case.lam, w, case.lower_data, case.upper_data)
        case = case._replace(problem=replace(case.problem, constants=estimated))
    at = Instance(case.problem, case.lam, case.lower_data, case.upper_data)
    c = on_ball(at, case.w0)
    rates, step = _rates(c)
    at = at._replace(problem=replace(case.problem, constants=c))
    grid = np.unique(np.geomspace(1, steps, POINTS).round().astype(int))
    rows = [row for t in grid for row in _rows_at(at, case.w0, step, rates, truth, int(t), steps)]
    order = list(dict.fromkeys(row.method for row in rows))
    return Bounds(name, case, truth, c, rates, step, sorted(rows, key=lambda row: (order.index(row.method), row.t)))


def _rates(c: Constants) -> tuple[apriori.Rates | None, float]:
    """A-priori rates, where constants give them, and the step of the map."""
    if c.known("q"):
        return apriori.rates(c), 1.0
    if c.known("mu"):
        return apriori.rates(c), 2 / (float(c.L) + float(c.mu))
    if c.known("L"):
        return None, 1 / float(c.L)
    raise ProblemError("bounds need the constants mu and L of a minimization, or q of a fixed-point map.")


def _rows_at(
    at: Instance, w0: Tree, step: float, rates: apriori.Rates | None, truth: Truth, t: int, most: int
) -> list[Row]:
    """ITD, AID-FP and AID-CG after t of at most ``most`` steps."""
    picard, fp = Picard(step=step), Richardson(step=step)
    curves = [
        ("ITD", t, itd(picard, t, most), rates and apriori.itd(rates, t)),
        ("AID-FP, k = t", t, aid(picard, fp, t, t), rates and apriori.aid_fp(rates, t, t)),
    ]
    if at.problem.lower.symmetric:
        curves += [
            (name, k, aid(picard, CG(), t, k), rates and apriori.aid_cg(rates, t, k))
            for name, k in (("AID-CG, k = t", t), (f"AID-CG, k = {FIXED}", FIXED))
        ]
    return [_row(at, w0, truth, t, *curve) for curve in curves]


def _row(at: Instance, w0: Tree, truth: Truth, t: int, name: str, k: int, method: Any, bound: Any) -> Row:
    h = hypergradient(
        at.problem, at.lam, w0, lower_data=at.lower_data, upper_data=at.upper_data, method=method, on_failure="keep"
    )
    size = float(tree.norm(truth.grad))
    return Row(
        name, t, k, truth.relative_error_of(h.grad), float(h.error) / size, float(h.bound) / size, bool(h.proved),
        math.nan if bound is None else float(bound) / size,
    )  # fmt: skip


def record(found: Bounds, origin: dict[str, Any]) -> dict[str, Any]:
    """Everything about the bounds but the arrays of the problem. No NaN: what is not known is None."""
    constants = asdict(found.constants)
    estimated = list(constants.pop("estimated"))
    rates = None if found.rates is None else asdict(found.rates)
    values = {
        "command": "bounds",
        "problem": {"name": found.name, **facts(found.case), "origin": origin},
        "truth": {"method": found.truth.how, "relative_error": found.truth.relative_error},
        "step": found.step,
        "constants": {name: _number(value) for name, value in constants.items()},
        "estimated": estimated,
        "rates": rates and {name: _number(value) for name, value in rates.items()},
        "rows": [row._asdict() for row in found.rows],
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
    }
    return plain(values)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
