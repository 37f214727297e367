"""The two levels in PyTorch, for the libraries on it."""

import torch
from torch.nn.functional import logsigmoid

SMALL = 1_000_000  # numbers in the data matrix: below, PyTorch is faster on one thread


def tensors(inputs):
    """Hyperparameters, start, step and the data of both levels."""
    if inputs.X.size < SMALL:
        torch.set_num_threads(1)
    lam = torch.tensor(inputs.lam, requires_grad=True)
    train, valid = (
        (torch.tensor(X), torch.tensor(y)) for X, y in ((inputs.X, inputs.y), (inputs.X_valid, inputs.y_valid))
    )
    return lam, torch.tensor(inputs.w0), float(inputs.step), train, valid


def lower(w, lam, X, y):
    return upper(w, X, y) + 0.5 * (lam * w**2).sum()


def upper(w, X, y):
    return -logsigmoid(y * (X @ w)).mean()


def minimize(w0, lam, X, y, tolerance, history=10):
    """Minimizer of the lower level by PyTorch's L-BFGS."""
    w = w0.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [w], max_iter=1000, tolerance_grad=tolerance, tolerance_change=0.0, history_size=history,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = lower(w, lam, X, y)
        loss.backward(inputs=[w])
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return w.detach()
