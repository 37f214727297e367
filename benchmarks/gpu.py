"""Hypergradients on an accelerator: this library, jaxopt and optimistix on the same arrays of the same device.

    python benchmarks/gpu.py              # appends to benchmarks/records/gpu.jsonl and remakes docs/gpu.md
    python benchmarks/gpu.py --small      # small sizes on any device; only printed
    python benchmarks/gpu.py --render     # only remakes the page from the records

Needs jaxopt and optimistix beside bilevel in one environment. Each precision runs in a process of its own; in it the
calls of all libraries alternate. Floor: passes over the data matrix (``fixed_budget.py``) x seconds of one ``X @ v``
inside a compiled chain. Busy: seconds of a call in which the device computes, from a trace of one call; the rest are
launches and waits for the host. Arrays are on the device before the first call. ``gpu_minibatch.py`` adds upper levels.
"""

import argparse
import os
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.append(str(Path(__file__).with_name("peers")))

import bilevel_runner
import jaxopt_runner
import optimistix_runner
from compare import spread
from gpu_page import PAGE, PRECISION_RECORDS, RECORDS, newest_run, render
from gpu_trace import traced
from harness import alternate, start, timed
from inputs import Inputs, distance, draw, reference
from page import append
from rows import BUDGET_ROWS, PRODUCTS, STEPS, Row

import bilevel as bl
from bilevel.models import logistic
from bilevel.models.samples import Samples

PARTS = [("float64", "highest"), ("float32", "highest"), ("float32", "default")]  # dtype, precision of its products
SIZES, SMALL_SIZES = [(10_000, 1_000), (100_000, 2_000)], [(500, 50)]
BATCH, BATCH_SIZE = 64, (500, 50)
REPEAT, SMALL_REPEAT = {"least": 10, "most": 30, "budget": 1.0}, {"least": 2, "most": 2, "budget": 0.0}
TOL = {"float32": 1e-4, "float64": 1e-6}  # of the automatic method
CHAIN = 20  # products in one program, so that its launch does not count
TRACED = ("bilevel", "jaxopt")
MINIBATCH = Path(__file__).with_name("gpu_minibatch.py")
METHODS = {
    "bilevel": {
        "AID-CG": bilevel_runner.aid_cg, "ITD": bilevel_runner.itd, "automatic": bilevel_runner.automatic,
    },
    "jaxopt": {"implicit": jaxopt_runner.implicit, "scanned": jaxopt_runner.scanned},
    "optimistix": {
        "implicit": optimistix_runner.implicit, "unrolled": optimistix_runner.unrolled,
        "checkpointed": optimistix_runner.checkpointed,
    },
}  # fmt: skip


def main():
    options = arguments()
    if options.part:
        measure_part(*options.part, options)
        return
    if not options.render:
        for dtype, precision in PARTS:
            process(__file__, dtype, precision, options, "--part", dtype, precision)
        process(MINIBATCH, "float32", "highest", options)
    page = render(newest_run(options.records), newest_run(PRECISION_RECORDS))
    print(page) if options.small else PAGE.write_text(page)


def process(script, dtype, precision, options, *more):
    """Run a script at one dtype and precision."""
    settings = {"JAX_ENABLE_X64": str(int(dtype == "float64")), "JAX_DEFAULT_MATMUL_PRECISION": precision}
    common = ["--run", options.run, "--records", options.records, *["--small"] * options.small]
    subprocess.run([sys.executable, script, *more, *common], env=os.environ | settings, check=True)


def measure_part(dtype, precision, options):
    """Append the records of one dtype and precision."""
    stamp = {"run": options.run, "dtype": dtype, "precision": precision, "device": jax.devices()[0].device_kind}
    stamp["versions"] = {"jax": jax.__version__, "numpy": np.__version__}
    repeat = SMALL_REPEAT if options.small else REPEAT
    for n, d in SMALL_SIZES if options.small else SIZES:
        for record in measure_size(n, d, wanted_rows(dtype, precision), dtype, repeat):
            append(stamp | record | now(), options.records)
    if precision != "highest":
        return
    for record in measure_batch(2 if options.small else BATCH, *BATCH_SIZE, dtype, repeat):
        append(stamp | record | now(), options.records)


def measure_size(n, d, rows, dtype, repeat):
    """One record for every row at this size."""
    inputs = draw(n, d).astype(dtype)
    truth = reference(inputs)
    inputs = Inputs(**{name: jnp.asarray(array) for name, array in vars(inputs).items()})
    product = seconds_of_product(inputs.X)
    started = [start(METHODS[row.library], inputs, {"method": row.method, "setting": row.setting}) for row in rows]
    times = alternate({i: call for i, (call, _) in enumerate(started) if call is not None}, **repeat)
    own = {
        row.work: result.get("grad") for row, (_, result) in zip(rows, started, strict=True) if row.label == "bilevel"
    }
    for i, (row, (call, result)) in enumerate(zip(rows, started, strict=True)):
        print(f"{n}x{d} {dtype} {row.work}, {row.label}", flush=True)
        record = {
            "table": "accuracy" if row.work == "accuracy" else "budget", "n": n, "d": d, "work": row.work,
            "library": row.library, "label": row.label, "setting": row.setting, "note": row.note,
            "failure": result.get("failure"), "difference_to_ours": None,
        }  # fmt: skip
        yield record if record["failure"] else record | measured(row, call, result, times[i], product, truth, own)


