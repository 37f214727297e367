"""What a hypergradient costs over its floor, the time to read the data.

Logistic regression with one penalty per feature (``inputs.py``), float64, 100 gradient steps on the lower level and
20 products for the adjoint (AID with CG and with Richardson's iteration), or reverse mode through the 100 steps
(ITD). One JSON line per size and method goes to ``benchmarks/records/fixed_budget.jsonl``.

Floor: passes over the data matrix x median seconds of NumPy's ``X @ v`` on the same array. A gradient or a
Hessian-vector product reads X twice, so passes = 2 (lower matvecs + adjoint matvecs) + 2 for the gradient of
the validation loss, whose table has the same shape; for ITD the adjoint matvecs are the steps back. The matvecs
of the error estimate are not in the floor. Calls with and without the error estimate alternate in one process,
with ``X @ v`` timed between them; XLA and NumPy's BLAS both run on all cores this process may use.
"""

import statistics
import time
from datetime import UTC, datetime

import jax
import jax.numpy as jnp
import numpy as np
from environments import CORES
from inputs import draw
from page import FLOOR_RECORDS, append
from rows import PRODUCTS, STEPS

import bilevel as bl
from bilevel.models import logistic
from bilevel.models.samples import Samples

SIZES = [(10_000, 1_000, 7), (500, 50, 200)]  # samples, features, repetitions


def main():
    jax.config.update("jax_enable_x64", True)
    jnp.zeros(1).block_until_ready()  # starting the backend is nobody's first call
    for size in SIZES:
        for record in measure_size(*size):
            append(record, FLOOR_RECORDS)


def measure_size(n, d, repetitions):
    """One record per method at this size."""
    inputs = draw(n, d)
    solver = bl.GradientDescent(steps=STEPS)
    methods = {
        "AID-CG": bl.AID(solver=solver, linear_solver=bl.CG(steps=PRODUCTS)),
        "AID-FP": bl.AID(solver=solver, linear_solver=bl.Richardson(steps=PRODUCTS)),
        "ITD": bl.ITD(solver=solver),
    }
    problem = bl.Problem(bl.minimization(logistic.loss, step=jnp.asarray(inputs.step)), logistic.upper)
    lam, w0 = jnp.asarray(inputs.lam), jnp.asarray(inputs.w0)
    train = Samples(jnp.asarray(inputs.X), jnp.asarray(inputs.y))
    valid = Samples(jnp.asarray(inputs.X_valid), jnp.asarray(inputs.y_valid))
    for name, method in methods.items():

        def call(error, method=method):
            h = bl.hypergradient(problem, lam, w0, lower_data=train, upper_data=valid, method=method, error=error)
            return jax.block_until_ready(h)

        yield {"method": name, "n": n, "d": d, **measure(call, inputs.X, repetitions)}


def measure(call, X, repetitions):
    """Seconds, matvecs and floor of a call that takes whether to estimate the error."""
    v = np.ones(X.shape[1])
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


if __name__ == "__main__":
    main()
