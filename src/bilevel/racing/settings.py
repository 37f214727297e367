"""Which algorithms race, in which order, and with which settings."""

from dataclasses import replace
from typing import Any, NamedTuple

from bilevel.algorithms import (
    ALSET,
    BOME,
    BSA,
    F2SA,
    FSLA,
    MRBO,
    MSTSA,
    PZOBO,
    SABA,
    SOBA,
    SRBA,
    SUSTAIN,
    TTSA,
    VRBO,
    AdaptiveSOBA,
    AmIGO,
    BiSLS,
    BiSPS,
    QuasiNewton,
    StocBiO,
)
from bilevel.racing.ours import OURS
from bilevel.racing.published import PUBLISHED
from bilevel.racing.setting import Setting
from bilevel.racing.task import BATCH, Task
from bilevel.status import ProblemError

DEFAULT = Setting(0.1, 1.0)  # for problems of users: the default of the public benchmark


# What is drawn together.
FAMILIES: dict[str, dict[str, Any]] = {
    "one loop over solution, adjoint and hyperparameters": {"SOBA": SOBA, "SABA": SABA, "SRBA": SRBA, "FSLA": FSLA},
    "inner loops": {"AmIGO": AmIGO, "ALSET": ALSET, "BSA": BSA, "StocBiO": StocBiO},
    "momentum, and two time scales": {"TTSA": TTSA, "SUSTAIN": SUSTAIN, "MSTSA": MSTSA, "MRBO": MRBO, "VRBO": VRBO},
    "first order, or adaptive steps": {"F2SA": F2SA, "BOME": BOME, "PZOBO": PZOBO, "BiSPS": BiSPS, "BiSLS": BiSLS},
    "steps of their own": {"AdaptiveSOBA": AdaptiveSOBA, "QuasiNewton": QuasiNewton},
}
ALGORITHMS = {name: algorithm for family in FAMILIES.values() for name, algorithm in family.items()}
SET_THEIR_OWN = tuple(FAMILIES["steps of their own"])
NEED_NEUMANN_STEP = ("BiSPS", "BiSLS")


class Entrant(NamedTuple):
    """An algorithm made for a task, with its settings, None where it sets its own, and where they are from."""

    name: str
    algorithm: Any
    setting: Setting | None
    origin: str


def choose(names: list[str] | None) -> list[str]:
    """The names, or all.

    Raises
    ------
    ProblemError
        One is unknown, or there is none.
    """
    if names is None:
        return list(ALGORITHMS)
    unknown = [name for name in names if name not in ALGORITHMS]
    if unknown or not names:
        raise ProblemError(f"unknown algorithm '{', '.join(unknown)}': the algorithms are {', '.join(ALGORITHMS)}")
    return list(dict.fromkeys(names))


def entrant(name: str, task: Task, step: float | None = None, ratio: float | None = None) -> Entrant:
    """An algorithm with the settings of a task, its steps perhaps given."""
    if name in SET_THEIR_OWN:
        algorithm = QuasiNewton() if name == "QuasiNewton" else AdaptiveSOBA(*task.samplers)
        return Entrant(name, algorithm, None, "own")
    published, ours = PUBLISHED.get(task.name, {}), OURS.get(task.name, {})
    setting = published.get(name) or ours.get(name) or DEFAULT
    origin = "published" if name in published else "ours" if name in ours else "default"
    if step is not None or ratio is not None:
        given = {"step": step, "ratio": ratio}
        setting, origin = replace(setting, **{key: x for key, x in given.items() if x is not None}), "given"
    return Entrant(name, _made(name, task, setting), setting, origin)


def _made(name: str, task: Task, setting: Setting) -> Any:
    lower, upper = task.samplers
    options = dict(setting.options)
    if setting.passes is not None:
        options["period"] = max(1, int(setting.passes * sum(task.rows) / BATCH))
    if name in NEED_NEUMANN_STEP:
        options.setdefault("neumann_step", setting.step)
    return ALGORITHMS[name](
        lower, step=setting.step, outer_step=setting.step / setting.ratio, upper_sampler=upper, **options
    )
