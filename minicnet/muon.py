"""Muon, an optimizer of weight matrices, which needs fewer steps than AdamW on these networks.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon
"""

import torch


class Muon(torch.optim.Optimizer):
    """Move each weight matrix along the orthogonal matrix that is nearest to its momentum.

    The singular values of that matrix are near 1, whatever the gradient's size, so all directions
    of a matrix learn equally fast. A convolution's weight (out, in, k, k) counts as the matrix
    (out, in k k), and a matrix with more rows than columns gets a step larger by the root of their
    ratio, as its outputs would change too little otherwise. lr: the step size, usually 0.02.
    """

    def __init__(self, parameters, lr, momentum=0.9):
        super().__init__(parameters, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            same_shape = {}  # one batched product for all matrices of a shape is faster
            for parameter in group["params"]:
                if parameter.grad is not None:
                    same_shape.setdefault(parameter.flatten(1).shape, []).append(parameter)
            for (rows, columns), parameters in same_shape.items():
                updates = [self._nesterov(p, group["momentum"]) for p in parameters]
                updates = orthogonalise(torch.stack(updates))  # (N, rows, columns)
                lr = group["lr"] * max(1, rows / columns) ** 0.5
                for parameter, update in zip(parameters, updates):
                    parameter.sub_(update.view_as(parameter), alpha=lr)

    def _nesterov(self, parameter, beta):
        """Average the gradient into the momentum, and return the two mixed, as a matrix."""
        gradient = parameter.grad
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - beta)
        return gradient.lerp(state["momentum"], beta).flatten(1)


def orthogonalise(matrices, iterations=5):
    """Return about U V^T for each matrix U S V^T, by Newton-Schulz iterations.

    matrices: (N, rows, columns). Each iteration applies the odd polynomial
    a X + b (X X^T) X + c (X X^T)^2 X, which brings singular values of 0.002 .. 1 to 0.68 .. 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    X = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = X.shape[1] > X.shape[2]
    if tall:  # the smaller of X X^T and X^T X is cheaper
        X = X.mT
    for _ in range(iterations):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X.mT if tall else X
