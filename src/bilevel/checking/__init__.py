"""What the check of a hypergradient is made of: finite differences, the derivatives of a problem, the verdicts."""
