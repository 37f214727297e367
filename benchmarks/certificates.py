"""Are errors and bounds what they say? Random problems of every family against truths of higher precision.

    python benchmarks/certificates.py draw       appends one JSON line per problem to the records, where they end;
                                                 on many cores: --part I/N --records PART_I for each I, then cat
    python benchmarks/certificates.py summary    counts, and writes docs/error-law.md and a part of docs/bounds.md

Problems go round the families; n is 1 to 2000, the condition number log-uniform from 1 to 1e8, every other one is in
float32. Of each, AID at two random budgets and a tight one (maps: the exact method), unrefined and refined once: the
lower level takes at most t steps of gradient descent, L-BFGS (minimizations) or Picard's iteration (maps), the
adjoint at most k of CG or of Richardson's iteration, and both end before at a tolerance; all three log-uniform. Up to
n = 18 also ITD, AID-FP and AID-CG by their definitions, for the a-priori bounds. Sizes are few, so that programs are
compiled once.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel import tree
from bilevel.certificates import apriori
from bilevel.certificates.constants import on_ball
from bilevel.certificates.estimate import OVERHEAD
from bilevel.lagrangian import Instance, gradient
from bilevel.models.catalog import CATALOG
from bilevel.sharpen import sharpen_bound
from bilevel.status import Status, code

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
from certificates_page import summarize  # noqa: E402
from truths import distance, norm, truth_of  # noqa: E402

from families import TAGS, Case  # noqa: E402 - the table of families lives with the laws

RECORDS = ROOT / "benchmarks" / "records" / "certificates.jsonl"
NAMES = list(CATALOG)
# Least, two common ones, and large; families in blocks have none of a single unknown.
ONE = ("ridge", "logistic", "biased_regularization", "hyper_representation")
SMALL, MIDDLE = 15, 120
LARGE = dict.fromkeys(NAMES, 1000) | {"ridge": 2000}
SIZES = "SMSMSMSMST"  # in turn: small, middle, tiny; and
LARGE_ROUNDS = (125, 126)  # after a thousand others, of which one takes as long as a hundred
TIGHT = {False: (3000, 1000), True: (300, 300)}  # t and k of the tight budget, of large problems
T = np.array([1, 2, 3, 5, 10, 20, 40, 80, 160, 320, 640])  # of the a-priori bounds
FIXED = 10  # products of the curves that do not let k grow with t


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    draw = commands.add_parser("draw")
    draw.add_argument("--count", type=int, default=1200, help="problems in all")
    draw.add_argument("--minutes", type=float, default=35.0, help="of this run; another goes on where it ended")
    draw.add_argument("--seed", type=int, default=0)
    draw.add_argument("--part", type=part, default=(0, 1), metavar="I/N", help="of N processes with their own records")
    draw.add_argument("--records", type=Path, default=RECORDS)
    summary = commands.add_parser("summary")
    summary.add_argument("--records", type=Path, default=RECORDS)
    arguments = parser.parse_args()
    if arguments.command == "draw":
        jax.config.update("jax_enable_x64", True)
        append(arguments.records, arguments.seed, share(*arguments.part, arguments.count), 60 * arguments.minutes)
    else:
        summarize(read(arguments.records), ROOT / "docs")


def part(text):
    """The numbers I and N of ``I/N``."""
    i, n = map(int, text.split("/"))
    return i, n


def share(i, n, count):
    """Indices of the i-th of n processes: families apart, small sizes too: each compiles its own."""
    turns = ((index, *divmod(index, len(NAMES))) for index in range(count))
    return [index for index, round_, place in turns if (place + len(NAMES) * (round_ % 2)) % n == i]


def append(path, seed, indices, seconds):
    """Append records of problems to the file, those it lacks, in turn."""
    end = time.monotonic() + seconds
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {record["seed"][1] for record in read(path) if record["seed"][0] == seed} if path.exists() else set()
    with path.open("a") as file:
        for index in (i for i in indices if i not in done):
            if time.monotonic() > end:
                return
            file.write(json.dumps(measure(seed, index)) + "\n")
            file.flush()


def read(path):
    """Records of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


