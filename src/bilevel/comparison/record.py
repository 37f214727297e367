"""A comparison as plain values for JSON: what was compared where, and what came out."""

from dataclasses import asdict
from typing import Any

import jax

from bilevel import tree
from bilevel.comparison.run import Comparison
from bilevel.models.catalog import Case
from bilevel.records import plain, versions


def record(found: Comparison) -> dict[str, Any]:
    """Everything about a comparison but its arrays. No NaN: what is not known is None."""
    values = {
        "command": "compare",
        "problem": {"name": found.name, **facts(found.case), "origin": dict(found.origin)},
        "budget": asdict(found.budget),
        "truth": {
            "method": found.truth.how,
            "found": found.judged,
            "relative_error": found.truth.relative_error,
            "note": found.truth.note,
        },
        "runs": found.runs,
        "rows": [{**asdict(row), "matvecs": row.matvecs} for row in found.rows],
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
    }
    return plain(values)


def facts(case: Case) -> dict[str, Any]:
    """What a person asks first about a problem."""
    lower = case.problem.lower
    return {
        "kind": lower.kind,
        "symmetric": lower.symmetric,
        "unknowns": tree.size(case.w0),
        "hyperparameters": tree.size(case.lam),
        "dtype": str(tree.dtype(case.w0)),
    }
