"""``p2-mnist``: stochastic against deterministic hypergradients at equal numbers of samples.

Logistic regression of the parity of MNIST's digits with one l2 penalty ``lam``, the validation loss above. SID takes t
batches for ``w``, k = t for ``v`` and J = t for the mixed derivative. AID takes t steps of gradient descent with step
``2 / (L + mu)`` and k = t products of the fixed-point method (FP) or of conjugate gradients (CG). SID's map is that of
gradient descent, with ``q = (L - mu) / (L + mu)``; its steps are the part ``1 / (1 + s2)`` of it, or decrease from
there on, and ``s2`` is estimated at ``w = 0``: nothing is tuned on the truth.

One sample is one example in one gradient or one product, of either level. SID takes ``b (t + 2 k + J)``, as every
step of ``v`` uses a batch of both levels, and AID ``n (t + k + 2)``, as it takes ``d_w U`` and the mixed derivative
once. What L and s2 take is not counted.

References
----------
Grazzi, Pontil, Salzo (2021), arXiv 2011.07122.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel.experiments.counted import aid
from bilevel.experiments.lines import Line, facts
from bilevel.experiments.mnist import Images, load_split
from bilevel.hypergradient import hypergradient
from bilevel.linear.cg import CG
from bilevel.linear.richardson import Richardson
from bilevel.linear.stochastic import StochasticRichardson
from bilevel.methods.base import Hypergradient
from bilevel.methods.exact import Exact
from bilevel.methods.sid import SID
from bilevel.models import logistic
from bilevel.models.samples import Samples, floating
from bilevel.sampling import Sampler
from bilevel.schedules import Constant, from_rates
from bilevel.solvers.picard import Picard
from bilevel.solvers.sgd import SGD
from bilevel.status import Status

Tree = Any
Progress = Callable[[str, int, int], None]

NAME = "p2-mnist"
PROBLEM = logistic.problem()
STOCHASTIC = ("SID, decreasing", "SID, constant")
DETERMINISTIC = ("AID-FP", "AID-CG")
METHODS = (*STOCHASTIC, *DETERMINISTIC)
NOISE_BATCHES = 64  # that s2 is estimated from


@dataclass(frozen=True)
class Settings:
    """What is computed.

    Attributes
    ----------
    rows
        Training images, and validation images.
    batch
        Images of a batch.
    penalties
        Values of ``lam``, decreasing.
    runs
        Runs of SID, which differ in the batches they draw.
    sid_steps, aid_steps
        Values of t = k of SID and of AID, increasing.
    """

    rows: int = 30_000
    batch: int = 50
    penalties: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4)
    runs: int = 8
    sid_steps: tuple[int, ...] = (*(75 * 2**i // 8 for i in range(14)), 115_200)
    aid_steps: tuple[int, ...] = (*(2**i for i in range(12)),)

    @property
    def total(self) -> int:
        """Hypergradients in all: the unit of progress."""
        stochastic = len(STOCHASTIC) * len(self.sid_steps) * self.runs
        return len(self.penalties) * (stochastic + len(DETERMINISTIC) * len(self.aid_steps))


FULL = Settings()
QUICK = Settings(
    rows=5000, penalties=(1e-1, 1e-2), runs=3,
    sid_steps=(*(75 * 2**i // 8 for i in range(12)),), aid_steps=(*(2**i for i in range(9)),),
)  # fmt: skip


class _Data(NamedTuple):
    train: Samples
    valid: Samples


class _Levels(NamedTuple):
    """All penalties with what the methods are made of there, one entry each."""

    lam: Float[Array, " m"]
    mu: Float[Array, " m"]
    L: Float[Array, " m"]
    s2: Float[Array, " m"]
    truth: Float[Array, " m"]
    truth_error: Float[Array, " m"]

    @property
    def step(self) -> Float[Array, " m"]:
        """``2 / (L + mu)``, with which gradient descent contracts fastest."""
        return 2 / (self.L + self.mu)

    @property
    def q(self) -> Float[Array, " m"]:
        """Its contraction factor."""
        return (self.L - self.mu) / (self.L + self.mu)

    def one(self, i: int) -> "_Levels":
        """Those of one penalty, scalars."""
        return _Levels(*(values[i] for values in self))


def run(settings: Settings, seed: int, progress: Progress) -> Iterator[Line]:
    """One record for every penalty, method, run and t."""
    split = load_split(settings.rows, settings.rows, 0, seed)
    data = _Data(parity(split.train), parity(split.valid))
    about = facts(NAME, seed, data.train.X.dtype, {**asdict(settings), "noise_batches": NOISE_BATCHES})
    levels = _levels(settings, data, seed)
    lines = chain(_deterministic(settings, data, levels), _stochastic(settings, data, levels, seed))
    for done, line in enumerate(lines, start=1):
        yield {**about, **line}
        progress("point", done, settings.total)


def parity(images: Images) -> Samples:
    """Images with the label 1 where the digit is even, else -1."""
    return Samples(floating(images.X), floating(np.where(images.y % 2 == 0, 1.0, -1.0)))


def _levels(settings: Settings, data: _Data, seed: int) -> _Levels:
    rows = [_level(floating(lam), data, Sampler(settings.batch), jax.random.key(seed)) for lam in settings.penalties]
    return _Levels(*(jnp.stack(values) for values in zip(*rows, strict=True)))


def _level(lam: Float[Array, ""], data: _Data, sampler: Sampler, key: Array) -> _Levels:
    c = logistic.constants(lam, *data)
    h = hypergradient(PROBLEM, lam, _start(data), lower_data=data.train, upper_data=data.valid, method=Exact())
    return _Levels(lam, jnp.asarray(c.mu), jnp.asarray(c.L), noise(lam, data.train, sampler, key), h.grad, h.error)


def _start(data: _Data) -> Float[Array, " d"]:
    return jnp.zeros_like(data.train.X[0])


@partial(jax.jit, static_argnames="sampler")
def noise(lam: Float[Array, ""], data: Samples, sampler: Sampler, key: Array) -> Float[Array, ""]:
    """``s2 = E|F_batch - F|^2 / |F|^2`` at ``w = 0``: no less than the s2 of ``Var <= s1 + s2 |F|^2``."""
    w = jnp.zeros_like(data.X[0])
    F = PROBLEM.lower.residual(w, lam, data)

    def draw(stream: Any, _: None) -> tuple[Any, Float[Array, ""]]:
        drawn, stream = sampler.evaluate(lambda batch: PROBLEM.lower.residual(w, lam, batch), data, stream)
        return stream, jnp.sum(jnp.square(drawn - F))

    _, squares = jax.lax.scan(draw, sampler.start(data, key), length=NOISE_BATCHES)
    return jnp.mean(squares) / jnp.sum(jnp.square(F))


def _deterministic(settings: Settings, data: _Data, levels: _Levels) -> Iterator[Line]:
    """AID for all penalties at once, gradient descent going on from budget to budget."""
    n, last = settings.rows, 0
    w = jnp.tile(_start(data), (len(settings.penalties), 1))
    solver, linear_solvers = Picard(step=levels.step), (Richardson(step=levels.step), CG())
    for t in settings.aid_steps:
        samples = n * (t + t + 2)  # gradients, products, and one of each for d_w U and the mixed derivative
        for name, linear in zip(DETERMINISTIC, linear_solvers, strict=True):
            h = _aid(levels.lam, w, solver, linear, t - last, t, data)
            w, last = h.w, t
            for i in range(len(settings.penalties)):
                yield _line(name, levels.one(i), settings, samples, h.grad[i], h.status[i], t=t, k=t, J=None, run=0)


@jax.jit
def _aid(lam: Tree, w: Tree, solver: Picard, linear: Any, more: Any, k: Any, data: _Data) -> Hypergradient:
    def one(lam: Tree, w: Tree, solver: Picard, linear: Any) -> Hypergradient:
        return _compute(lam, w, data, aid(solver, linear, more, k))

    return jax.vmap(one)(lam, w, solver, linear)


def _compute(lam: Tree, w: Tree, data: _Data, method: Any, key: Array | None = None) -> Hypergradient:
    return hypergradient(
        PROBLEM, lam, w, lower_data=data.train, upper_data=data.valid, method=method, key=key,
        error=False, on_failure="keep",
    )  # fmt: skip


def _stochastic(settings: Settings, data: _Data, levels: _Levels, seed: int) -> Iterator[Line]:
    """SID for all penalties at once, on the same batches; a run begins with the same batches at every budget."""
    sampler, m = Sampler(settings.batch), len(settings.penalties)
    schedules = from_rates(levels.q, levels.s2), Constant(1 / (1 + levels.s2))
    for name, schedule in zip(STOCHASTIC, schedules, strict=True):
        for t in settings.sid_steps:
            samples = settings.batch * (t + 2 * t + t)  # d_w F; A and d_w U; the mixed derivative
            for r, key in enumerate(jax.random.split(jax.random.key(seed), settings.runs)):
                h = _sid(levels.lam, schedule, levels.step, t, data, key, sampler)
                for i in range(m):
                    yield _line(name, levels.one(i), settings, samples, h.grad[i], h.status[i], t=t, k=t, J=t, run=r)


@partial(jax.jit, static_argnames="sampler")
def _sid(lam: Tree, schedule: Any, step: Tree, t: Any, data: _Data, key: Array, sampler: Sampler) -> Hypergradient:
    def one(lam: Tree, schedule: Any, step: Tree) -> Hypergradient:
        method = SID(
            sampler=sampler,
            solver=SGD(steps=t, schedule=schedule, step=step),
            linear_solver=StochasticRichardson(steps=t, schedule=schedule, step=step),
            jacobian_samples=t,
            upper_sampler=sampler,
            runs=1,
        )
        return _compute(lam, _start(data), data, method, key)

    return jax.vmap(one)(lam, schedule, step)


def _line(
    method: str, at: _Levels, settings: Settings, samples: int, grad: Any, status: Any, **counts: int | None
) -> Line:
    error = abs(float(grad - at.truth))
    return {
        "method": method, "lam": float(at.lam), **counts, "samples": samples, "epochs": samples / settings.rows,
        "grad": float(grad), "error": error, "relative_error": error / abs(float(at.truth)),
        "truth": float(at.truth), "truth_error": float(at.truth_error),
        "mu": float(at.mu), "L": float(at.L), "s2": float(at.s2), "status": Status(int(status)).name,
    }  # fmt: skip
