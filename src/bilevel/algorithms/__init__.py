"""Upper-level algorithms, one file each, behind one protocol.

``algorithm.init(lam0, w0) -> state`` and ``algorithm.update(state, problem, lower_data, upper_data) -> state, info``.
"""

from bilevel.algorithms.hypergradient_descent import HypergradientDescent

__all__ = ["HypergradientDescent"]
