"""Hypergradient methods ``method(problem, lam, w0, v0, lower_data, upper_data, key) -> Hypergradient``."""
