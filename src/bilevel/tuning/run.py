"""``tune``: from a table to a model with one tuned penalty per feature, and how much better it is."""

import time
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pandas as pd

from bilevel.data import DataError, Encoder, Table, Target, assign_folds, fit_encoder, read_target, split_rows
from bilevel.hypergradient import hypergradient
from bilevel.linear.cg import CG
from bilevel.methods.aid import AID
from bilevel.solvers.newton_cg import NewtonCG
from bilevel.tuning.families import FAMILIES, Family
from bilevel.tuning.fits import (
    Columns,
    Goal,
    Hyperparameters,
    coefficients,
    columns,
    finals,
    intercepts,
    make_fits,
    zero_weights,
)  # fmt: skip
from bilevel.tuning.model import Model
from bilevel.tuning.scores import Score, pooled_scores, score
from bilevel.tuning.search import Progress, Search, search
from bilevel.tuning.settings import Settings
from bilevel.tuning.transform import recenter

MODELS = ("no_tuning", "single_penalty", "tuned")
UNTUNED = 1.0  # penalty of the model that is not tuned: the default of scikit-learn


@dataclass(frozen=True)
class Result:
    """What :func:`tune` found.

    Attributes
    ----------
    model
        The tuned model, fitted to all training rows.
    validation, test
        Scores of ``no_tuning`` (penalty 1), ``single_penalty`` (the best of the grid) and ``tuned``.
    penalties
        A row per feature: name, penalty, log-deviation from the shared penalty, coefficients.
    search
        The grid, the path of priors and the choice.
    relative_error
        Of the hypergradient of the validation loss at the tuned penalties.
    settings, table, train_rows, test_rows
        What it was run on.
    seconds
        Wall time by stage and in ``total``, and ``cpu``, the processor time of all threads.
    notes
        What a user should know about the data: one sentence each.
    """

    model: Model
    validation: dict[str, Score]
    test: dict[str, Score]
    penalties: pd.DataFrame
    search: Search
    relative_error: float
    matvecs: int
    settings: Settings
    table: str
    train_rows: np.ndarray
    test_rows: np.ndarray
    seconds: dict[str, float]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Prepared:
    """Encoded training part."""

    target: Target
    family: Family
    train: np.ndarray
    test: np.ndarray
    fold: np.ndarray
    encoder: Encoder
    X: np.ndarray
    y: np.ndarray
    mean: float
    scale: float


def silent(stage: str, done: int, total: int) -> None:
    """Progress that is shown nowhere."""


def tune(table: Table, settings: Settings | None = None, progress: Progress = silent) -> Result:
    """Tune one l2 penalty per feature and compare with one for all.

    1. Split off a test part. 2. Learn the encoding from the training part. 3. Best single penalty of a grid of 25
    by the validation loss. 4. ``log penalty_j = shared + deviation_j`` by hypergradients of the validation loss under
    normal priors on the deviations, from narrow to wide. 5. Of these, take the narrowest that selection folds,
    which no hypergradient saw, cannot tell from the best by one standard error. 6. Refit and test.

    Parameters
    ----------
    table
        From :func:`bilevel.data.load`.
    settings
        See :class:`Settings`.
    progress
        Called as ``progress(stage, done, total)``.

    Returns
    -------
    Result
        The model, its scores and those of the alternatives. The same seed gives the same result.

    Raises
    ------
    DataError
        The table cannot be used, or float64 was asked for while JAX's x64 mode is off.
    """
    settings = settings or Settings()
    clock = _Clock()
    data = _prepare(table, settings)
    if settings.dtype == "float64" and jnp.result_type(float) != jnp.float64:
        raise DataError('float64 needs jax.config.update("jax_enable_x64", True) at the start, or dtype="float32"')
    which = columns(data.fold, settings.folds, settings.validation == "holdout")
    clock.mark("reading")
    found = search(data.family, make_fits(data.X, data.y, which, settings.dtype), progress)
    clock.mark("search")
    progress("final", 0, 1)
    lam = _three(found)
    last = _conclude(data, which, lam, settings)
    models = {name: _model(table, data, lam, last, k) for k, name in enumerate(MODELS)}
    test = {name: _test(model, data, table) for name, model in models.items()}
    progress("final", 1, 1)
    clock.mark("final")
    model = models["tuned"]
    return Result(
        model=model,
        validation=dict(zip(MODELS, last.validation, strict=True)),
        test=test,
        penalties=_penalty_table(model, found),
        search=found,
        relative_error=last.relative_error,
        matvecs=found.matvecs + last.matvecs,
        settings=settings,
        table=table.name,
        train_rows=data.train,
        test_rows=data.test,
        seconds=clock.seconds(),
        notes=_notes(table, data),
    )


