"""The rows of ``accuracy.py``, in a process that has this library, jaxopt and optimistix.

For every other library a grid of tolerances is tried first, which takes the true hypergradient: for each tolerance of
the adjoint, those of the solver from loose to tight until the true relative error is at most 1e-6. The fastest that
got there is the library's setting. Then the calls of the three libraries alternate, in rounds; hypertorch runs in a
process of its own once a round, while this one is idle, unless the search showed it far behind.

In the search the tolerances are arguments of one compiled program; in the timed calls they are constants, as a user
would write them.
"""

import argparse
import platform
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).with_name("peers")))

import jax
import jaxopt
import lineax as lx
import numpy as np
import optimistix as optx
from accuracy_page import RECORDS
from compare import Comparison, fastest, spread, why_none
from environments import CORES, versions
from harness import alternate, one_line
from inputs import Inputs, distance, reference
from page import append
from rows import ACCURACY, Row, grid

import bilevel as bl
from bilevel.models import logistic
from bilevel.records import plain

SEED, PROBLEM = 0, logistic.problem()
ROUNDS = 3
REPEAT = {"least": 3, "most": 12, "budget": 0.2}  # calls of a library in one round; the budget in seconds
SEARCH = {"least": 3, "most": 9, "budget": 0.1}
ONCE = {"least": 1, "most": 1, "budget": 0.0}
BEHIND = 3.0  # times the fastest library: whoever takes longer in a process of its own is not timed again
TOLERANCES = (1e-7, 3e-8, 1e-8, 3e-9, 1e-9, 1e-10)  # of the solver, from loose to tight
ADJOINT_TOLERANCES = (1e-6, 3e-7, 1e-7)
VARIANTS = {"jaxopt": ("zoom", "backtracking"), "optimistix": ("L-BFGS",)}
# hypertorch's tolerances are absolute: the largest entry of the gradient, the residual of the adjoint
HYPERTORCH_GRID = grid("hypertorch", "L-BFGS", tolerance=[1e-9, 1e-10], products=[1000], adjoint_tolerance=[1e-7, 1e-8])


class Entry(NamedTuple):
    """A library in one row.

    ``call`` is timed in this process, ``row`` in one of the library's own; both are None where ``failure`` says why.
    ``tried`` is the grid as far as it was searched, ``searched`` the seconds of the setting picked.
    """

    setting: dict | None
    tried: tuple = ()
    searched: float | None = None
    call: Callable | None = None
    row: Row | None = None
    grad: Any = None
    matvecs: dict | None = None
    estimated_error: float | None = None
    failure: str | None = None


def main():
    options = arguments()
    others = Comparison(REPEAT, options.hypertorch, append)
    others.prepare(["hypertorch"] if options.hypertorch else [])
    run = datetime.now(UTC).isoformat(timespec="seconds")
    for row in options.rows:
        size, condition = row.split(":")
        n, d = map(int, size.split("x"))
        for record in measure(n, d, int(condition), others):
            append(plain({"run": run, **record}), RECORDS)


