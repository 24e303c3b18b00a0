"""Muon: Jordan et al. 2024, kellerjordan.github.io/posts/muon. The optimizer of the weight matrices."""

import torch


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: the update of each weight matrix has singular values near 1, whatever its gradient's.

    A convolution's weight (out, in, k, k) is the matrix (out, in k k). Matrices of one shape are updated together.
    """

    def __init__(self, parameters, lr, momentum=0.9):
        super().__init__(parameters, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            alike = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.flatten(1).shape, []).append(parameter)
            for (rows, columns), parameters in alike.items():
                gradients = torch.stack([parameter.grad.flatten(1) for parameter in parameters])
                for parameter in parameters:
                    self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momenta = torch.stack([self.state[parameter]["momentum"].flatten(1) for parameter in parameters])
                momenta.lerp_(gradients, 1 - group["momentum"])
                updates = orthogonalised(gradients.lerp(momenta, group["momentum"]))  # Nesterov's look ahead
                for parameter, momentum, update in zip(parameters, momenta, updates):
                    self.state[parameter]["momentum"].copy_(momentum.view_as(parameter))
                    parameter.sub_(update.view_as(parameter), alpha=group["lr"] * max(1, rows / columns) ** 0.5)


def orthogonalised(matrices, iterations=5):
    """About U V^T of each matrix U S V^T: Newton-Schulz iterations bring singular values of 0.002 .. 1 to 0.68 .. 1.2.

    matrices: (N, rows, columns). Each iteration is the odd polynomial a X + b (X X^T) X + c (X X^T)^2 X.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    X = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if tall := X.shape[1] > X.shape[2]:  # the smaller of X X^T and X^T X is cheaper
        X = X.mT
    for _ in range(iterations):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X.mT if tall else X
