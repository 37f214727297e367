"""Accuracy in, hypergradient out: the method that chooses solvers and work by itself."""
