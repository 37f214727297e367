"""Central finite differences with halved steps, extrapolated, with their error, their order and their noise.

    E(h) = (f(h) - f(-h)) / (2 h) = f'(0) + c h^2 + O(h^4) + noise / h,      R(h) = (4 E(h) - E(2h)) / 3.

E is of order two: ``|E(4h) - E(2h)| / |E(2h) - E(h)|`` is about four until noise takes over. R is of order four,
and its distance from the R before is its error, to which the noise of f divided by h is added.

References
----------
Richardson (1911), Phil. Trans. A 210. More and Wild (2011), SIAM J. Sci. Comput. 33: noise by differences of
third order over points that are a few units of rounding apart.
"""

from collections.abc import Callable
from math import sqrt
from typing import NamedTuple

import numpy as np

Values = np.ndarray  # of any shape: many functions of one variable at once
Function = Callable[[float], Values]

FIRST_STEP = 0.125
FEWEST_LEVELS, MOST_LEVELS = 4, 18
VISIBLE = 4.0  # differences so many times their noise tell the order
NOISE_POINTS = 8
THIRD_DIFFERENCE = sqrt(20.0)  # norm of (1, -3, 3, -1): its factor on independent noise


class Differences(NamedTuple):
    """Derivatives at zero; every field of the shape of the values.

    ``error`` bounds what steps and noise make of ``slope`` but for bad luck, ``order`` is NaN where noise hides it
    or nothing is to be seen, as on polynomials of degree two, ``noise`` is the uncertainty of the values.
    """

    slope: Values
    error: Values
    order: Values
    noise: Values


def differentiate(f: Function, noise: Values, enough: Callable[[Values], Values], eps: float) -> Differences:
    """Derivatives of ``f`` at zero, by halving the step until the errors are ``enough(slope)`` or noise takes over.

    Parameters
    ----------
    f
        Values at ``t``, in float64 whatever they were computed in.
    noise
        Uncertainty of the values.
    enough
        The error that suffices for a slope.
    eps
        Of the dtype in which ``t`` enters: its rounding is noise, too.

    Examples
    --------
    >>> found = differentiate(lambda t: np.exp(np.array([t])), np.array([1e-16]), lambda slope: 1e-9 + 0 * slope, 1e-16)
    >>> print(f"{found.slope[0]:.6f} {found.order[0]:.2f}")
    1.000000 2.00
    """
    levels: list[Values] = []
    extrapolated: list[Values] = []
    slope, error, order = (np.full(np.shape(noise), value) for value in (np.nan, np.inf, np.nan))
    for level in range(MOST_LEVELS):
        h = FIRST_STEP / 2**level
        levels.append((f(h) - f(-h)) / (2 * h))
        if level == 0:
            continue
        rounding = 2 * (noise + eps * np.abs(levels[-1])) / h
        extrapolated.append((4 * levels[-1] - levels[-2]) / 3)
        if level >= 2:
            order = _order(levels, rounding, order)
        if level < FEWEST_LEVELS - 1:
            continue
        before, last = (np.abs(extrapolated[-i] - extrapolated[-i - 1]) for i in (2, 1))
        found = np.maximum(last, before / 16) + rounding  # the sixteenth: two may agree by chance
        better = found < error
        slope, error = np.where(better, extrapolated[-1], slope), np.where(better, found, error)
        if np.all((error <= enough(slope)) | (rounding > error)):
            break
    return Differences(slope, error, order, noise)


def rounding_noise(f: Function, eps: float) -> Values:
    """Uncertainty of ``f`` near zero, measured at points so close that but for rounding it is linear there."""
    values = np.stack([f(4 * eps * k) for k in range(NOISE_POINTS)])
    third = np.diff(values, 3, axis=0) / THIRD_DIFFERENCE
    return np.sqrt(np.mean(third**2, axis=0)) + eps * np.abs(values[0])


def _order(levels: list[Values], rounding: Values, before: Values) -> Values:
    """``log2(|E(4h) - E(2h)| / |E(2h) - E(h)|)`` where noise does not hide it, else the order found before."""
    coarse, fine = np.abs(levels[-3] - levels[-2]), np.abs(levels[-2] - levels[-1])
    visible = (fine > VISIBLE * rounding) & (coarse > VISIBLE * rounding)
    ratio = np.where(visible, coarse, 1.0) / np.where(visible, fine, 1.0)
    return np.where(visible, np.log2(ratio), before)
