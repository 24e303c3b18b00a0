"""edge_f1 on cases small enough to count by hand, and against a definition written with plain loops."""

import numpy as np
import pytest
import torch

from minicnet.conditions import canny
from minicnet.evaluation import edge_f1

H, W = 12, 16


def step(at=8):
    """An image (1, 1, H, W), black on the left and white from column `at` on. Its edge is the whole column at - 1."""
    image = -torch.ones(1, 1, H, W)
    image[..., at:] = 1
    return image


def line(column, rows=H):
    """Edges (1, 1, H, W): the top `rows` pixels of one column."""
    edges = torch.zeros(1, 1, H, W)
    edges[..., :rows, column] = 1
    return edges


def blank():
    return torch.zeros(1, 1, H, W)


def random_images(B, C=1, seed=0):
    rough = torch.rand(B, C, H // 2, W // 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(rough, scale_factor=2, mode="bilinear")


@pytest.mark.parametrize("tolerance", [0, 1, 2])
def test_images_follow_their_own_edges_perfectly(tolerance):
    for C in (1, 3):
        images = torch.cat([random_images(50, C), blank().expand(1, C, H, W)])
        assert edge_f1(images, canny(images), tolerance) == 1.0


@pytest.mark.parametrize("shift", [-3, -2, -1, 0, 1, 2, 3])
@pytest.mark.parametrize("tolerance", [0, 1, 2])
def test_a_shifted_line_counts_within_the_tolerance_and_not_beyond(shift, tolerance):
    assert edge_f1(step(8), line(7 + shift), tolerance) == (1.0 if abs(shift) <= tolerance else 0.0)


def test_one_pixel_of_tolerance_is_the_default():
    assert edge_f1(step(8), line(8)) == 1.0
    assert edge_f1(step(8), line(9)) == 0.0


def test_half_a_line_costs_precision():
    assert edge_f1(step(8), line(7, rows=6), tolerance=0) == pytest.approx(2 / 3)  # precision 1/2, recall 1
    assert edge_f1(step(8), line(7, rows=6), tolerance=1) == pytest.approx(14 / 19)  # precision 7/12, recall 1


def test_a_missing_line_costs_recall():
    edges = line(7) + line(12, rows=4)
    assert edge_f1(step(8), edges, tolerance=0) == pytest.approx(6 / 7)  # precision 1, recall 12/16
    assert edge_f1(step(8), edges, tolerance=1) == pytest.approx(6 / 7)


def test_a_diagonal_step_is_as_near_as_a_straight_one():
    edges = blank()
    edges[..., 5, 8] = 1  # near rows 4, 5 and 6 of column 7
    assert edge_f1(step(8), edges, tolerance=1) == pytest.approx(2 * (3 / 12) / (3 / 12 + 1))


def test_two_empty_maps_agree_and_one_empty_map_does_not():
    assert edge_f1(blank(), blank()) == 1.0
    assert edge_f1(step(8), blank()) == 0.0
    assert edge_f1(blank(), line(7)) == 0.0


def test_every_image_weighs_the_same_however_many_edges_it_has():
    images = torch.cat([step(8), step(8), blank(), blank()])
    edges = torch.cat([line(7), line(7, rows=1), blank(), line(3, rows=1)])
    assert edge_f1(images, edges, tolerance=0) == pytest.approx((1 + 2 / 13 + 1 + 0) / 4)


@pytest.mark.parametrize("tolerance", [0, 1, 2])
def test_edge_f1_is_what_its_definition_says(tolerance):
    images = random_images(6)
    given = (torch.rand(6, 1, H, W, generator=torch.Generator().manual_seed(1)) < 0.04).float()
    scores = []
    for a, b in zip(canny(images)[:, 0].numpy(), given[:, 0].numpy(), strict=True):
        found, asked = np.argwhere(a), np.argwhere(b)
        distance = np.abs(found[:, None] - asked[None]).max(-1)  # Chebyshev
        precision, recall = (distance.min(1) <= tolerance).mean(), (distance.min(0) <= tolerance).mean()
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0)
    assert 0 < np.mean(scores) < 1
    assert edge_f1(images, given, tolerance) == pytest.approx(np.mean(scores))
    assert edge_f1(images, given.bool(), tolerance) == edge_f1(images, given, tolerance)
