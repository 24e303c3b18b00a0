"""Muon against singular value decomposition, and against Nesterov's momentum in closed form."""

import pytest
import torch
from torch import nn

from minicnet.muon import Muon, orthogonalise


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Singular values of a hundredth of the largest count as much as the largest.
UNEVEN = random(12, 8) @ torch.diag(torch.tensor([1, 1, 0.5, 0.3, 0.1, 0.05, 0.02, 0.01]))


@pytest.mark.parametrize("matrix", [random(8, 8), random(32, 8), random(8, 32), random(1, 9),
                                    random(9, 1), random(48, 432), UNEVEN])
def test_singular_values_come_near_1_and_singular_vectors_stay(matrix):
    U, _, Vt = torch.linalg.svd(matrix, full_matrices=False)
    for size in (1e-4, 1, 1e4):  # of the gradient, which does not matter
        result = orthogonalise(size * matrix[None])[0]
        values = U.T @ result @ Vt.T  # diagonal if the vectors are the same
        assert 0.65 < values.diagonal().min() and values.diagonal().max() < 1.25
        torch.testing.assert_close(U * values.diagonal() @ Vt, result, rtol=0, atol=1e-3)
    assert torch.equal(orthogonalise(0 * matrix[None])[0], 0 * matrix)


def test_each_step_is_nesterovs_momentum_orthogonalised_for_each_matrix_alone():
    """In closed form, gradient k counts 0.2 x 0.8^(age + 1), and the last one 0.2 more."""
    shapes = [(6, 6), (4, 16), (16, 4), (12, 3, 2, 1), (16, 4), (4, 4, 2, 2)]
    parameters = [nn.Parameter(random(*shape, seed=i)) for i, shape in enumerate(shapes)]
    expected = [parameter.detach().clone() for parameter in parameters]
    optimizer = Muon(parameters, lr=0.1, momentum=0.8)
    for now in range(4):
        for i, parameter in enumerate(parameters):
            grads = [10**i * random(*shapes[i], seed=100 * step + i) for step in range(now + 1)]
            parameter.grad = grads[-1]
            mixed = 0.2 * grads[-1] + sum(0.2 * 0.8 ** (now - step + 1) * grad
                                          for step, grad in enumerate(grads))
            update = orthogonalise(mixed.flatten(1)[None]).view(shapes[i])
            expected[i] -= 0.1 * max(1, shapes[i][0] / update[0].numel()) ** 0.5 * update
        optimizer.step()
        for parameter, truth in zip(parameters, expected):
            torch.testing.assert_close(parameter.detach(), truth, rtol=1e-4, atol=1e-4)


def test_a_matrix_without_a_gradient_stays_as_it_is():
    first, second = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    first.grad = random(4, 4)
    Muon([first, second], lr=0.1).step()
    assert not torch.equal(first, torch.ones(4, 4)) and torch.equal(second, torch.ones(4, 4))
