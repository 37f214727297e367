"""The trust table by hypertorch: 1000 steps of the map, then one of its solvers of the adjoint system."""

import hypergrad as hg
import torch
from trust_harness import run

STEPS = 1000


def by(method, products):
    """Hypergradient by ``method`` with at most so many products and its default tolerance."""

    def compute(fault):
        data, t, w0 = tuple(map(torch.tensor, fault.data)), torch.tensor(fault.t), torch.tensor(fault.w0)
        lam = torch.tensor(fault.lam, dtype=w0.dtype, requires_grad=True)
        update = mapping(fault, data)
        w = [w0]
        for _ in range(STEPS):
            w = [x.detach().requires_grad_() for x in w]
            w = update(w, [lam])
        grad = method(w, [lam], products, update, lambda w, _: 0.5 * ((w[0] - t) ** 2).sum(), set_grad=False)
        return grad[0].detach().numpy(), None

    return compute


def mapping(fault, data):
    """The map itself, or gradient descent with the step given, one over L by default."""

    def function(w, lam):
        return fault.function(torch, w[0], lam[0], data)

    if fault.kind == "fixed_point":
        return lambda w, lam: [function(w, lam)]
    step = 1 / fault.smoothness if fault.step is None else fault.step
    return hg.GradientDescent(function, step)


if __name__ == "__main__":
    run(
        {
            "minimization": {"CG, K=100": by(hg.CG, 100), "fixed_point, K=1000": by(hg.fixed_point, 1000)},
            "fixed_point": {
                "fixed_point, K=1000": by(hg.fixed_point, 1000),
                "CG_normaleq, K=100": by(hg.CG_normaleq, 100),
            },
        }
    )
