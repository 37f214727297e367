"""``bilevel bounds``: true errors of ITD and AID against what is proved of them, before and after they are computed."""

import json
import math
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer

from bilevel import tree
from bilevel.certificates import apriori
from bilevel.certificates.aposteriori import Certificate, certify
from bilevel.certificates.constants import Constants, estimate_constants, on_ball
from bilevel.certificates.estimate import distance_to_hypergradient, estimate_error
from bilevel.cli.environment import configure_jax
from bilevel.cli.options import AsJson, Condition, Dtype, ProblemName, Seed, Size, find_case
from bilevel.cli.show_bounds import Bounds, Row, plot, show
from bilevel.comparison.output import make_directory
from bilevel.comparison.record import facts
from bilevel.comparison.truth import Truth, find_truth
from bilevel.hypergradient import hypergradient
from bilevel.lagrangian import Instance, gradient
from bilevel.linear.cg import CG
from bilevel.linear.richardson import Richardson
from bilevel.methods.itd import ITD
from bilevel.models.catalog import CATALOG, Case
from bilevel.problems import validate
from bilevel.records import plain, versions
from bilevel.solvers.picard import Picard
from bilevel.status import ConvergenceError, ProblemError

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
    ConvergenceError
        The true hypergradient could not be computed.
    """
    jax.eval_shape(validate, case.problem, case.lam, case.w0, case.lower_data, case.upper_data)
    if case.problem.lower.kind == "root":
        raise ProblemError("bounds are about a minimization or a fixed-point map, but the problem is a root.")
    case = case._replace(w0=tree.strong(tree.zeros_like(case.w0)), lam=tree.strong(case.lam))
    truth = find_truth(case)
    if truth.grad is None:
        raise ConvergenceError(f"the true hypergradient is not known: {truth.note}", truth)
    if case.problem.constants is None:
        w = hypergradient(*case[:3], lower_data=case.lower_data, upper_data=case.upper_data, error=True).w
        estimated, _ = estimate_constants(case.problem, case.lam, w, case.lower_data, case.upper_data)
        case = case._replace(problem=replace(case.problem, constants=estimated))
    at = Instance(case.problem, case.lam, case.lower_data, case.upper_data)
    c = on_ball(at, case.w0)
    rates, step = _rates(c)
    at = at._replace(problem=replace(case.problem, constants=c))
    grid = np.unique(np.geomspace(1, steps, POINTS).round().astype(int))
    rows = [row for t in grid for row in _rows_at(at, case.w0, step, rates, truth, int(t))]
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


def _rows_at(at: Instance, w0: Tree, step: float, rates: apriori.Rates | None, truth: Truth, t: int) -> list[Row]:
    size = float(tree.norm(truth.grad))

    def row(method: str, k: int, grad: Tree, estimate: Any, certificate: Certificate | None, bound: Any) -> Row:
        assert certificate is not None  # the problem has constants
        return Row(
            method, t, k, truth.relative_error_of(grad), float(estimate) / size, float(certificate.bound) / size,
            bool(certificate.proved), math.nan if rates is None else float(bound) / size,
        )  # fmt: skip

    problem, lam, lower_data, upper_data = at
    itd = hypergradient(
        problem, lam, w0, lower_data=lower_data, upper_data=upper_data, method=ITD(Picard(steps=t, step=step)),
        error=False, on_failure="keep",
    )  # fmt: skip
    estimate, certificate = _judge_itd(at, itd.w, itd.grad, t)
    rows = [row("ITD", t, itd.grad, estimate, certificate, rates and apriori.itd(rates, t))]
    curves = [("AID-FP, k = t", Richardson(step=step), t, apriori.aid_fp)]
    if problem.lower.symmetric:
        curves += [("AID-CG, k = t", CG(), t, apriori.aid_cg), (f"AID-CG, k = {FIXED}", CG(), FIXED, apriori.aid_cg)]
    for method, linear, k, bound in curves:
        grad, estimate, certificate = _aid(linear, at, w0, step, t, k)
        rows.append(row(method, k, grad, estimate, certificate, rates and bound(rates, t, k)))
    return rows


@jax.jit
def _judge_itd(at: Instance, w: Tree, grad: Tree, t: Any) -> tuple[Any, Certificate | None]:
    """Estimated error and certificate of a gradient by ITD."""
    distance, v, _ = distance_to_hypergradient(at, w, grad)
    return distance, certify(at, w, v, grad, 2 * jnp.asarray(t))


@jax.jit
def _aid(linear: Any, at: Instance, w0: Tree, step: Any, t: Any, k: Any) -> tuple[Tree, Any, Certificate | None]:
    """AID with the counts as data, one program for all: gradient, estimated error and certificate."""
    w, lower = Picard(step=step)(at.problem.lower, at.lam, w0, at.lower_data, steps=t)
    _, A = at.linearize(w)
    v, adjoint = linear(A.T, at.upper_gradient(w)[1], steps=k)
    grad, spent = gradient(at, w, v).grad, lower.matvecs + adjoint.matvecs
    correction, _ = estimate_error(at, w, v, spent)
    corrected = tree.add(w, correction.dw), tree.add(v, correction.dv)
    return grad, tree.norm(correction.change), certify(at, *corrected, grad, spent)


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
