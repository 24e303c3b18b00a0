"""Muon against the singular value decomposition, and against its formula, written out for one matrix at a time."""

import io

import pytest
import torch
from torch import nn

from minicnet.muon import Muon, orthogonalised

SHAPES = [(8, 8), (32, 8), (8, 32), (1, 9), (9, 1), (48, 432)]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrix_of(*singular_values, rows=8, columns=12):
    """A matrix with these singular values, and its U and V^T."""
    U, _, Vt = torch.linalg.svd(random(rows, columns), full_matrices=False)
    S = torch.tensor(singular_values)
    return U * S @ Vt, U, Vt


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_1_and_singular_vectors_stay(shape):
    matrix = random(*shape)
    U, _, Vt = torch.linalg.svd(matrix, full_matrices=False)
    inside = U.T @ orthogonalised(matrix[None])[0] @ Vt.T  # diagonal if the vectors are the same
    assert 0.65 < inside.diagonal().min() and inside.diagonal().max() < 1.25
    torch.testing.assert_close(inside, torch.diag(inside.diagonal()), rtol=0, atol=1e-3)
    torch.testing.assert_close(U.T @ U @ inside @ Vt @ Vt.T, inside, rtol=0, atol=1e-3)
    torch.testing.assert_close(U @ inside @ Vt, orthogonalised(matrix[None])[0], rtol=0, atol=1e-3)  # and no others


def test_directions_of_a_hundredth_of_the_gradient_count_as_much_as_the_strongest():
    matrix, U, Vt = matrix_of(1.0, 1.0, 0.5, 0.3, 0.1, 0.05, 0.02, 0.01)
    values = (U.T @ orthogonalised(matrix[None])[0] @ Vt.T).diagonal()
    assert 0.65 < values.min() and values.max() < 1.25


def test_the_size_of_a_gradient_does_not_matter_unless_it_is_nothing():
    matrix = random(1, 8, 12)
    for size in (1e-4, 1e4):
        torch.testing.assert_close(orthogonalised(size * matrix), orthogonalised(matrix), rtol=1e-2, atol=1e-3)
    assert torch.equal(orthogonalised(torch.zeros(1, 8, 12)), torch.zeros(1, 8, 12))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stack_is_each_matrix_by_itself(shape):
    stack = torch.stack([random(*shape, seed=seed) * 10**seed for seed in range(3)])
    alone = torch.cat([orthogonalised(matrix[None]) for matrix in stack])
    torch.testing.assert_close(orthogonalised(stack), alone, rtol=1e-4, atol=1e-5)


def step_with(optimizer, parameters, seed):
    for i, parameter in enumerate(parameters):
        parameter.grad = random(*parameter.shape, seed=100 * seed + i)
    optimizer.step()


@pytest.mark.parametrize("shape, stretch", [((6, 6), 1), ((4, 16), 1), ((16, 4), 2), ((12, 3, 2, 1), 2**0.5)])
def test_each_step_is_nesterovs_momentum_orthogonalised(shape, stretch):
    parameter = nn.Parameter(random(*shape))
    expected, momentum = parameter.detach().flatten(1).clone(), 0
    optimizer = Muon([parameter], lr=0.1, momentum=0.8)
    for seed in range(4):
        step_with(optimizer, [parameter], seed)
        gradient = parameter.grad.flatten(1)
        momentum = 0.8 * momentum + 0.2 * gradient
        expected -= 0.1 * stretch * orthogonalised((0.8 * momentum + 0.2 * gradient)[None])[0]
        torch.testing.assert_close(parameter.detach().flatten(1), expected, rtol=1e-4, atol=1e-5)


def test_convolutions_are_matrices_and_alike_ones_share_nothing_but_their_arithmetic():
    shapes = [(8, 2, 3, 3), (8, 18), (8, 2, 3, 3), (4, 4), (8, 18)]
    together = [nn.Parameter(random(*shape, seed=i)) for i, shape in enumerate(shapes)]
    alone = [nn.Parameter(parameter.detach().clone()) for parameter in together]
    optimizer, optimizers = Muon(together, lr=0.1), [Muon([parameter], lr=0.1) for parameter in alone]
    for seed in range(3):
        step_with(optimizer, together, seed)
        for parameter, single in zip(alone, together):
            parameter.grad = single.grad.clone()
        for single in optimizers:
            single.step()
    for parameter, single in zip(together, alone):
        torch.testing.assert_close(parameter, single, rtol=1e-4, atol=1e-5)


def test_what_has_no_gradient_stays_as_it_is():
    first, second = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    optimizer = Muon([first, second], lr=0.1)
    first.grad = random(4, 4)
    optimizer.step()
    assert not torch.equal(first, torch.ones(4, 4)) and torch.equal(second, torch.ones(4, 4))


def test_a_state_that_was_saved_and_read_goes_on_like_one_that_was_not():
    first = nn.Parameter(random(8, 2, 3, 3))
    optimizer = Muon([first], lr=0.1)
    for seed in range(2):
        step_with(optimizer, [first], seed)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second = nn.Parameter(first.detach().clone())
    resumed = Muon([second], lr=0.7)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for seed in range(2, 4):
        step_with(optimizer, [first], seed)
        step_with(resumed, [second], seed)
    assert torch.equal(first, second)
