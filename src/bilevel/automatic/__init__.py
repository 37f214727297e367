"""The automatic method: solve, correct, and repeat until the error is below the tolerance.

The lower level is solved to about the tolerance, then the adjoint (:mod:`bilevel.automatic.start`). From there each
pass is one Newton step on ``F = 0``, ``d_w l = 0`` (:mod:`bilevel.lagrangian`) with loose linear solves. The change
that a pass makes to the hypergradient is the error of the pass before it, so that the loop knows when to stop
(:mod:`bilevel.automatic.passes`). Where a dense factorization pays, all solves are preconditioned by it
(:mod:`bilevel.automatic.method`).
"""
