"""What float32 hypergradients are worth where the device rounds its matrix products.

    python benchmarks/gpu_precision.py     # on a GPU: appends to benchmarks/records/gpu_precision.jsonl

Single products, and hypergradients of random problems of every family, with products of the device's default
precision and of the highest, against truths in float64. ``gpu.py --render`` makes the page.
"""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from gpu_page import PRECISION_RECORDS, PRECISIONS
from page import append

import bilevel as bl
from bilevel.status import Status

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from families import FAMILIES, dense_truth, relative_distance

SHAPES = [(60, 20), (500, 50), (10_000, 1_000)]
SIZES = [24, 300]
DRAWS = [(10.0, 0), (100.0, 1), (10.0, 2), (100.0, 3), (30.0, 4)]  # condition, seed
PRODUCTS = {  # X is n x d, V is d x 16
    "X @ v": lambda X, V: X @ V[:, 0],
    "r @ X": lambda X, _: X[:, 0] @ X,
    "X @ V": lambda X, V: X @ V,
    "vmap of X @ v": lambda X, V: jax.vmap(lambda v: X @ v, 1, 1)(V),
}


def main():
    jax.config.update("jax_enable_x64", True)  # for the truths; the problems are float32
    stamp = {"run": datetime.now(UTC).isoformat(timespec="seconds"), "device": jax.devices()[0].device_kind}
    stamp["versions"] = {"jax": jax.__version__, "numpy": np.__version__}
    for record in (*products(), *hypergradients()):
        print(json.dumps(record), flush=True)
        append(stamp | record, PRECISION_RECORDS)


def products():
    """Relative errors of single products."""
    rng = np.random.default_rng(0)
    for n, d in SHAPES:
        arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((n, d), (d, 16))]
        for precision in PRECISIONS:
            for name, product in PRODUCTS.items():
                with jax.default_matmul_precision(precision):
                    result = jax.jit(product)(*arrays)
                error = relative_distance(result, product(*(a.astype(np.float64) for a in arrays)))
                yield {"table": "product", "n": n, "d": d, "precision": precision, "product": name, "error": error}


def hypergradients():
    """True and estimated errors of the automatic method and of a refined one."""
    for n in SIZES:
        for name, family in FAMILIES.items():
            for condition, seed in DRAWS:
                case = family(seed, jnp.float32, n=n, condition=condition)
                truth = dense_truth(*case[:5])
                for precision in PRECISIONS:
                    for label, options in methods(family.tags):
                        with jax.default_matmul_precision(precision):
                            h = bl.hypergradient(
                                case.problem, case.lam, case.w0, lower_data=case.lower_data,
                                upper_data=case.upper_data, on_failure="keep", **options,
                            )  # fmt: skip
                        yield {
                            "table": "hypergradient", "family": name, "n": n, "condition": condition, "seed": seed,
                            "precision": precision, "method": label, "tol": options.get("tol"),
                            "true_error": relative_distance(h.grad, truth.grad),
                            "estimated_error": float(h.relative_error), "status": Status(int(h.status)).name,
                        }  # fmt: skip
            jax.clear_caches()


def methods(tags):
    """The automatic method to three tolerances, and one refined solution."""
    for tol in (1e-2, 1e-3, 1e-4):
        yield "automatic", {"tol": tol}
    solver = bl.GradientDescent(steps=300) if tags.minimization else bl.Picard(steps=200)
    linear = bl.CG(steps=30) if tags.symmetric else bl.Richardson(steps=100)
    yield "AID, refined", {"method": bl.AID(solver, linear, refine=1)}


if __name__ == "__main__":
    main()
