"""What the lab measures of an arm: a list of numbers, one for each image or group of images.

A measure takes a `Drawn` (see lab.py): the arm's networks, what it was given, and the images that
it drew, which are drawn only when a measure asks for them. It returns None where it makes no sense.
Claims add measures of their own.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from minicnet.conditions import canny, colour
from minicnet.controlnet import controlled
from minicnet.diffusion import diffusion_loss
from minicnet.evaluation import (
    colour_error,
    edge_f1,
    frechet_distance,
    predict_labels,
    prompt_accuracy,
)
from minicnet.sampling import seeded_noise

GROUPS = 16  # of the images, for measures of a set of images


class Measure(NamedTuple):
    """title: in a table. less: whether less is better. compute(drawn) -> a list of floats, or
    None."""

    title: str
    less: bool
    compute: Callable


MEASURES = {}


def as_measure(title, less=False):
    """Decorate a function, which becomes the measure of its name."""
    def register(compute):
        MEASURES[compute.__name__] = Measure(title, less, compute)
        return compute

    return register


def as_measures(titles, less=()):
    """Decorate a function that returns {name: list}, which becomes the measures of these names."""
    def register(compute):
        for key, title in titles.items():
            MEASURES[key] = Measure(title, key in less, functools.partial(pick, compute, key))
        return compute

    return register


def pick(compute, key, drawn):
    """Return one of several measures, which are computed together once."""
    if compute not in drawn.memo:
        drawn.memo[compute] = compute(drawn)
    return drawn.memo[compute].get(key)


def per_image(measure, *tensors, **settings):
    """Apply a measure of a set to each image alone. tensors: (N, ...) each."""
    return [measure(*(x[i : i + 1] for x in tensors), **settings) for i in range(len(tensors[0]))]


def jackknife(statistic, count):
    """Return pseudo-values of a statistic of a whole set (Efron and Stein 1981), GROUPS of them.

    statistic(kept): the number for the items of a boolean mask (count,). The pseudo-values' mean is
    the statistic without its bias of order 1 / count, so it may lie a little below a bound of 0.
    """
    groups = torch.arange(count) % min(GROUPS, count // 2)
    G = int(groups.max()) + 1
    whole = statistic(groups >= 0)
    return [G * whole - (G - 1) * statistic(groups != g) for g in range(G)]


# -- Of the images -----------------------------------------------------------------------------


@as_measure("strict edge-F1")
def strict_f1(drawn):
    """Edge-F1 without any tolerance, against the edges of the image behind the condition."""
    return per_image(edge_f1, drawn.images, canny(drawn.real), tolerance=0)


@as_measure("colour error", less=True)
def colours_missed(drawn):
    return per_image(colour_error, drawn.images, colour(drawn.real))


@as_measure("images that show the label")
def label(drawn):
    """Whether the classifier recognises the label of the image behind the condition."""
    return (predict_labels(drawn.classifier, drawn.images) == drawn.labels).float().tolist()


@as_measure("images that show all of the caption")
def words(drawn):
    return [prompt_accuracy(image[None], [text], drawn.classifier)["all"]
            for image, text in zip(drawn.images, drawn.captions)]


@as_measure("Frechet distance", less=True)
def frechet(drawn):
    """The distance from real images, none of which is behind a condition, as pseudo-values."""
    images, reference = (torch.cat([drawn.classifier.features(part) for part in x.split(500)])
                         for x in (drawn.images, drawn.reference))

    def distance(kept):
        return frechet_distance(Features, images[kept], reference)

    return jackknife(distance, len(images))


class Features:
    """Stands where `frechet_distance` wants a classifier, for features computed before."""

    @staticmethod
    def features(x):
        return x


# -- Of the networks ---------------------------------------------------------------------------


def losses(drawn, controls):
    """The loss at fixed timesteps and noise, in groups of test images that span all timesteps."""
    schedule, found = drawn.unet.schedule, []
    t = torch.linspace(0, len(schedule) - 1, len(drawn.real)).long().to(drawn.real.device)
    eps = seeded_noise(drawn.real.shape, 0, drawn.real.device)
    for g in range(min(GROUPS, len(t))):
        part = slice(g, None, GROUPS)
        some = [control._replace(condition=control.condition[part]) for control in controls]
        eps_model = controlled(drawn.unet, drawn.prompt[part], some)
        with torch.no_grad():
            loss = diffusion_loss(eps_model, schedule, drawn.real[part], t[part], eps[part])
        found.append(loss.item())
    return found


@as_measure("held-out loss", less=True)
def loss(drawn):
    return losses(drawn, drawn.controls)


@as_measure("held-out loss without the condition", less=True)
def loss_without(drawn):
    """The loss when the condition is switched off: strength 0, or an empty map for a network that
    reads the condition itself. For a locked base it is the base's own."""
    return losses(drawn, [control._replace(condition=control.condition * 0, scale=0.0)
                          for control in drawn.controls])


@as_measure("drift of the copy", less=True)
def drift(drawn):
    """How far training moved the copied encoder, in units of the base encoder's norm."""
    if not drawn.controls or not hasattr(drawn.controls[0].net, "encoder"):
        return None
    copied = drawn.controls[0].net.encoder.state_dict()
    base = {key: weight for key, weight in drawn.lab.unet.encoder.state_dict().items()
            if key in copied}
    moved = sum((copied[key] - weight).square().sum().item() for key, weight in base.items())
    return [math.sqrt(moved / sum(weight.square().sum().item() for weight in base.values()))]


@as_measure("trained parameters, millions", less=True)
def parameters(drawn):
    sizes = [net.trained_parameters for net in drawn.trained if hasattr(net, "trained_parameters")]
    return [sum(sizes) / 1e6] if sizes else None
