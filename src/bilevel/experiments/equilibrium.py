"""``p1-equilibrium``: an equilibrium model of MNIST digits, trained by three hypergradients.

The state of every image is the fixed point of ``w_i = tanh(A w_i + B x_i + c)``, read out by a linear softmax; layer
and readout minimize the mean cross-entropy on the training images. ITD, AID-FP and AID with conjugate gradients on the
normal equations take ``T = K = 20`` steps from zero. With the projection, the singular values of A are cut off at 0.99
after every step, which keeps the map a contraction.

References
----------
Grazzi, Franceschi, Pontil, Salzo (2020), arXiv 2006.16218, Section 3.2 and the experiments on equilibrium models.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import tree
from bilevel.experiments import equilibrium_model as model
from bilevel.experiments.checks import Check, Summary
from bilevel.experiments.lines import Line, facts
from bilevel.experiments.mnist import Images, Split, load_split
from bilevel.models.equilibrium import Parameters
from bilevel.models.samples import Samples
from bilevel.status import Status

Tree = Any
Progress = Callable[[str, int, int], None]

NAME = "p1-equilibrium"
METHODS = ("ITD", "FP", "CG")
AGREEMENT = 1e-2  # relative distance of gradients that agree
SPREAD = 0.01  # of test accuracies that are the same
FAR = 0.2  # relative distance of gradients one of which is wrong


@dataclass(frozen=True)
class Settings:
    """What is trained, and on how much.

    Attributes
    ----------
    train, valid, test
        Images of every set.
    states
        Entries of the state of one image.
    inner_steps
        Steps T of the map, and K of the adjoint.
    steps
        Steps of the training.
    every
        Steps between two records; a tenth of it up to step ``2 every``, where the training changes fast.
    """

    train: int = 5000
    valid: int = 5000
    test: int = 10_000
    states: int = 200
    inner_steps: int = 20
    steps: int = 1000
    every: int = 50

    @property
    def total(self) -> int:
        """Training steps of all runs: the unit of progress."""
        return 2 * len(METHODS) * (self.steps + 1)

    def due(self, step: int) -> bool:
        """Whether a record is made before this step."""
        between = max(self.every // 10, 1) if step <= 2 * self.every else self.every
        return step % between == 0 or step == self.steps


FULL = Settings()
QUICK = Settings(train=500, valid=500, test=1000, states=100, steps=40, every=100)


def run(settings: Settings, seed: int, progress: Progress) -> Iterator[Line]:
    """One record every so many steps of every run."""
    split = load_split(settings.train, settings.valid, settings.test, seed)
    lam = model.start(settings.states, seed, jnp.float32)
    config = {
        **asdict(settings), "learning_rate": model.LEARNING_RATE, "momentum": model.MOMENTUM,
        "initial_scale": model.INITIAL_SCALE, "largest_singular_value": model.LARGEST_SINGULAR_VALUE,
    }  # fmt: skip
    about = facts(NAME, seed, lam["A"].dtype, config)
    done = 0
    for projected in (True, False):
        for name in METHODS:
            for line in train(settings, name, lam, split, projected=projected):
                if line is not None:
                    yield {**about, "method": name, "projected": projected, **line}
                done += 1
                progress("step", done, settings.total)


def train(settings: Settings, name: str, lam: Parameters, split: Split, *, projected: bool) -> Iterator[Line | None]:
    """One run; a record where one is due, else None. It ends early where a parameter is no number."""
    method, state = model.method_of(name, settings.inner_steps), model.begin(lam)
    sets = {name: _samples(images) for name, images in split._asdict().items()}
    begun, paused = time.perf_counter(), 0.0
    for step in range(settings.steps + 1):
        line = None
        if settings.due(step):
            jax.block_until_ready(state)
            now = time.perf_counter()
            line = {"step": step, "seconds": now - begun - paused, **_seen(method, settings, state.lam, sets)}
            paused += time.perf_counter() - now
        yield line
        if line is not None and line["norm_A"] is None:
            return
        state = model.train_step(method, state, sets["train"], projected=projected)


def _samples(images: Images) -> Samples:
    return Samples(jnp.asarray(images.X), jnp.asarray(images.y))


def _seen(method: Any, settings: Settings, lam: Parameters, sets: dict[str, Samples]) -> Line:
    """Quality on all sets, and what the hypergradient says of itself."""
    quality = {
        f"{name}_{key}": float(value)
        for name, data in sets.items()
        for key, value in zip(("loss", "accuracy"), model.quality(settings.inner_steps, lam, data), strict=True)
    }
    h = model.driven_hypergradient(method, lam, sets["train"], error=True)
    unrolled = model.driven_hypergradient(model.method_of("ITD", settings.inner_steps), lam, sets["train"], error=False)
    status, A = Status(int(h.status)), np.asarray(lam["A"], np.float64)
    finite = bool(np.isfinite(A).all())
    return {
        **quality, "gradient_norm": float(tree.norm(h.grad)), "estimated_relative_error": float(h.relative_error),
        "relative_distance_to_itd": float(tree.norm(tree.sub(h.grad, unrolled.grad)) / tree.norm(unrolled.grad)),
        "residual_norm": float(h.lower.residual_norm), "matvecs": int(h.lower.matvecs) + int(h.adjoint.matvecs),
        "norm_A": float(np.linalg.norm(A, 2)) if finite else None,
        "spectral_radius_A": float(np.abs(np.linalg.eigvals(A)).max()) if finite else None,
        "status": status.name, "flagged": status != Status.OK,
    }  # fmt: skip


def checks(lines: list[Line]) -> list[Check]:
    """With the projection all methods agree, without it those that fail are flagged."""
    runs = _runs(lines)
    projected, free = ({key: run for key, run in runs.items() if key[1] is choice} for choice in (True, False))
    apart = max(line["relative_distance_to_itd"] for run in projected.values() for line in run)
    accuracies = [run[-1]["test_accuracy"] for run in projected.values()]
    flagged = sum(line["flagged"] for run in projected.values() for line in run)
    broken = {key: run for key, run in free.items() if not (run[-1]["train_loss"] or np.inf) < run[0]["train_loss"]}
    told = sum(any(line["flagged"] for line in run) for run in broken.values())
    far = [line for run in free.values() for line in run if not (line["relative_distance_to_itd"] or 0) <= FAR]
    silent = sum(not line["flagged"] for line in far)
    return [
        Check(
            "with projection all gradients agree with that of ITD", apart <= AGREEMENT,
            f"within {apart:.0e} of its norm",
        ),
        Check(
            "with projection all methods reach the same accuracy", max(accuracies) - min(accuracies) <= SPREAD,
            f"test accuracy {min(accuracies):.4f} to {max(accuracies):.4f}",
        ),
        Check("with projection nothing is flagged", flagged == 0, f"{flagged} records are"),
        Check(
            "without projection every run that breaks down was flagged", told == len(broken),
            f"{len(broken)} of {len(free)} runs do, {told} of them flagged",
        ),
        Check(
            f"without projection gradients of AID farther than {FAR} from that of ITD are flagged", silent == 0,
            f"{len(far)} are that far, {silent} of them without a flag",
        ),
    ]  # fmt: skip


def summary(lines: list[Line]) -> Summary:
    """Where every run ended, and how many of its records are flagged."""
    rows = []
    for (method, projected, seed), run in _runs(lines).items():
        quality = (f"{run[-1]['train_loss'] or np.nan:.1e}", f"{run[-1]['test_accuracy']:.3f}")
        flagged = f"{sum(line['flagged'] for line in run)} of {len(run)}"
        rows.append((method, "yes" if projected else "no", str(seed), str(run[-1]["step"]), *quality, flagged))
    titles = ("method", "projection", "seed", "steps", "training loss", "test accuracy", "flagged")
    return Summary(titles, rows)


def _runs(lines: list[Line]) -> dict[tuple[str, bool, int], list[Line]]:
    """The records of every run: by method, projection and seed."""
    runs: dict[tuple[str, bool, int], list[Line]] = {}
    for line in lines:
        runs.setdefault((line["method"], line["projected"], line["seed"]), []).append(line)
    return runs
