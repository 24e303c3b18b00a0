"""The measures, on cases small enough to count by hand, and against their definitions."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import point_mass

from minicnet import conditions, evaluation
from minicnet.conditions import CONDITIONS, depth
from minicnet.data.colours import RGB, colourise
from minicnet.data.digits import describe_digits, draw_digits
from minicnet.diffusion import NoiseSchedule
from minicnet.evaluation import (
    MEASURES,
    depth_error,
    edge_f1,
    frechet_distance,
    heldout_loss,
    label_accuracy,
    mask_iou,
    prompt_accuracy,
    train_classifier,
)

SIZE = 12
every_measure = pytest.mark.parametrize("name", list(MEASURES))


def box(top=2, left=3, height=4, width=5, value=1.0):
    """A map (1, 1, SIZE, SIZE) that is 0 outside of a box."""
    inside = torch.zeros(1, 1, SIZE, SIZE)
    inside[..., top : top + height, left : left + width] = value
    return inside


def column(at, rows=SIZE):
    """A map in which the top `rows` pixels of one column are 1."""
    return box(top=0, left=at, height=rows, width=1)


BLANK = box(height=0)
STEP = 2 * box(top=0, left=7, height=SIZE, width=SIZE) - 1  # an image whose edge is column 6
SQUARE = 2 * box() - 1  # an image whose mask is `box()`
PYRAMID = 2 * box(height=3, width=3) - 1  # its relief is eight pixels of 1/4 around one of 1/2


@pytest.fixture(scope="module")
def digits():
    """Digits in random inks on random papers (20, 3, 28, 28)."""
    paper, ink = torch.rand(2, 20, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    ink = (paper + 0.35 + 0.3 * ink) % 1
    return torch.lerp(2 * paper - 1, 2 * ink - 1, (draw_digits(20, seed=5)[0] + 1) / 2)


# All measures of conditions


@every_measure
def test_real_images_follow_their_own_maps_best(digits, name):
    for images in (digits, digits.mean(1, keepdim=True)):
        given = CONDITIONS[name](images)
        own, others = MEASURES[name](images, given), MEASURES[name](images, given.roll(1, 0))
        assert own == (0 if name in ("colour", "depth") else 1) or name == "scribble" and own > 0.98
        assert isinstance(own, float) and 0.03 < abs(own - others) < 1


@every_measure
def test_a_measure_is_the_mean_over_images_of_every_float_type(digits, name):
    images, given = digits.bfloat16(), CONDITIONS[name](digits.roll(1, 0)).bfloat16()
    each = [MEASURES[name](*one) for one in zip(images.split(1), given.split(1))]
    assert MEASURES[name](images, given) == pytest.approx(np.mean(each), rel=1e-5)
    assert MEASURES[name](images.double(), given.float()) == MEASURES[name](images, given)


@pytest.mark.parametrize("name, images, given, message", [
    *((name, BLANK, BLANK + 0.5, "must hold nothing but 0 and 1")
      for name in ("canny", "mask", "scribble")),
    *((name, *case) for name in MEASURES for case in [
        (BLANK, BLANK[..., 1:], r"need \w+ \(1, 1, 12, 12\), not \(1, 1, 12, 11\)"),
        (BLANK, BLANK.expand(1, 3, 12, 12), "not "),
        (BLANK, BLANK.expand(2, 1, 12, 12), "not "),
        (BLANK, BLANK.numpy(), "not ndarray"),
        *((BLANK, BLANK + value, "must (lie|hold)") for value in (-0.01, 1.01, np.nan, np.inf)),
        (BLANK + 2, BLANK, "images must"),
        (BLANK + np.nan, BLANK, "images must be finite"),
    ])])
@pytest.mark.parametrize("gpu", [False, True])
def test_what_cannot_be_compared_is_refused(monkeypatch, name, images, given, message, gpu):
    if gpu:  # where conditions do not check values
        monkeypatch.setattr(conditions, "_check_images", lambda images: None)
    with pytest.raises(ValueError, match=message):
        MEASURES[name](images, given)


# Each measure of a condition


@pytest.mark.parametrize("shift", [-3, -2, -1, 0, 1, 2, 3])
@pytest.mark.parametrize("measure, tolerance", [
    (functools.partial(edge_f1, tolerance=0), 0), (edge_f1, 1), (MEASURES["scribble"], 2),
])
def test_a_shifted_edge_counts_within_the_tolerance_and_not_beyond(shift, measure, tolerance):
    assert measure(STEP, column(6 + shift)) == (abs(shift) <= tolerance)


@pytest.mark.parametrize("images, edges, tolerance, f1", [
    (STEP, column(6, rows=6), 0, 2 / 3),  # half a line: precision 1/2, recall 1
    (STEP, column(6, rows=6), 1, 14 / 19),  # precision 7/12, recall 1
    (STEP, column(6) + column(10, rows=4), 0, 6 / 7),  # a missing line: precision 1, recall 12/16
    (STEP, column(6) + column(10, rows=4), 1, 6 / 7),
    (STEP, box(top=5, left=7, height=1, width=1), 1, 2 / 5),  # near three rows, two diagonally
    (BLANK, BLANK, 1, 1),
    (BLANK, column(6), 1, 0),
    (STEP, BLANK, 1, 0),
])
def test_edge_f1_is_the_harmonic_mean_of_precision_and_recall(images, edges, tolerance, f1):
    assert edge_f1(images, edges, tolerance) == pytest.approx(f1)


@pytest.mark.parametrize("brightness, given, error", [
    (0, box(), 20 / 144), (1, box(), 124 / 144), (0.75, BLANK + 0.25, 0.5), (0.25, BLANK + 0.25, 0),
])
def test_colour_error_is_the_mean_absolute_difference(brightness, given, error):
    images = torch.full((1, 1, SIZE, SIZE), 2.0 * brightness - 1)
    assert MEASURES["colour"](images, given) == pytest.approx(error)


@pytest.mark.parametrize("images, given, iou", [
    (SQUARE, box(height=2), 1 / 2),
    (SQUARE, box(height=6), 2 / 3),
    (SQUARE, box(top=3, left=4), 12 / 28),
    (SQUARE, box(top=7), 0),
    (-SQUARE, BLANK + 1, 20 / 144),
    (SQUARE, BLANK, 0),
    (BLANK, SQUARE > 0, 0),
    (BLANK, BLANK, 1),
])
def test_mask_iou_is_intersection_over_union(images, given, iou):
    assert mask_iou(images, given) == pytest.approx(iou)


@pytest.mark.parametrize("images, given, error", [
    (PYRAMID, BLANK, (8 / 4 + 1 / 2) / 9),
    (PYRAMID, box(height=3, width=3), (8 * 3 / 4 + 1 / 2) / 9),
    (PYRAMID, depth(PYRAMID) / 2, (8 / 8 + 1 / 4) / 9),
    (PYRAMID, depth(PYRAMID) + box(7, 3, 1, 3, value=0.5), 3 / 2 / 12),
    (BLANK, BLANK + 1, 1),
    (BLANK, BLANK, 0),
])
def test_depth_error_is_the_mean_difference_where_either_relief_is_not_0(images, given, error):
    assert depth_error(images, given) == pytest.approx(error)


# Prompts


def always(*labels):
    """A classifier that returns these labels, whatever the images show."""
    return lambda images: F.one_hot(torch.tensor(labels), 10).float()


def cross(ink, paper):
    """An image (1, 3, 28, 28) of a cross in the named colours."""
    coverage = torch.zeros(1, 28, 28)
    coverage[:, 4:24, 13:16] = coverage[:, 13:16, 8:20] = 1
    ink, paper = (2 * torch.tensor(RGB[name]).float().view(3, 1, 1) - 1 for name in (ink, paper))
    return torch.lerp(paper, ink, coverage)[None]


CROSSES = torch.cat([cross("red", "navy"), cross("red", "navy"), cross("pink", "teal")])


@pytest.mark.parametrize("prompts, accuracy", [
    (["a red seven on navy paper", "a cyan seven on navy paper", "A pink digit on teal paper"],
     {"ink": 2 / 3, "digit": 1, "paper": 1, "all": 2 / 3}),
    (["a navy digit on red paper", "a red digit on navy paper", ""],
     {"ink": 1 / 2, "paper": 1 / 2, "all": 1 / 2}),
    (["", "a digit", "one"], {"digit": 1, "all": 1}),
    (["a boot", "a horse", "a bag"], {"label": 1 / 3, "all": 1 / 3}),
    ([""] * 3, {}),
])
def test_an_attribute_counts_where_the_prompt_names_it(prompts, accuracy):
    assert prompt_accuracy(CROSSES, prompts, always(7, 7, 1)) == accuracy


def test_real_images_show_what_their_captions_name():
    images, labels = draw_digits(1000, seed=5)
    prompts = describe_digits(len(images), seed=5)[0]
    drawn = prompt_accuracy(images, prompts, always(*labels.tolist()))
    assert set(drawn) == {"digit", "stroke", "lean", "all"}
    assert min(drawn["stroke"], drawn["lean"]) > 0.97 and drawn["digit"] == 1
    coloured = prompt_accuracy(*colourise(images, labels, seed=1), always(*[0] * 1000))
    assert min(coloured["ink"], coloured["paper"]) > 0.97 and 0 < coloured["digit"] < 0.2


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_the_width_of_a_bar_is_measured_whatever_its_colours(width):
    bar = -torch.ones(1, 3, 64, 64)
    bar[..., 2:62, 30 : 30 + width] = 1
    expected = 2 * 60 * width / (2 * (60 + width))  # twice the area over the outline
    for images in (bar, -bar, bar.mT, bar[:, :1], 0.1 * bar + 0.5, bar * 0.99):
        assert evaluation.stroke_width(images).item() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("shear", [-1, -0.5, 0, 0.25, 1])
def test_the_slant_of_a_line_is_its_shear(shear):
    y, x = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(41.0) - 20, indexing="ij")
    line = ((2 - (x + shear * y).abs()).clamp(0, 1) * (y.abs() < 14)) * 2 - 1  # y points down
    assert evaluation.slant(line[None, None]).item() == pytest.approx(shear, abs=0.02)


def test_a_blank_image_has_no_stroke_and_does_not_lean():
    assert evaluation.stroke_width(BLANK).tolist() == evaluation.slant(BLANK).tolist() == [0]


# Frechet distance

PIXELS = SimpleNamespace(features=lambda images: images.flatten(1))  # features are the pixels


def gaussian(mean, cov, count=200, seed=0):
    """Images (count, 1, 1, D) whose pixels have exactly this mean and this covariance."""
    noise = np.random.default_rng(seed).normal(size=(count, len(mean)))
    noise -= noise.mean(0)
    white = noise @ np.linalg.inv(np.linalg.cholesky(np.cov(noise.T).reshape(len(mean), -1))).T
    return torch.tensor(mean + white @ np.linalg.cholesky(cov).T)[:, None, None]


A = np.array([[2, 1.2, 0], [1.2, 1, 0.1], [0, 0.1, 3]])
B = np.array([[1, -0.5, 0.3], [-0.5, 2, 0], [0.3, 0, 0.5]])
SHARED = np.sqrt(np.linalg.eigvals(A @ B)).sum()  # the trace of the root of A B


@pytest.mark.parametrize("mean, cov, other, distance", [
    ([0, 0], np.eye(2), np.eye(2), 0),
    ([3, 4], np.eye(2), np.eye(2), 25),  # only the mean differs: its squared distance
    ([0, 0], [[4, 0], [0, 9]], np.eye(2), 1 + 4),  # only the spread: squared differences of 2 and 3
    ([0, 0, 1], A, B, 1 + np.trace(A + B) - 2 * SHARED),  # the axes differ
])
@pytest.mark.parametrize("count", [200, 2500])
def test_the_frechet_distance_of_gaussians_is_that_of_its_closed_form(
        mean, cov, other, distance, count):
    images, others = gaussian(mean, cov, count, seed=1), gaussian([0 * x for x in mean], other, 90)
    assert frechet_distance(PIXELS, images, others) == pytest.approx(distance, abs=1e-6)
    assert frechet_distance(PIXELS, others, images) == pytest.approx(distance, abs=1e-6)


def test_the_frechet_distance_of_fewer_images_than_features_is_finite_and_not_negative():
    a, b = torch.rand(2, 10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert 0 < frechet_distance(PIXELS, a, b) < 64
    assert frechet_distance(PIXELS, a, a.flip(0)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("wrong, message", [
    (torch.zeros(1, 1, 1, 4), "needs 2 images or more, not 1"),
    (torch.tensor([0, np.nan]).expand(9, 1, 1, 2), "not finite"),
    (torch.tensor([0, np.inf]).expand(9, 1, 1, 2), "not finite"),
])
def test_features_that_would_crash_the_frechet_distance_are_refused(wrong, message):
    right = torch.rand(9, *wrong.shape[1:])
    for images, reference in ((wrong, right), (right, wrong)):
        with pytest.raises(ValueError, match=message):
            frechet_distance(PIXELS, images, reference)


# The classifier


def test_label_accuracy_is_the_fraction_of_recognised_labels_over_all_batches():
    shown, labels = torch.arange(2500) % 9, torch.arange(2500) % 9
    labels[[0, 999, 1000, 1999, 2499]] += 1
    accuracy = label_accuracy(lambda x: F.one_hot(x[:, 0], 10), shown[:, None], labels)
    assert accuracy == pytest.approx(1 - 5 / 2500)


def test_the_classifier_recognises_new_digits_and_tells_them_from_noise():
    (seen, images), (known, labels) = (part.split(500) for part in draw_digits(1000, seed=5))
    classifier = train_classifier(seen, known, steps=80, batch_size=48)
    assert label_accuracy(classifier, images, labels) > 0.85
    near = frechet_distance(classifier, seen, images)
    assert near < 0.3 * frechet_distance(classifier, F.avg_pool2d(seen, 5, 1, 2), images)
    assert near < 0.1 * frechet_distance(classifier, torch.rand(500, 1, 28, 28) * 2 - 1, images)


@pytest.mark.parametrize("measure", [
    lambda x: label_accuracy(lambda images: images, x, torch.zeros(3)),
    lambda x: prompt_accuracy(x, ["red"] * 3, always(0, 0, 0))])
def test_images_that_are_not_finite_get_no_label_and_follow_no_prompt(measure):
    with pytest.raises(ValueError, match="not finite|must be finite"):
        measure(CROSSES + np.nan)


def test_the_classifier_takes_colours_any_width_and_as_many_labels_as_there_are():
    images, labels = torch.rand(20, 3, 32, 32) * 2 - 1, torch.arange(20) % 4
    classifier = train_classifier(images, labels, steps=2, batch_size=4, width=8)
    assert classifier.features(images).shape == (20, 32) and classifier(images).shape == (20, 4)
    torch.testing.assert_close(classifier(images[:3]), classifier(images)[:3])  # no statistics
    assert not any(p.requires_grad for p in classifier.parameters())


# Held-out loss

SCHEDULE = NoiseSchedule.cosine(1000)
IMAGES = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_heldout_loss_is_the_mean_squared_error_in_v_over_evenly_spread_times():
    errors, exact = torch.arange(30.0).view(-1, 1, 1, 1), point_mass(SCHEDULE.alpha_bar, IMAGES)

    def knows_the_images(x_t, t):
        """Predict eps, but so that v for image i is wrong by i."""
        eps = exact(x_t, t)
        assert t[0] == 0 and t[-1] == 999 and set(t.diff().tolist()) <= {34, 35}
        assert eps.mean().abs() < 0.15 and abs(eps.std() - 1) < 0.1
        assert (eps[0] - eps[1]).abs().max() > 0.1 and not torch.is_grad_enabled()
        return eps + SCHEDULE.alpha_bar[t].view(-1, 1, 1, 1).sqrt() * errors

    loss = heldout_loss(knows_the_images, SCHEDULE, IMAGES)
    assert loss == pytest.approx(errors.square().mean().item(), rel=1e-3)


# Seeds


@pytest.mark.parametrize("compute", [
    functools.partial(heldout_loss, lambda x_t, t: x_t, SCHEDULE, IMAGES),
    lambda seed: train_classifier(-CROSSES, torch.arange(3), 3, seed=seed).head.weight.sum()])
def test_loss_and_classifier_depend_on_their_seed_and_on_no_other_random_numbers(compute):
    stream, first = torch.get_rng_state(), compute(seed=0)
    assert compute(seed=1) != first and torch.equal(torch.get_rng_state(), stream)
    torch.manual_seed(77)
    assert compute(seed=0) == first