def _prepare(table: Table, settings: Settings) -> _Prepared:
    target = read_target(table.target, settings.task)
    train, test = split_rows(target, settings.test_fraction, settings.seed)
    fold = assign_folds(target, train, settings.folds, settings.seed)
    encoder = fit_encoder(table.features.iloc[train])
    X, values = encoder(table.features.iloc[train]), target.values[train]
    encoder(table.features.iloc[test])  # junk in the test part is found before the work, not after it
    name = {0: "ridge", 2: "logistic"}.get(len(target.classes), "multinomial")
    mean, scale = 0.0, 1.0
    if name == "ridge":
        mean, scale = float(values.mean()), float(values.std())
        if not scale > 0:
            raise DataError(f"the target '{table.target.name}' is constant on the training rows; give more rows")
    return _Prepared(
        target, FAMILIES[name], train, test, fold, encoder, X, _encode_target(name, (values - mean) / scale, target),
        mean, scale,
    )  # fmt: skip


def _encode_target(family: str, values: np.ndarray, target: Target) -> np.ndarray:
    if family == "multinomial":
        return np.eye(len(target.classes))[values.astype(int)]
    return values[:, None]


def _three(found: Search) -> tuple[np.ndarray, np.ndarray]:
    """Log penalties of the three models: shared (3,) and deviation (3, d)."""
    assert found.choice is not None
    points = [found.path[0], found.path[found.choice.chosen]]
    shared = np.array([np.log(UNTUNED), *(point.shared[0] for point in points)])
    deviation = np.stack([np.zeros_like(points[0].deviation[0]), *(point.deviation[0] for point in points)])
    return shared, deviation


@dataclass(frozen=True)
class _Last:
    """The three models fitted tightly: coefficients (d, 3, c), intercepts (3, c), validation scores."""

    coef: np.ndarray
    intercept: np.ndarray
    validation: list[Score]
    relative_error: float
    matvecs: int


def _conclude(data: _Prepared, which: Columns, lam: tuple[np.ndarray, np.ndarray], settings: Settings) -> _Last:
    """Fit all three models on the folds and on all rows, and compute the last hypergradient, with its error."""
    final = finals(which, len(MODELS), MODELS.index("tuned"))
    fits = make_fits(data.X, data.y, final, settings.dtype)
    at = Hyperparameters(shared=jnp.asarray(lam[0], settings.dtype), deviation=jnp.asarray(lam[1], settings.dtype))
    w = v = zero_weights(fits)
    matvecs, relative_error = 0, float("nan")
    for rtol in (1e-3, 1e-7 if settings.dtype == "float64" else 1e-4):  # the second time in coordinates that fit
        w, v, fits = recenter(data.family, at, w, v, fits)
        goal = Goal(fits, jnp.zeros(len(MODELS), settings.dtype))
        method = AID(solver=NewtonCG(rtol=rtol), linear_solver=CG(rtol=rtol))
        h = hypergradient(
            data.family.problem, at, w, v0=v, lower_data=fits, upper_data=goal, method=method, on_failure="keep"
        )
        w, v, relative_error = h.w, h.v, float(h.relative_error)
        matvecs += sum(int(info.matvecs) for info in (h.lower, h.adjoint, h.error_info))
    C = np.asarray(coefficients(w, fits), float)
    b = np.asarray(intercepts(w, C.shape[2]), float)
    on_all = np.flatnonzero(~final.held_out.any(axis=0))
    validation = pooled_scores(data.family, len(MODELS), w, fits)
    return _Last(C[:, on_all], b[on_all], validation, relative_error, matvecs)


def _model(table: Table, data: _Prepared, lam: tuple[np.ndarray, np.ndarray], last: _Last, k: int) -> Model:
    return Model(
        data.family.name, str(table.target.name), data.target.classes, data.encoder, last.coef[:, k],
        last.intercept[k], data.mean, data.scale, np.exp(lam[0][k] + lam[1][k]),
    )  # fmt: skip


def _test(model: Model, data: _Prepared, table: Table) -> Score:
    z = model.scores(table.features.iloc[data.test])
    values = (data.target.values[data.test] - data.mean) / data.scale
    return score(data.family, z, _encode_target(model.family, values, data.target))


def _penalty_table(model: Model, found: Search) -> pd.DataFrame:
    assert found.choice is not None
    frame = pd.DataFrame(
        {
            "feature": model.encoder.names,
            "penalty": model.penalties,
            "log_deviation": found.path[found.choice.chosen].deviation[0],
        }
    )
    labels = ["coefficient"] if model.coef.shape[1] == 1 else [f"coefficient_{c}" for c in model.classes]
    return frame.assign(**dict(zip(labels, model.coef.T, strict=True)))


def _notes(table: Table, data: _Prepared) -> tuple[str, ...]:
    notes = []
    dropped = data.encoder.encoded - len(data.encoder.kept)
    if dropped:
        notes.append(f"{dropped} feature(s) constant on the training rows were left out")
    unseen = data.encoder.unseen(table.features.iloc[data.test])
    if unseen:
        notes.append(f"{len(unseen)} categories occur in the test part only and became zeros: {', '.join(unseen[:5])}")
    return tuple(notes)


class _Clock:
    """Seconds between marks."""

    def __init__(self):
        self.start = self.last = time.perf_counter()
        self.cpu = time.process_time()
        self.stages: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        now = time.perf_counter()
        self.stages[stage], self.last = now - self.last, now

    def seconds(self) -> dict[str, float]:
        return {**self.stages, "total": self.last - self.start, "cpu": time.process_time() - self.cpu}