def measured(row, call, result, times, product, truth, own):
    """Times, floor and errors of a row that has not failed."""
    ours = own.get(row.work)
    trace = traced(call)._asdict() if row.library in TRACED else None
    matvecs = result["matvecs"] or row.matvecs
    passes = 2 * sum(matvecs) + 2 if matvecs else None
    return {
        "seconds": spread(times),
        "first_call": result["first_call"],
        "traced": trace,
        "matvecs": matvecs,
        "product": product,
        "floor": passes and passes * product,
        "true_error": distance(result["grad"], truth),
        "difference_to_ours": None if ours is None else distance(result["grad"], np.asarray(ours)),
    }


def wanted_rows(dtype, precision):
    """The rows at a fixed budget, and the automatic method; of the default precision some to compare with."""
    works = ("AID-CG", "ITD") if precision == "highest" else ("AID-CG",)
    rows = [row for row in BUDGET_ROWS if row.work in works and row.method in METHODS.get(row.library, ())]
    return [*rows, Row("bilevel", "accuracy", "bilevel", "automatic", {"tol": TOL[dtype]})]


def measure_batch(count, n, d, dtype, repeat):
    """``count`` problems, each with data of its own, as one vmapped call and one after the other."""
    draws = [problem_of(seed, n, d, dtype) for seed in range(count)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws)
    budget = bl.AID(bl.GradientDescent(steps=STEPS), bl.CG(steps=PRODUCTS))
    options = {"AID-CG": {"method": budget, "error": False}, "automatic": {"tol": TOL[dtype]}}
    for work, option in options.items():

        def one(at, option=option):
            problem = bl.Problem(bl.minimization(logistic.loss, step=at["step"]), logistic.upper)
            return bl.hypergradient(
                problem, at["lam"], at["w0"], lower_data=at["train"], upper_data=at["valid"], on_failure="nan", **option
            )

        together = jax.jit(jax.vmap(one))
        calls = {
            "together": lambda f=together: jax.block_until_ready(f(stacked)),
            "one by one": lambda f=one: jax.block_until_ready([f(at) for at in draws]),
        }
        first = {name: timed(call) for name, call in calls.items()}
        batch, loop = first["together"][1].grad, jnp.stack([h.grad for h in first["one by one"][1]])
        good = jnp.isfinite(batch + loop).all(axis=1)
        times = alternate(calls, **repeat)
        yield {
            "table": "batch", "n": n, "d": d, "count": count, "work": work,
            "first_call": {name: seconds for name, (seconds, _) in first.items()},
            "seconds": {name: spread(values) for name, values in times.items()},
            "traced": {name: traced(call)._asdict() for name, call in calls.items()},
            "failed": count - int(good.sum()),
            "difference": float(jnp.linalg.norm((batch - loop)[good]) / jnp.linalg.norm(loop[good])),
        }  # fmt: skip


def problem_of(seed, n, d, dtype):
    """A small logistic problem of condition number 100, on the device."""
    lam, w0, train, valid = logistic.sample(seed, n, d, 100.0, dtype)
    largest = jnp.linalg.norm(train.X, 2) ** 2 / n
    train, valid = (Samples(samples.X, samples.y) for samples in (train, valid))
    return {"lam": lam, "w0": w0, "train": train, "valid": valid, "step": 1 / (largest / 4 + lam.max())}


def seconds_of_product(X):
    """Median seconds of one ``X @ v`` among others in a compiled program."""
    d = X.shape[1]

    @jax.jit
    def chain(X, v):
        for _ in range(CHAIN):
            v = (X @ v)[:d] * (1 / d)
        return v

    v = jnp.ones(d, X.dtype)
    chain(X, v).block_until_ready()
    return statistics.median(timed(lambda: chain(X, v).block_until_ready())[0] for _ in range(20)) / CHAIN


def now():
    return {"time": datetime.now(UTC).isoformat(timespec="seconds")}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small sizes, only printed")
    parser.add_argument("--render", action="store_true", help="only remake the page")
    parser.add_argument("--part", nargs=2, metavar=("DTYPE", "PRECISION"), help=argparse.SUPPRESS)
    parser.add_argument("--run", default=now()["time"], help=argparse.SUPPRESS)
    parser.add_argument("--records", type=Path, default=RECORDS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
