"""Limited-memory BFGS for several independent objectives with a common known part of the curvature.

Each objective is ``V(x) + 1/2 sum_j p_j x_j^2`` with p known exactly: the pairs (step, change of the gradient) are kept
for V alone, so that they stay right when p changes along the path of priors. Steps are unit steps of the
model, clipped; each costs one hypergradient, none is spent on a line search.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

MEMORY = 12
LONGEST = 1.5  # of a step in one log penalty

Block = Float[np.ndarray, "members p"]


@dataclass
class QuasiNewton:
    """The model of the curvature of V at every member.

    Parameters
    ----------
    first
        Curvatures of V to begin with, before the first pair is known, all positive.
    """

    first: Block
    pairs: list[tuple[Block, Block]] = field(default_factory=list)

    def learn(self, step: Block, change: Block) -> None:
        """Remember how the gradient of V changed along a step."""
        self.pairs = [*self.pairs[1 - MEMORY :], (step, change)]

    def step(self, gradient: Block, known: Block) -> Block:
        """Minimizer of the model from here, each coordinate clipped.

        Parameters
        ----------
        gradient
            Of the whole objective.
        known
            The known curvatures p.
        """
        used = []
        q = gradient.copy()
        for s, y in ((s, y + known * s) for s, y in reversed(self.pairs)):
            sy = np.sum(s * y, axis=1, keepdims=True)
            sure = sy > 1e-8 * _norm(s) * _norm(y)  # else the objective is not convex along s
            inverse = np.where(sure, 1.0 / np.where(sure, sy, 1.0), 0.0)
            alpha = inverse * np.sum(s * q, axis=1, keepdims=True)
            q -= alpha * y
            used.append((s, y, inverse, alpha))
        r = q / (self._diagonal() + known)
        for s, y, inverse, alpha in reversed(used):
            r += s * (alpha - inverse * np.sum(y * r, axis=1, keepdims=True))
        return np.clip(-r, -LONGEST, LONGEST)

    def _diagonal(self) -> Block:
        """Curvature of V along its last step where that is positive, within reason."""
        if not self.pairs:
            return self.first
        s, y = self.pairs[-1]
        along = np.sum(s * y, axis=1, keepdims=True) / np.maximum(np.sum(s * s, axis=1, keepdims=True), 1e-300)
        return np.clip(along, 0.03 * self.first, 3.0 * self.first)


def _norm(x: Block) -> Block:
    return np.linalg.norm(x, axis=1, keepdims=True)
