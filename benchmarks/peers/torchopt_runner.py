"""Hypergradients by torchopt."""

import torch
import torchopt
from harness import run
from torch_losses import lower, minimize, tensors, upper
from torchopt.diff.implicit import custom_root
from torchopt.linear_solve import solve_cg, solve_inv

lower_gradient = torch.func.grad(lower)


def implicit_cg(inputs, steps, products):
    """Gradient descent, the implicit function theorem and CG."""
    return implicit(inputs, descent(inputs, steps), solve_cg(maxiter=products, rtol=0.0))


def implicit_neumann(inputs, steps, products):
    """Gradient descent, the implicit function theorem and the Neumann series, which adds one term to its maxiter."""
    return implicit(inputs, descent(inputs, steps), solve_inv(ns=True, maxiter=products - 1, alpha=float(inputs.step)))


def unrolled(inputs, steps):
    """Reverse mode through torchopt's differentiable SGD."""
    lam, w0, step, train, valid = tensors(inputs)

    def call():
        model = Weights(w0)
        optimizer = torchopt.MetaSGD(model, lr=step)
        for _ in range(steps):
            optimizer.step(lower(model.w, lam, *train))
        return torch.autograd.grad(upper(model.w, *valid), lam)[0].numpy(), None

    return call


def lbfgs(inputs, tolerance, adjoint_tolerance):
    """PyTorch's L-BFGS, the implicit function theorem and CG."""

    def solve(w0, lam, X, y):
        return minimize(w0, lam, X, y, tolerance)

    return implicit(inputs, solve, solve_cg(maxiter=1000, rtol=adjoint_tolerance))


def descent(inputs, steps):
    step = float(inputs.step)

    def solve(w0, lam, X, y):
        w = w0
        for _ in range(steps):
            w = w - step * lower_gradient(w, lam, X, y)
        return w

    return solve


def implicit(inputs, solve, linear_solve):
    lam, w0, _, train, valid = tensors(inputs)
    solution = custom_root(lower_gradient, argnums=1, solve=linear_solve)(solve)

    def call():
        w = solution(w0, lam, *train)
        return torch.autograd.grad(upper(w, *valid), lam)[0].numpy(), None

    return call


class Weights(torch.nn.Module):
    """A module that holds the lower-level variable."""

    def __init__(self, w0):
        super().__init__()
        self.w = torch.nn.Parameter(w0.clone())


if __name__ == "__main__":
    run({"custom_root CG": implicit_cg, "custom_root NS": implicit_neumann, "MetaSGD": unrolled, "L-BFGS": lbfgs})