class Turn(NamedTuple):
    """What kind of problem comes at an index: every family in turn, sizes and dtypes by the round."""

    family: str
    size: str  # a letter of SIZES, or L
    dtype: str
    descent: str  # solver of minimizations; one for each family and size, so that less is compiled

    @classmethod
    def at(cls, index):
        """The turn of this index."""
        round_, place = divmod(index, len(NAMES))
        return cls(
            family=NAMES[place],
            size="L" if round_ in LARGE_ROUNDS else SIZES[round_ % len(SIZES)],
            dtype=("float64", "float32")[(round_ + round_ // len(SIZES)) % 2],
            descent="GradientDescent" if (index + round_) % 2 else "LBFGS",
        )


def measure(seed, index):
    """The record of one problem."""
    started = time.monotonic()
    rng, turn = np.random.default_rng([seed, index]), Turn.at(index)
    case, condition = draw_case(rng, turn)
    judge = truth_of(turn.family, case, condition)
    constants = jax.jit(CATALOG[turn.family].constants)(*tree.in_double((case.lam, case.lower_data, case.upper_data)))
    case = case._replace(problem=replace(case.problem, constants=constants))
    unrolled = constants.known("mu") and turn.size in {"float64": "TS", "float32": "S"}[turn.dtype]
    return {
        "family": turn.family,
        "n": tree.size(case.w0),
        "dtype": turn.dtype,
        "condition": judge.condition,
        "size": norm(judge.grad),
        "solver": turn.descent if case.tags.minimization else "Picard",
        "hypergradients": [
            {**settings, **hypergradient(case, judge, method)} for settings, method in methods(rng, turn, case)
        ],
        "apriori": curves(case, judge) if unrolled else None,
        "seed": [seed, index],
        "seconds": round(time.monotonic() - started, 2),
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
    }


def methods(rng, turn, case):
    """Pairs of settings for the record and the method: AID at several budgets, of maps the exact method too."""
    eps, large = float(jnp.finfo(turn.dtype).eps), turn.size == "L"
    solver = getattr(bl, turn.descent if case.tags.minimization else "Picard")()
    linear = bl.CG() if case.tags.symmetric else bl.Richardson()
    budgets = [draw_budget(rng, eps, large) for _ in range(2 - large)]
    if case.tags.minimization:
        budgets.append((*TIGHT[large], 10 * eps))
    for (t, k, rtol), refine in product(budgets, (0, 1)):
        method = bl.AID(Budget(solver, t, rtol), Budget(linear, k, rtol), refine=refine)
        yield {"t": t, "k": k, "rtol": rtol, "refine": refine}, method
    if not case.tags.minimization:
        yield {"exact": True}, bl.Exact()


def draw_case(rng, turn):
    """A case of the family, and the condition number that its sampler was asked for."""
    name = turn.family
    n = {"S": SMALL, "M": MIDDLE, "T": 1 if name in ONE else 4, "L": LARGE[name]}[turn.size]
    exponent, seed = rng.uniform(0.0, 8.0), int(rng.integers(2**31))
    while True:
        condition = max(10.0**exponent, 2.0)  # at 1 the matrix A is a multiple of I
        try:
            instance = CATALOG[name].sample(seed, n, condition, jnp.dtype(turn.dtype))
            return Case(CATALOG[name].problem(), *instance, TAGS[name]), condition
        except ValueError:  # a small kernel matrix may be too well conditioned itself
            exponent /= 2


def draw_budget(rng, eps, large):
    """Most steps t and k, and the tolerance at which they end before, each log-uniform."""
    t, k = (round(log_uniform(rng, *limits)) for limits in ((8, 300 if large else 3000), (4, 1000)))
    return t, k, log_uniform(rng, 10 * eps, 0.3)


@tree.record
@dataclass(frozen=True)
class Budget:
    """A lower-level or linear solver with most steps and tolerance as arrays: other budgets, same program."""

    solver: Any
    steps: Any
    rtol: Any

    @property
    def needs_symmetry(self):
        return self.solver.needs_symmetry

    def __call__(self, *problem, **options):
        x, info = self.solver(*problem, **options, steps=self.steps, rtol=self.rtol)
        spent = (info.status == Status.MAX_STEPS) | (info.status == Status.STAGNATED)  # what a budget is for
        return x, replace(info, status=jnp.where(spent, code(Status.OK), info.status))


def hypergradient(case, judge, method):
    """Error, estimate and bound of one hypergradient, relative to the true one, and what they cost."""
    data = {"lower_data": case.lower_data, "upper_data": case.upper_data}
    h = bl.hypergradient(case.problem, case.lam, case.w0, **data, method=method, on_failure="keep")
    size = norm(judge.grad)
    sharp = sharpen_bound(case.problem, case.lam, h, **data) if tree.dtype(case.w0) == jnp.float64 else h
    return {
        "true": number(distance(h.grad, judge.grad) / size),
        "error": number(float(h.error) / size),
        "bound": number(float(h.bound) / size),
        "sharpened": number(float(sharp.bound) / size),  # float64 only
        "proved": bool(h.proved),
        "matvecs": int(h.lower.matvecs) + int(h.adjoint.matvecs),
        "estimate_matvecs": int(h.error_info.steps) + OVERHEAD,
        "error_matvecs": int(h.error_info.matvecs),  # with those of the bound
        "status": Status(int(h.status)).name,
    }


def curves(case, judge):
    """True errors and a-priori bounds of ITD, AID-FP and AID-CG over t, relative to the true hypergradient."""
    at = Instance(case.problem, case.lam, case.lower_data, case.upper_data)
    pairs = np.array([*zip(T, T, strict=True), *((t, FIXED) for t in T)])
    rates, itd, implicit = run_curves(at, case.w0, jnp.asarray(T), jnp.asarray(pairs))
    if not np.isfinite(float(rates.q)):
        return None
    unravel, size = ravel_pytree(case.lam)[1], norm(judge.grad)

    def rows(grads, bound, *counts):
        errors = [distance(unravel(grad), judge.grad) / size for grad in grads]
        return [[number(e), number(b)] for e, b in zip(errors, np.asarray(bound(*counts), float) / size, strict=True)]

    found = {"ITD": rows(itd, partial(apriori.itd, rates), T)}
    for kind, grads in zip(("FP", "CG"), implicit, strict=False):
        bound = partial(apriori.aid_fp if kind == "FP" else apriori.aid_cg, rates)
        for label, part in (("t", slice(0, len(T))), (str(FIXED), slice(len(T), None))):
            found[f"{kind} k={label}"] = rows(grads[part], bound, *pairs[part].T)
    return {"q": float(rates.q), "t": T.tolist(), "curves": found}


@jax.jit
def run_curves(at, w0, steps, pairs):
    """A-priori rates, and flat gradients of ITD at ``steps`` and of AID-FP and AID-CG at ``pairs`` of (t, k)."""
    c, lower = on_ball(at, w0), at.problem.lower
    step = 1.0 if c.q is not None else 2 / (c.L + c.mu)

    def flat(grad):
        return ravel_pytree(grad)[0]

    def unrolled(lam, t):
        def advance(w, i):
            moved = tree.axpy(-step, lower.residual(w, lam, at.lower_data), w)
            return tree.where(i < t, moved, w), None

        w, _ = jax.lax.scan(advance, w0, jnp.arange(int(T[-1])))
        return at.problem.upper(w, lam, at.upper_data)

    def implicit(pair):
        w, _ = bl.Picard(step=step)(lower, at.lam, w0, at.lower_data, steps=pair[0])
        _, A = at.linearize(w)
        _, g = at.upper_gradient(w)
        solvers = [bl.Richardson(step=step), *([bl.CG()] if lower.symmetric else [])]
        return [flat(gradient(at, w, solve(A.T, g, steps=pair[1])[0]).grad) for solve in solvers]

    itd = jax.lax.map(lambda t: flat(jax.grad(unrolled)(at.lam, t)), steps)
    return apriori.rates(c), itd, jax.lax.map(implicit, pairs)


def number(x):
    """A finite number, or None."""
    return float(x) if np.isfinite(x) else None


def log_uniform(rng, low, high):
    """Number with a uniform logarithm."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


if __name__ == "__main__":
    main()
