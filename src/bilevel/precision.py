"""Matrix products in the precision of their arrays, on every device."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
T = TypeVar("T")


def full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Let ``function``, and the user's functions it traces, multiply matrices in full precision.

    A GPU multiplies float32 matrices with the ten bits of TF32 and a TPU with the seven of bfloat16 unless told
    otherwise: products that are wrong by 3e-4, and residuals of them in which no error estimate can see it. What
    the user has set as ``jax_default_matmul_precision``, or gives to a product as ``precision``, is kept.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.default_matmul_precision(jax.default_matmul_precision.value or "highest"):
            return function(*args, **kwargs)

    return run
