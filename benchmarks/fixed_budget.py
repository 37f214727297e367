"""What a hypergradient costs over its floor, the time to read the data: ``make bench``.

Logistic regression with one penalty per feature, float64, 100 gradient steps on the lower level and 20
products for the adjoint (AID with CG and with Richardson's iteration), or reverse mode through the 100 steps
(ITD). One JSON line per size and method goes to ``benchmarks/records/fixed_budget.jsonl``; the table is made
from these lines.

Floor: passes over the data matrix x median seconds of NumPy's ``X @ v`` on the same array. A gradient or a
Hessian-vector product reads X twice, so passes = 2 (lower matvecs + adjoint matvecs) + 2 for the gradient of
the validation loss, whose table has the same shape; for ITD the adjoint matvecs are the steps back. The matvecs
of the error estimate are not in the floor. Calls with and without the error estimate alternate in one process,
with ``X @ v`` timed between them; XLA and NumPy's BLAS both run on all cores this process may use.
"""

import json
import os
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):  # read when NumPy is imported
    os.environ[variable] = str(CORES)  # XLA takes as many threads by itself

import jax  # noqa: E402 - after the thread counts
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import bilevel as bl  # noqa: E402
from bilevel.models import logistic  # noqa: E402
from bilevel.models.samples import Samples  # noqa: E402

RECORDS = Path(__file__).parent / "records" / "fixed_budget.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
SIZES = [(10_000, 1_000, 7), (500, 50, 200)]  # samples, features, repetitions
STEPS, PRODUCTS, PENALTY = 100, 20, 1e-2


def main():
    jax.config.update("jax_enable_x64", True)
    jnp.zeros(1).block_until_ready()  # starting the backend is nobody's first call
    RECORDS.parent.mkdir(exist_ok=True)
    records = [record for size in SIZES for record in measure_size(*size)]
    with RECORDS.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    print(render(records))
    PAGE.write_text(page(records))


def measure_size(n, d, repetitions):
    """One record per method at this size."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal(d)
    (X, lower_data), (_, upper_data) = (table(rng, n, w) for _ in range(2))
    step = 1.0 / (np.linalg.norm(X, 2) ** 2 / (4 * n) + PENALTY)  # psi'' <= 1/4
    solver = bl.GradientDescent(steps=STEPS)
    methods = {
        "AID-CG": bl.AID(solver=solver, linear_solver=bl.CG(steps=PRODUCTS)),
        "AID-FP": bl.AID(solver=solver, linear_solver=bl.Richardson(steps=PRODUCTS)),
        "ITD": bl.ITD(solver=solver),
    }
    problem = bl.Problem(bl.minimization(logistic.loss, step=step), logistic.upper)
    lam, w0 = jnp.full(d, PENALTY), jnp.zeros(d)
    for name, method in methods.items():

        def call(error, method=method):
            h = bl.hypergradient(
                problem, lam, w0, lower_data=lower_data, upper_data=upper_data, method=method, error=error
            )
            return jax.block_until_ready(h)

        yield {"method": name, "n": n, "d": d, **measure(call, X, w, repetitions)}


def table(rng, n, w):
    """Random samples with labels in {-1, +1}, as a NumPy array and as data of the problem."""
    X = rng.standard_normal((n, len(w)))
    y = np.where(X @ w + rng.logistic(size=n) > 0, 1.0, -1.0)
    return X, Samples(jnp.asarray(X), jnp.asarray(y))


def measure(call, X, v, repetitions):
    """Seconds, matvecs and floor of a call that takes whether to estimate the error."""
    first = {error: seconds(lambda error=error: call(error)) for error in (False, True)}
    times = {False: [], True: [], "product": []}
    products = 1 + int(2e-3 / seconds(lambda: X @ v))  # so many take two milliseconds, which clocks resolve
    for _ in range(repetitions):
        times[False].append(seconds(lambda: call(False)))
        times["product"].append(seconds(lambda: [X @ v for _ in range(products)]) / products)
        times[True].append(seconds(lambda: call(True)))
    h = call(True)
    lower, adjoint = int(h.lower.matvecs), int(h.adjoint.matvecs)
    product = statistics.median(times["product"])
    floor = (2 * (lower + adjoint) + 2) * product
    plain, with_error = statistics.median(times[False]), statistics.median(times[True])
    return {
        "first_call": first[False],
        "first_call_with_error": first[True],
        "seconds": plain,
        "seconds_with_error": with_error,
        "matvecs": {"lower": lower, "adjoint": adjoint, "error": int(h.error_info.matvecs)},
        "numpy_product": product,
        "floor": floor,
        "over_floor": plain / floor,
        "over_floor_with_error": with_error / floor,
        "relative_error": float(h.relative_error),
        "repetitions": repetitions,
        "dtype": "float64",
        "threads": CORES,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
    }


def seconds(run):
    """Wall time of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def render(records):
    """The records as a table of 80 columns; times in milliseconds."""
    lines = [
        "first: first call, s.  ms, +error: median without and with h.error.  floor: see",
        "the docstring, ms.  /floor: time over it, without and with h.error.",
        "",
        "size        method  first      ms  +error   floor  /floor  +error  matvecs (+err)",
    ]
    for r in records:
        counts = r["matvecs"]
        lines.append(
            f"{r['n']}x{r['d']}".ljust(12)
            + f"{r['method']:<7} {r['first_call_with_error']:5.2f} {1e3 * r['seconds']:7.1f} "
            + f"{1e3 * r['seconds_with_error']:7.1f} {1e3 * r['floor']:7.1f} {r['over_floor']:7.2f} "
            + f"{r['over_floor_with_error']:7.2f}  {counts['lower'] + counts['adjoint']:>7} (+{counts['error']})"
        )
    return "\n".join(lines)


def page(records):
    """The page of the documentation: what was measured, on what, and the table."""
    r = records[0]
    on = f"{r['threads']} CPU threads, {r['dtype']}, jax {r['versions']['jax']}, numpy {r['versions']['numpy']}"
    return f"""# What a hypergradient costs

`make bench` times hypergradients of logistic regression with one penalty per feature: 100 gradient steps, 20 products
for the adjoint. The floor is the time NumPy needs to read the data matrix as often ({on}, {r["time"][:10]}).

```
{render(records)}
```
"""


if __name__ == "__main__":
    main()