def measure(n, d, condition, others):
    """One record per library."""
    print(f"{n}x{d}, condition {condition}", flush=True)
    instance = logistic.sample(SEED, n, d, condition)
    inputs = as_inputs(instance)
    truth = reference(inputs)
    entries = {"bilevel": automatic(instance)}
    entries |= {library: tuned(library, instance, truth) for library in VARIANTS}
    if others.pythons or others.missing:
        entries["hypertorch"] = tuned_hypertorch(inputs, truth, others)
    seconds = race(entries, inputs, others)
    for library, entry in entries.items():
        done = entry.failure is None
        yield {
            "library": library, "n": n, "d": d, "condition": condition, "dtype": "float64", "seed": SEED,
            "setting": entry.setting, "failure": entry.failure,
            "seconds": spread(seconds[library]) if done else None,
            "matvecs": entry.matvecs,
            "true_error": distance(entry.grad, truth) if done else None,
            "estimated_error": entry.estimated_error,
            "tried": entry.tried, "threads": CORES, "device": f"{jax.devices()[0].device_kind}, {platform.machine()}",
            "versions": others.versions.get(library) or versions(library, sys.executable, None),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip


def race(entries, inputs, others):
    """Seconds of every call, in rounds."""
    seconds = defaultdict(list)
    calls = {library: entry.call for library, entry in entries.items() if entry.call}
    best = min((entry.searched for entry in entries.values() if entry.searched), default=np.inf)
    elsewhere = [entry for entry in entries.values() if entry.row]
    rows = [entry.row for entry in elsewhere if entry.searched <= BEHIND * best]
    seconds |= {entry.row.library: [entry.searched] for entry in elsewhere if entry.row not in rows}
    for _ in range(ROUNDS):
        for library, times in alternate(calls, **REPEAT).items():
            seconds[library] += times
        for row in rows:
            seconds[row.library] += others.in_rounds([row], inputs, "float64", 1, REPEAT)[0]["seconds"]
    return seconds


def automatic(instance):
    """This library: nothing but a tolerance."""
    lam, w0, train, valid = instance

    def call():
        h = bl.hypergradient(PROBLEM, lam, w0, lower_data=train, upper_data=valid, tol=ACCURACY)
        return jax.block_until_ready(h)

    setting = {"tol": ACCURACY}
    try:
        h = call()
    except bl.BilevelError as error:
        return Entry(setting, failure=one_line(error))
    counts = {"lower": h.lower, "adjoint": h.adjoint, "error": h.error_info}
    matvecs = {name: int(info.matvecs) for name, info in counts.items()}
    return Entry(setting, call=call, grad=h.grad, matvecs=matvecs, estimated_error=float(h.relative_error))


def tuned(library, instance, truth):
    """The setting of a library on JAX that is fastest among those that reach the accuracy."""
    tried, good = [], []
    for variant, adjoint_tolerance in product(VARIANTS[library], ADJOINT_TOLERANCES):
        for tolerance in TOLERANCES:
            setting = {"variant": variant, "tolerance": tolerance, "adjoint_tolerance": adjoint_tolerance}
            error = distance(SEARCHED[library](instance, **setting), truth)
            tried.append({**setting, "true_error": error})
            if error <= ACCURACY:
                good.append(setting)
                break
    if not good:
        return Entry(None, tuple(tried), failure=f"no setting reached {ACCURACY:g}")
    calls = {i: blocking(SEARCHED[library], instance, setting) for i, setting in enumerate(good)}
    medians = {i: statistics.median(times) for i, times in alternate(calls, **SEARCH).items()}
    setting = good[min(medians, key=medians.get)]
    call = blocking(FIXED[library], instance, setting)
    return Entry(setting, tuple(tried), min(medians.values()), call=call, grad=call())


def blocking(gradient, instance, setting):
    """A call that returns when the hypergradient is there."""
    return lambda: gradient(instance, **setting).block_until_ready()


def tuned_hypertorch(inputs, truth, others):
    """The same for hypertorch, over its own grid."""
    results = others.in_rounds(HYPERTORCH_GRID, inputs, "float64", 1, ONCE)
    tried = tuple(
        {**row.setting, "true_error": distance(result["grad"], truth)}
        for row, result in zip(HYPERTORCH_GRID, results, strict=True)
        if "failure" not in result
    )
    row = fastest(HYPERTORCH_GRID, results, truth)
    if row is None:
        return Entry(None, tried, failure=why_none(results, truth))
    result = results[HYPERTORCH_GRID.index(row)]
    return Entry(row.setting, tried, statistics.median(result["seconds"]), row=row, grad=result["grad"])


def jaxopt_gradient(instance, variant, tolerance, adjoint_tolerance):
    """L-BFGS with this line search, the implicit function theorem and CG."""
    lam, w0, train, valid = instance
    solve = partial(jaxopt.linear_solve.solve_cg, tol=adjoint_tolerance, maxiter=1000)
    solver = jaxopt.LBFGS(logistic.loss, tol=tolerance, maxiter=1000, linesearch=variant, implicit_diff_solve=solve)
    return jax.grad(lambda lam: logistic.upper(solver.run(w0, lam, train).params, lam, valid))(lam)


def optimistix_gradient(instance, variant, tolerance, adjoint_tolerance):
    """L-BFGS, the implicit function theorem and CG."""
    lam, w0, train, valid = instance
    solver = OPTIMISTIX_SOLVERS[variant](rtol=tolerance, atol=tolerance)
    adjoint = optx.ImplicitAdjoint(lx.CG(rtol=adjoint_tolerance, atol=0.0))

    def objective(lam):
        solution = optx.minimise(
            lambda w, args: logistic.loss(w, *args), solver, w0, args=(lam, train), max_steps=1000, adjoint=adjoint,
            throw=False, tags=frozenset({lx.positive_semidefinite_tag}),
        )  # fmt: skip
        return logistic.upper(solution.value, lam, valid)

    return jax.grad(objective)(lam)


OPTIMISTIX_SOLVERS = {"L-BFGS": optx.LBFGS}
GRADIENTS = {"jaxopt": jaxopt_gradient, "optimistix": optimistix_gradient}
SEARCHED = {name: jax.jit(f, static_argnames="variant") for name, f in GRADIENTS.items()}
FIXED = {
    name: jax.jit(f, static_argnames=("variant", "tolerance", "adjoint_tolerance")) for name, f in GRADIENTS.items()
}


def as_inputs(instance):
    """The same arrays in NumPy."""
    lam, w0, train, valid = instance
    X = np.asarray(train.X)
    step = 1.0 / (np.linalg.eigvalsh(X.T @ X)[-1] / (4 * len(X)) + float(lam.max()))  # 1 / L, as psi'' <= 1/4
    return Inputs(*map(np.asarray, (X, train.y, valid.X, valid.y, lam, w0, step)))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", metavar="ROW", help="n x d : condition")
    parser.add_argument("--hypertorch", type=Path, help="a checkout of hypertorch")
    return parser.parse_args()


if __name__ == "__main__":
    main()
