"""Hypergradients by hypertorch, whose checkout is on the path."""

import hypergrad as hg
from harness import run
from torch_losses import lower, minimize, tensors, upper


def implicit(method):
    """Gradient descent, then so many steps of one of hypertorch's solvers of the adjoint system."""

    def build(inputs, steps, products):
        lam, w0, _, outer, descent = problem(inputs)

        def call():
            w = path(descent, w0, lam, steps)[-1]
            return method(w, [lam], products, descent, outer, tol=0.0, set_grad=False)[0].numpy(), None

        return call

    return build


def reverse(inputs, steps):
    """Reverse mode that recomputes each step from the stored iterates."""
    lam, w0, _, outer, descent = problem(inputs)

    def call():
        history = path(descent, w0, lam, steps)
        return hg.reverse(history, [lam], [descent] * steps, outer, set_grad=False)[0].numpy(), None

    return call


def reverse_unroll(inputs, steps):
    """Reverse mode through the whole graph."""
    lam, w0, _, outer, descent = problem(inputs)

    def call():
        w = [w0.clone().requires_grad_()]
        for _ in range(steps):
            w = descent(w, [lam], create_graph=True)
        return hg.reverse_unroll(w, [lam], outer, set_grad=False)[0].numpy(), None

    return call


def heavy_ball(inputs, steps, stretch, momentum, products, tolerance):
    """Heavy ball with a multiple of the step, then CG."""
    lam, w0, train, outer, descent = problem(inputs)
    ball = hg.HeavyBall(inner(train), stretch * float(inputs.step), momentum)

    def call():
        state = [w0, w0]
        for _ in range(steps):
            state = leaves(ball(leaves(state), [lam], create_graph=False))
        return hg.CG(state[:1], [lam], products, descent, outer, tol=tolerance, set_grad=False)[0].numpy(), None

    return call


def lbfgs(inputs, tolerance, products, adjoint_tolerance):
    """PyTorch's L-BFGS, then CG."""
    lam, w0, train, outer, descent = problem(inputs)

    def call():
        w = [minimize(w0, lam.detach(), *train, tolerance)]
        return hg.CG(w, [lam], products, descent, outer, tol=adjoint_tolerance, set_grad=False)[0].numpy(), None

    return call


def problem(inputs):
    lam, w0, step, train, valid = tensors(inputs)
    return lam, w0, train, lambda w, _: upper(w[0], *valid), hg.GradientDescent(inner(train), step)


def inner(train):
    return lambda w, lam: lower(w[0], lam[0], *train)


def path(update, w0, lam, steps):
    """The iterates, without a graph."""
    history = [[w0]]
    for _ in range(steps):
        history.append(update(leaves(history[-1]), [lam], create_graph=False))
    return history


def leaves(tensors):
    return [t.detach().requires_grad_() for t in tensors]


if __name__ == "__main__":
    run(
        {
            "CG": implicit(hg.CG),
            "fixed_point": implicit(hg.fixed_point),
            "reverse": reverse,
            "reverse_unroll": reverse_unroll,
            "heavy ball": heavy_ball,
            "L-BFGS": lbfgs,
        }
    )
