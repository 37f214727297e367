"""A run as plain values for JSON: what was run where, and what came out."""

import math
from dataclasses import asdict
from typing import Any

import jax

from bilevel.records import plain, versions
from bilevel.tuning.run import MODELS, Result
from bilevel.tuning.search import GRID


def record(result: Result) -> dict[str, Any]:
    """Everything about a run but the model itself. No NaN: what is not a number is None."""
    model, found = result.model, result.search
    choice = found.choice
    assert choice is not None
    n = len(result.train_rows)
    values = {
        "command": "tune",
        "data": {
            "name": result.table,
            "target": model.target,
            "train_rows": n,
            "test_rows": len(result.test_rows),
            "features": len(model.encoder.names),
            "classes": list(model.classes),
        },
        "model": model.family,
        "config": asdict(result.settings),
        "seed": result.settings.seed,
        "dtype": result.settings.dtype,
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
        "hyperparameters": len(model.penalties),
        "loss": "mean squared error of the standardized target" if model.family == "ridge" else "mean cross-entropy",
        "quality": "R2" if model.family == "ridge" else "accuracy",
        "result": {
            name: {"validation": asdict(result.validation[name]), "test": asdict(result.test[name])} for name in MODELS
        },
        "single_penalty": math.exp(found.path[0].shared[0]),
        "chosen": {
            "spread": found.spreads[choice.chosen],
            "strength": _strength(found.spreads[choice.chosen]),
            "reason": choice.reason(),
        },
        "path": [
            {
                "spread": spread,
                "strength": _strength(spread),
                "validation_loss": point.validation[0],
                "selection_loss": choice.means[k],
                "excess": choice.excess[k],
                "standard_error": choice.standard_error[k],
            }
            for k, (spread, point) in enumerate(zip(found.spreads, found.path, strict=True))
        ],
        "grid": {
            "penalty": (n * 10.0**GRID).tolist(),
            "validation_loss": found.grid_validation[:, 0].tolist(),
            "selection_loss": found.grid_selection.mean(axis=1).tolist(),
        },
        "seconds": result.seconds,
        "hypergradients": found.hypergradients + 1,
        "matvecs": result.matvecs,
        "unconverged_solves": found.failures,
        "relative_error": result.relative_error,
        "notes": list(result.notes),
    }
    return plain(values)


def _strength(spread: float) -> float | None:
    """One over the prior variance of the log penalties; None: infinite."""
    return None if spread == 0 else 1 / spread**2
