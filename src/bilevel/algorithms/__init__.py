"""Upper-level algorithms, one file each, behind one protocol.

``algorithm.init(lam0, w0) -> state`` and ``algorithm.update(state, problem, lower_data, upper_data) -> state, info``.
Those with ``stochastic = True`` take a random key, ``algorithm.init(lam0, w0, key)``, and tell ``info.samples``.
"""

from bilevel.algorithms.bsgm import BSGM, LinearCounts, SqrtCounts
from bilevel.algorithms.hypergradient_descent import HypergradientDescent

__all__ = ["BSGM", "HypergradientDescent", "LinearCounts", "SqrtCounts"]
