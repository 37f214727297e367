"""How linear systems with ``A`` are solved: by a dense inverse, or by products until an inverse costs less."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bilevel import tree
from bilevel.automatic.kernels import Inverse, apply, invert, invert_again, krylov
from bilevel.engine import Engine
from bilevel.lagrangian import Instance
from bilevel.solvers.base import HELD
from bilevel.solvers.newton import Descent, Solution
from bilevel.status import Status

BLOCK = 12  # products in a block that cost as much as one by itself
DENSE_MOST = 3000  # unknowns, by the memory of a dense matrix
CONTRACTION_STEPS = 40  # of a map before GMRES takes over
FINEST = 3e-4  # relative residual asked of a solve in single precision
NAME = "the automatic method"
WITH_INVERSE = f"{NAME}, with a factorization of A"


@dataclass
class Dense:
    """A dense inverse, made again where a Newton step with it was of little use; for compiled programs."""

    engine: Engine
    at: Instance
    price: Any = None  # of an inverse: there is one anyway
    finest = 0.0
    name = WITH_INVERSE

    def begin(self, w: Array) -> tuple[Array, Inverse]:
        """No inverse yet."""
        inverse, known = jax.eval_shape(lambda: invert(self.at, w))
        return jnp.zeros(inverse.shape, inverse.dtype), jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), known)

    def direction(self, d: Descent, sign: Any, rtol: Any, settle: Any, left: Any) -> tuple[Array, Solution, Any]:
        """Newton's step from where a descent stands."""
        memory, spent = self.refresh(d.memory, d.point.w, of_little_use(d) | ~jnp.isfinite(d.norm_before))
        x, s = self.solve(memory, d.point.w, d.point.F, sign, rtol, settle, left)
        return x, s._replace(matvecs=spent + 0 * s.matvecs), memory

    def refresh(self, memory: Any, w: Array, wanted: Any) -> tuple[Any, Any]:
        """The inverse at ``w`` where it is wanted, and the products that took."""
        memory = self.engine.call(invert_again, self.at, w, *memory, wanted)
        return memory, jnp.where(jnp.any(wanted), w.shape[-1], 0)

    def solve(
        self, memory: Any, w: Array, b: Array, sign: Any, rtol: Any, settle: Any, left: Any, transposed: bool = False
    ) -> tuple[Array, Solution]:
        """``sign A^-1 b``, or with the transpose."""
        del rtol, settle, left
        inverse, known = memory
        x, s = self.engine.call(apply, self.at, w, inverse, b, sign, transposed)
        return x, s._replace(A=known.norm)

    def status(self, memory: Any) -> Any:
        """What is wrong with A."""
        return memory[1].status


def of_little_use(d: Descent) -> Any:
    """Whether the last step, if it was more than rounding, has left much of F."""
    more = d.length > tree.eps(d.point.w) ** 0.5 * d.size.w
    return ~d.trusted | (more & (d.size.residual > HELD * d.norm_before))


@dataclass
class Products:
    """Krylov methods, in single precision where that is enough; on the host an inverse once that costs less."""

    engine: Engine
    at: Instance
    single: Instance | None = None
    contraction: bool = False  # whether steps of the map may be tried
    price: float | None = None  # of an inverse, in products; None: there is none
    spent: float = 0.0  # products since the last one, those in single precision half
    inverse: Any = None
    known: Any = None
    name: str = NAME

    @property
    def finest(self) -> float:
        """The smallest relative residual of a solve."""
        return 0.0 if self.single is None else FINEST

    def begin(self, w: Array) -> Any:
        """There is no memory that would pass through a compiled loop."""
        del w
        return ()

    def direction(self, d: Descent, sign: Any, rtol: Any, settle: Any, left: Any) -> tuple[Array, Solution, Any]:
        """Newton's step from where a descent stands."""
        return *self.solve((), d.point.w, d.point.F, sign, rtol, settle, left), ()

    def refresh(self, memory: Any, w: Array, wanted: Any) -> tuple[Any, int]:
        """Nothing to do."""
        del w, wanted
        return memory, 0

    def solve(
        self, memory: Any, w: Array, b: Array, sign: Any, rtol: Any, settle: Any, left: Any, transposed: bool = False
    ) -> tuple[Array, Solution]:
        """``sign A^-1 b``, or with the transpose."""
        del memory
        n, xp = b.shape[-1], self.engine.xp
        made = self._invert(w, left)
        transposed = transposed and not self.at.problem.lower.symmetric
        if self.inverse is not None:
            self.spent += 2
            x, s = self.engine.call(apply, self.at, w, self.inverse, b, sign, transposed)
            return x, s._replace(A=self.known.norm, matvecs=made + 0 * s.matvecs)
        steps = xp.clip(xp.min(left) - made, 0, 10 * n + 100)
        while self.single is not None or self.contraction:
            wanted = 0.1 * rtol if self.contraction else rtol  # the error is that much larger than its residual
            x, s = self._krylov(w, b, sign, xp.maximum(wanted, self.finest), settle, steps, transposed)
            if np.all(s.status == Status.OK):
                return x, s._replace(matvecs=s.matvecs + made)
            made, steps = made + s.matvecs, xp.maximum(steps - xp.max(s.matvecs), 0)
            self.improve()
        x, s = self._krylov(w, b, sign, rtol, settle, steps, transposed)
        return x, s._replace(matvecs=s.matvecs + made)

    def _krylov(
        self, w: Array, b: Array, sign: Any, rtol: Any, settle: Any, steps: Any, transposed: bool
    ) -> tuple[Array, Solution]:
        at, single = (self.at, False) if self.single is None else (self.single, True)
        steps = min(steps, CONTRACTION_STEPS) if self.contraction else steps
        kernel = partial(krylov, transposed=transposed, single=single, contraction=self.contraction)
        x, s = self.engine.call(kernel, at, w, b, sign, rtol, settle, steps)
        if self.engine.eager:
            self.spent += np.max(s.matvecs) * (0.5 if single else 1.0)
        return x, s

    def _invert(self, w: Array, left: Any) -> int:
        """Make an inverse where one is due; the products it took."""
        n = w.shape[-1]
        if self.price is None or self.spent < self.price or 2 * n > np.min(left):
            return 0
        single = self.single is not None
        inverse, self.known = self.engine.call(invert, self.single if single else self.at, w, single)
        regular = np.all(self.known.regular)
        self.spent, self.inverse = 0.0, inverse if regular else None
        self.price, self.name = (self.price, WITH_INVERSE) if regular else (None, self.name)
        return n

    def status(self, memory: Any) -> int:
        """Solves tell by themselves."""
        del memory
        return 0

    def improve(self) -> bool:
        """Better solves from here on; False where there are none."""
        if self.inverse is not None:
            self.inverse = None
        elif self.contraction:
            self.contraction = False
        elif self.single is not None:
            self.single = None
        else:
            return False
        return True
