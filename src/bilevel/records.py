"""What the records of all commands share: versions, and plain values for JSON."""

import math
import platform
from importlib import metadata
from typing import Any

import numpy as np

PACKAGES = ("bilevel", "jax", "jaxlib", "numpy", "optax", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of what the numbers of a record depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def plain(value: Any) -> Any:
    """The same value of dicts, lists, strings and numbers; what is not a finite number is None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
