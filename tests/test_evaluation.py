"""How like real images are, and held-out loss, against numbers worked out by hand.

The measures of conditions and of prompts have files of their own: test_edge_f1.py, test_measures.py, test_adherence.py.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minicnet.diffusion import NoiseSchedule
from minicnet.digits import draw_digits
from minicnet.evaluation import frechet_distance, heldout_loss, label_accuracy, train_classifier

PIXELS = SimpleNamespace(features=lambda images: images.flatten(1))  # a classifier whose features are the pixels


def gaussian(mean, cov, count=200, seed=0):
    """Images (count, 1, 1, D) in float64 whose pixels have exactly this mean and this covariance."""
    noise = np.random.default_rng(seed).normal(size=(count, len(mean)))
    noise -= noise.mean(0)
    noise = noise @ np.linalg.inv(np.linalg.cholesky(np.cov(noise.T).reshape(len(mean), -1))).T  # now white
    points = np.asarray(mean) + noise @ np.linalg.cholesky(np.asarray(cov, dtype=float)).T
    return torch.tensor(points)[:, None, None]


def root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(values) @ vectors.T


# Frechet distance


def test_the_same_images_in_any_order_have_no_distance():
    images = torch.rand(300, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(PIXELS, images, images.flip(0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("mean, cov, distance", [
    ([0, 0], [[1, 0], [0, 1]], 0),
    ([3, 4], [[1, 0], [0, 1]], 25),  # only the mean is another: its squared distance
    ([0, 0], [[4, 0], [0, 9]], 1 + 4),  # only the spreads: the squared differences of 2 and 3 from 1
    ([1, 0], [[0.25, 0], [0, 1]], 1 + 0.25),
])
def test_distance_from_the_standard_gaussian_by_hand(mean, cov, distance):
    standard = gaussian([0, 0], [[1, 0], [0, 1]])
    assert frechet_distance(PIXELS, gaussian(mean, cov, seed=1), standard) == pytest.approx(distance, abs=1e-6)


def test_distance_of_gaussians_that_are_correlated_in_different_ways():
    a, b = np.array([[2, 1.2, 0], [1.2, 1, 0.1], [0, 0.1, 3]]), np.array([[1, -0.5, 0.3], [-0.5, 2, 0], [0.3, 0, 0.5]])
    expected = 1 + np.trace(a + b - 2 * root(root(a) @ b @ root(a)))
    found = frechet_distance(PIXELS, gaussian([0, 0, 1], a), gaussian([0, 0, 0], b, count=90, seed=1))
    assert found == pytest.approx(expected, abs=1e-6)


def test_distance_is_symmetric_and_grows_with_the_shift():
    images = torch.rand(300, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    other = images.square()
    assert frechet_distance(PIXELS, images, other) == pytest.approx(frechet_distance(PIXELS, other, images), abs=1e-6)
    distances = [frechet_distance(PIXELS, images + shift, images) for shift in (0, 0.1, 0.2, 0.5)]
    assert distances == pytest.approx([0, 0.04, 0.16, 1], abs=1e-4)


def test_distance_of_more_images_than_are_looked_at_at_once():
    a, b = gaussian([0, 0], [[1, 0], [0, 1]], count=2500), gaussian([2, 1], [[1, 0], [0, 1]], count=1200, seed=1)
    assert frechet_distance(PIXELS, a, b) == pytest.approx(5, abs=1e-6)


def test_distance_is_finite_and_not_negative_where_there_are_fewer_images_than_features():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(10, 1, 8, 8, generator=generator), torch.rand(10, 1, 8, 8, generator=generator)
    assert 0 < frechet_distance(PIXELS, a, b) < 64
    assert frechet_distance(PIXELS, a, a) == pytest.approx(0, abs=1e-5)


# Label accuracy


def reader(images):
    """A "classifier" that reads the label from the first pixel."""
    return torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 10).float()


def test_label_accuracy_is_the_share_of_labels_read():
    images = torch.tensor([3.0, 5, 5, 0]).view(-1, 1, 1, 1)
    assert label_accuracy(reader, images, torch.tensor([3, 5, 1, 0])) == 0.75
    assert label_accuracy(reader, images, torch.tensor([3, 5, 5, 0])) == 1
    assert label_accuracy(reader, images, torch.tensor([0, 0, 0, 5])) == 0


def test_label_accuracy_of_more_images_than_are_looked_at_at_once():
    labels = torch.arange(2500) % 10
    wrong = labels.clone()
    wrong[[0, 999, 1000, 1999, 2499]] += 1
    assert label_accuracy(reader, labels.float().view(-1, 1, 1, 1), wrong % 10) == pytest.approx(1 - 5 / 2500)


# Held-out loss

SCHEDULE = NoiseSchedule.cosine(1000)
IMAGES = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def true_noise(x_t, t):
    """The eps in x_t, from knowing the images: x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps, solved for eps."""
    alpha_bar = SCHEDULE.alpha_bar.double()[t].view(-1, 1, 1, 1)
    return ((x_t - alpha_bar.sqrt() * IMAGES) / (1 - alpha_bar).sqrt()).float()


@pytest.mark.parametrize("error", [0, 0.1, 0.5, -2])
def test_heldout_loss_is_the_mean_squared_error_of_the_guess(error):
    loss = heldout_loss(lambda x_t, t: true_noise(x_t, t) + error, SCHEDULE, IMAGES)
    assert loss == pytest.approx(error**2, abs=1e-4)


def test_each_image_counts_the_same():
    errors = torch.arange(30.0).view(-1, 1, 1, 1)
    loss = heldout_loss(lambda x_t, t: true_noise(x_t, t) + errors, SCHEDULE, IMAGES)
    assert loss == pytest.approx(errors.square().mean().item(), rel=1e-4)


def test_times_are_spread_evenly_and_noise_is_normal():
    seen = []
    heldout_loss(lambda x_t, t: seen.append((t, true_noise(x_t, t))) or x_t, SCHEDULE, IMAGES)
    t, eps = seen[0]
    assert len(seen) == 1 and t.dtype == torch.int64
    assert t[0] == 0 and t[-1] == 999 and set(t.diff().tolist()) <= {34, 35}
    assert eps.mean().item() == pytest.approx(0, abs=0.15) and eps.std().item() == pytest.approx(1, abs=0.1)
    assert (eps[0] - eps[1]).abs().max() > 0.1


def test_heldout_loss_is_the_same_at_every_call_whatever_the_global_random_stream_does():
    def model(x_t, t):
        return 0.9 * x_t

    first = heldout_loss(model, SCHEDULE, IMAGES)
    torch.manual_seed(123)
    assert heldout_loss(model, SCHEDULE, IMAGES) == first
    assert heldout_loss(model, SCHEDULE, IMAGES, seed=1) != first


def test_heldout_loss_leaves_the_global_random_stream_alone_and_computes_no_gradient():
    weight, before = torch.ones(1, requires_grad=True), torch.get_rng_state()
    modes = []
    heldout_loss(lambda x_t, t: modes.append(torch.is_grad_enabled()) or weight * x_t, SCHEDULE, IMAGES)
    assert modes == [False] and torch.equal(torch.get_rng_state(), before)


# The classifier


@pytest.fixture(scope="module")
def digits():
    return draw_digits(1000, seed=5)


@pytest.fixture(scope="module")
def classifier(digits):
    images, labels = digits
    return train_classifier(images[:500], labels[:500], steps=80, batch_size=48)


def test_the_classifier_reads_digits_it_was_not_trained_on(digits, classifier):
    images, labels = digits
    assert label_accuracy(classifier, images[500:], labels[500:]) > 0.85
    assert label_accuracy(classifier, images[500:], labels[500:].roll(1)) < 0.3


def test_other_digits_are_near_and_noise_is_far(digits, classifier):
    images, _ = digits
    near = frechet_distance(classifier, images[:500], images[500:])
    blurred = torch.nn.functional.avg_pool2d(images[:500], 5, 1, 2)
    noise = torch.rand(500, 1, 28, 28) * 2 - 1
    assert near < 0.3 * frechet_distance(classifier, blurred, images[500:])
    assert near < 0.1 * frechet_distance(classifier, noise, images[500:])


def test_the_classifier_is_ready_to_measure_with(digits, classifier):
    images, _ = digits
    assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())
    assert classifier.features(images[:7]).shape == (7, 64)
    assert torch.equal(classifier(images[:7])[:3], classifier(images[:7].clone())[:3])
    torch.testing.assert_close(classifier(images[:3]), classifier(images[:7])[:3])  # no statistics of the batch


def test_the_classifier_depends_on_the_seed_alone_and_leaves_the_random_stream_alone(digits):
    def weights(seed):
        classifier = train_classifier(*digits, steps=3, batch_size=8, seed=seed)
        return torch.cat([p.flatten() for p in classifier.parameters()])

    stream = torch.get_rng_state()
    first = weights(0)
    assert torch.equal(torch.get_rng_state(), stream)
    torch.manual_seed(77)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)


def test_the_classifier_takes_colours_any_width_and_as_many_labels_as_there_are():
    images, labels = torch.rand(20, 3, 32, 32) * 2 - 1, torch.arange(20) % 4
    classifier = train_classifier(images, labels, steps=2, batch_size=4, width=8)
    assert classifier.features(images).shape == (20, 32)
    logits = classifier(images)
    assert logits.shape == (20, 4) and all(math.isfinite(x) for x in logits.flatten().tolist())
