"""``nsid``: hypergradients of the elastic net, a nonsmooth lower level, by deterministic and by stochastic methods.

``w(lam) = argmin |X w - y|^2 / (2 n) + l1 |w|_1 + l2/2 |w|^2``, with the validation error above. Two parts:

- *exact*: errors of ITD, AID-FP and AID with CG on the normal equations after t steps of proximal gradient descent
  with step ``2 / (L + mu + 2 l2)``, k = t, and the step from which on the support is the right one.
- *sampled*: ``w`` is fixed after 400 such steps; NSID and SID take k batches for ``v`` and J = k + 1 for the mixed
  derivative, with the steps ``beta / (gamma + i)``, ``beta = 1 / (1 - q^2)``, ``gamma = 4 / (1 - q^2)``, or with their
  first, 1/4; AID-FP takes k products with all data. SID has the prox in its samples. Rows are drawn with replacement,
  as the theory has it.

One sample of the second part is one row in one product or one gradient: ``b (k + J)`` of the stochastic methods and
``n (k + 1)`` of AID-FP. The truth is the closed form on the support.

References
----------
Grazzi, Pontil, Salzo (2024), arXiv 2403.11687, Section 5.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bilevel.experiments.counted import aid, itd
from bilevel.experiments.lines import Line, facts
from bilevel.experiments.nsid_model import BATCH_AXES, PROBLEM, Case, correlated, identification, independent, make_case
from bilevel.hypergradient import hypergradient
from bilevel.linear.normal_cg import NormalCG
from bilevel.linear.richardson import Richardson
from bilevel.linear.stochastic import StochasticRichardson
from bilevel.methods.base import Hypergradient
from bilevel.methods.nsid import NSID
from bilevel.methods.sid import SID
from bilevel.sampling import Sampler
from bilevel.schedules import Constant, Decreasing
from bilevel.solvers.picard import Picard
from bilevel.status import Status

Progress = Callable[[str, int, int], None]

NAME = "nsid"
EXACT = ("ITD", "AID-FP", "AID-CG")
SAMPLED = ("NSID, decreasing", "NSID, constant", "SID, decreasing", "SID, constant", "AID-FP")
PENALTIES = (0.1, 0.01)  # l1 and l2 of the second part


@dataclass(frozen=True)
class Settings:
    """What is computed.

    Attributes
    ----------
    exact
        Weights (l1, l2) of the first part, and the largest t.
    points
        Values of t.
    sampled
        Training rows of the second part.
    batch, w_steps
        Rows of a batch, steps of the lower level.
    counts, products
        Values of k of the stochastic methods, and of AID-FP; increasing.
    runs
        Runs of the stochastic methods, which differ in the batches they draw.
    """

    exact: tuple[tuple[float, float, int], ...] = ((0.02, 0.002, 500), (0.002, 0.002, 1000))
    points: int = 26
    sampled: int = 10_000
    batch: int = 100
    w_steps: int = 400
    counts: tuple[int, ...] = (*(125 * 2**i // 16 for i in range(11)),)
    products: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    runs: int = 20

    @property
    def total(self) -> int:
        """Hypergradients or batches of them: the unit of progress."""
        return len(self.exact) * self.points + len(self.counts) * (len(SAMPLED) - 1) + len(self.products)


FULL = Settings()
QUICK = Settings(points=11, sampled=4000, batch=50, counts=(*(125 * 2**i // 16 for i in range(9)),))


def _solve(at: Any, method: Any, key: Array | None = None) -> Hypergradient:
    """The hypergradient from zero, for ``lam``, ``lower_data`` and ``upper_data``."""
    lam, lower_data, upper_data = at
    return hypergradient(
        PROBLEM, lam, jnp.zeros_like(lower_data.rows.X[0]), lower_data=lower_data, upper_data=upper_data,
        method=method, key=key, error=False, on_failure="keep",
    )  # fmt: skip


def run(settings: Settings, seed: int, progress: Progress) -> Iterator[Line]:
    """One record for every method and t of the first part, and for every method, k and run of the second."""
    rows = independent(np.random.default_rng(seed))
    sampled = correlated(np.random.default_rng(seed), settings.sampled)
    about = facts(NAME, seed, rows[0].X.dtype, asdict(settings))
    done = 0
    for l1, l2, last in settings.exact:
        case = make_case(l1, l2, *rows)
        identified = int(identification(case, last))
        for t in _grid(last, settings.points):
            for line in _exact(case, t, last):
                yield {**about, "part": "exact", "l1": l1, "l2": l2, "identified": identified, **line}
            done += 1
            progress("point", done, settings.total)
    case = make_case(*PENALTIES, *sampled)
    where = dict(zip(("l1", "l2"), PENALTIES, strict=True))
    for name in SAMPLED:
        for k in settings.products if name == "AID-FP" else settings.counts:
            for line in _sampled(settings, case, name, k, seed):
                yield {**about, "part": "sampled", **where, "method": name, "k": k, **line}
            done += 1
            progress("point", done, settings.total)


def _grid(last: int, points: int) -> list[int]:
    return [int(t) for t in np.unique(np.linspace(1, last, points).round())]


def _exact(case: Case, t: int, last: int) -> Iterator[Line]:
    methods = itd(Picard(), t, last), aid(Picard(), Richardson(), t, t), aid(Picard(), NormalCG(), t, t)
    for name, method in zip(EXACT, methods, strict=True):
        h = _solve(case[:3], method)
        yield {"method": name, "t": t, "k": t, **_told(case, [h.grad.l1, h.grad.l2], h.status)}


def _sampled(settings: Settings, case: Case, name: str, k: int, seed: int) -> Iterator[Line]:
    kind, _, steps = name.partition(", ")
    if kind == "AID-FP":
        h = _solve(case[:3], aid(Picard(), Richardson(), settings.w_steps, k))
        told = _told(case, [h.grad.l1, h.grad.l2], h.status)
        yield {"run": 0, "J": None, "samples": settings.sampled * (k + 1), **told}
        return
    J, gap = k + 1, 1 - float(case.lower_data.step.q(case.lam.l2)) ** 2
    schedule = Decreasing(1 / gap, 4 / gap) if steps == "decreasing" else Constant(0.25)
    keys = jax.random.split(jax.random.key(seed), settings.runs)
    sizes = {"kind": kind, "batch": settings.batch, "w_steps": settings.w_steps}
    h = _runs(case[:3], schedule, jnp.asarray(k), jnp.asarray(J), keys, **sizes)
    for r in range(settings.runs):
        told = _told(case, [h.grad.l1[r], h.grad.l2[r]], h.status[r])
        yield {"run": r, "J": J, "samples": settings.batch * (k + J), **told}


@partial(jax.jit, static_argnames=("kind", "batch", "w_steps"))
def _runs(
    case: Any, schedule: Any, k: Any, J: Any, keys: Array, *, kind: str, batch: int, w_steps: int
) -> Hypergradient:
    """Single runs with these keys, one program for all k and J."""
    linear = StochasticRichardson(steps=k, schedule=schedule)
    make = NSID if kind == "NSID" else SID
    method = make(Sampler(batch, BATCH_AXES, replace=True), Picard(steps=w_steps), linear, jacobian_samples=J, runs=1)
    return jax.vmap(lambda key: _solve(case, method, key))(keys)


def _told(case: Case, grad: list[Any], status: Any) -> Line:
    error = float(np.linalg.norm(np.array([float(g) for g in grad]) - case.truth))
    size = float(np.linalg.norm(case.truth))
    return {
        "error": error, "relative_error": error / size, "gradient_norm": size, "support": int(case.support.sum()),
        "status": Status(int(status)).name,
    }  # fmt: skip
