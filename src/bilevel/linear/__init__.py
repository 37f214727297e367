"""Linear solvers ``linear(A, b, x0) -> x, SolveInfo`` on pytrees, with exact counts and loud failures."""
