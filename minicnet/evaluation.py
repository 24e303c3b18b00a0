"""Measures: do generated images follow their condition, are they like real ones, is the noise guessed well?

A measure alone says little. Beside each stand its floor (the same without control) and its ceiling (real images).
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from minicnet.conditions import canny, colour, depth, dilate, mask
from minicnet.diffusion import diffusion_loss
from minicnet.muon import Muon

# -- Do images follow their condition? ---------------------------------------------------------------------------------
#
# Each measure takes images (B, C, H, W) in [-1, 1] and the maps that they were given, and compares these with the maps
# of the images. It returns the mean over the images, a float in [0, 1]. Real images with their own maps score the best
# exactly, without rounding (but for scribbles). Anything but such images and maps is a ValueError.


@torch.no_grad()
def edge_f1(images, edges, tolerance=1):
    """How well images follow the edges (B, 1, H, W) of {0, 1}. 1 is best.

    Precision is the share of the images' edge pixels with a given one at most `tolerance` pixels away (diagonal steps
    count as one), recall the share of given edge pixels with one of the image's as near. F1 is their harmonic mean: 1
    if both maps are empty, 0 if only one is.
    """
    found = canny(images).bool()
    given = _checked(edges, found, "edges").bool()
    precision, recall = _share_near(found, given, tolerance), _share_near(given, found, tolerance)  # (B,) both
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    both_empty = ~(found | given).flatten(1).any(1)  # (B,)
    return f1.where(~both_empty, 1.0).mean().item()


def _share_near(mask, target, tolerance):
    """Which share of the pixels of mask (B, 1, H, W) is at most `tolerance` pixels from one of target's? (B,)"""
    for _ in range(tolerance):
        target = dilate(target)
    near = (mask & target).flatten(1).sum(1)
    return near / mask.flatten(1).sum(1).clamp(min=1)


@torch.no_grad()
def colour_error(images, colours):
    """How far images are from the coarse colours (B, C, H, W) in [0, 1]: the mean absolute difference. 0 is best."""
    found = colour(images)
    return (found - _checked(colours, found, "colours")).abs().mean().item()


@torch.no_grad()
def mask_iou(images, masks):
    """How well images fill the masks (B, 1, H, W) of {0, 1}: intersection over union. Both empty is 1, the best."""
    found = mask(images)
    given = _checked(masks, found, "masks").bool()
    both = (found.bool() & given).flatten(1).sum(1)  # (B,)
    either = (found.bool() | given).flatten(1).sum(1)  # (B,)
    return (both / either).where(either > 0, 1.0).mean().item()


@torch.no_grad()
def depth_error(images, depths):
    """How far images are from the relief (B, 1, H, W) in [0, 1]: the mean absolute difference. 0 is best.

    Only pixels where either relief is above 0 count: the background, which most images share, would hide the rest.
    """
    found = depth(images)
    given = _checked(depths, found, "depths")
    either = ((found > 0) | (given > 0)).flatten(1).sum(1)  # (B,)
    return ((found - given).abs().flatten(1).sum(1) / either.clamp(min=1)).mean().item()


def scribble_f1(images, scribbles):
    """`edge_f1` within two pixels, because the lines of `scribble` are up to two pixels from the edges they stand for.

    Real images score a little less than 1: some of their edges lie where the scribble breaks off.
    """
    return edge_f1(images, scribbles, tolerance=2)


def _checked(given, found, name):
    """The map that images were given, float32 and beside the one `found` in them, if it can be compared with that."""
    if not torch.is_tensor(given) or given.shape != found.shape:
        shape = tuple(given.shape) if torch.is_tensor(given) else type(given).__name__
        raise ValueError(f"these images need {name} {tuple(found.shape)}, not {shape}")
    if name in ("edges", "masks") and not ((given == 0) | (given == 1)).all():
        raise ValueError(f"{name} must hold nothing but 0 and 1")
    if not ((given >= 0) & (given <= 1)).all():  # never true of NaN
        raise ValueError(f"{name} must lie in [0, 1]")
    return given.to(found.device, torch.float32)


MEASURES = {  # of each condition
    "canny": edge_f1, "colour": colour_error, "mask": mask_iou, "depth": depth_error, "scribble": scribble_f1}


# -- Are images like real ones? ----------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """A small convolutional network that reads labels, (B, C, H, W) -> (B, num_labels), and lends its features.

    H and W: even, 8 at least. width: channels of the first two of five convolutions; 16 do for digits.
    """

    def __init__(self, in_channels=1, num_labels=10, width=16):
        super().__init__()
        widths, layers = (4 * in_channels, width, width, 2 * width, 2 * width, 4 * width), [nn.PixelUnshuffle(2)]
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] * (i in (1, 3))
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width, num_labels)

    def features(self, images):
        """What the last convolution finds anywhere in the images: (B, 4 width)."""
        return self.body(images).amax((2, 3))

    def forward(self, images):
        return self.head(self.features(images))


def train_classifier(images, labels, steps=500, batch_size=128, seed=0, width=16):
    """Trains a Classifier on real images (N, C, H, W) in [-1, 1] with labels (N,). Returns it in eval mode.

    Each batch is shifted by up to two pixels, as pixels should not be known by their places.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # the first weights, made on the CPU, depend on the seed alone
        torch.default_generator.manual_seed(seed)
        classifier = Classifier(images.shape[1], int(labels.max()) + 1, width).to(images.device)
    matrices = [p for p in classifier.parameters() if p.ndim == 4]
    others = [p for p in classifier.parameters() if p.ndim < 4]
    rates = {Muon(matrices, lr=0.02): 0.02, torch.optim.AdamW(others, weight_decay=0.01): 0.005}
    for step in range(steps):
        index = torch.randint(len(images), (batch_size,), generator=generator).to(images.device)
        shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
        loss = F.cross_entropy(classifier(images[index].roll(shift, (2, 3))), labels[index], label_smoothing=0.1)
        loss.backward()
        for optimizer, rate in rates.items():
            optimizer.param_groups[0]["lr"] = rate * min(1, 20 * (step + 1) / steps) * (1 - step / steps)
            optimizer.step()
            optimizer.zero_grad()
    return classifier.eval().requires_grad_(False)


@torch.no_grad()
def read_labels(classifier, images):
    """What the classifier takes images (B, C, H, W) for: labels (B,)."""
    return torch.cat([classifier(batch).argmax(1) for batch in images.split(1000)])


def label_accuracy(classifier, images, labels):
    """The share of images (B, C, H, W) in which the classifier reads the label (B,) they should show. In [0, 1]."""
    return (read_labels(classifier, images) == labels).float().mean().item()


@torch.no_grad()
def frechet_distance(classifier, images, reference):
    """How unlike two sets of images are: the Frechet distance of Gaussians fitted to their features. 0 is alike.

    |mean - mean'|^2 + trace(cov + cov' - 2 sqrt(cov cov')), in float64. Made like the FID (Heusel et al. 2017), but
    with the features of our own small classifier, so the numbers compare only with one another. It depends on the
    number of images, too: compare it with that of as many real images.
    """
    (mean_a, cov_a), (mean_b, cov_b) = (_gaussian_fit(classifier, x) for x in (images, reference))
    # The trace of a root is the sum of the roots of the eigenvalues: real here, and not negative but for rounding.
    roots = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt()
    return ((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * roots.sum()).item()


def _gaussian_fit(classifier, images):
    features = torch.cat([classifier.features(batch).cpu() for batch in images.split(1000)])  # mps has no float64
    features = features.double()
    return features.mean(0), features.T.cov()  # (D,), (D, D)


# -- Is the noise guessed well? ----------------------------------------------------------------------------------------


@torch.no_grad()
def heldout_loss(eps_model, schedule, images, seed=0):
    """The diffusion loss on images not trained on, (B, C, H, W) in [-1, 1], each at its own fixed timestep and noise.

    The timesteps are spread evenly over 0 .. T-1; they and the noise are the same at every call with the same seed, so
    two losses can be compared, which those of training batches cannot.
    """
    generator = torch.Generator().manual_seed(seed)
    t = torch.linspace(0, len(schedule) - 1, len(images)).long().to(images.device)
    eps = torch.randn(images.shape, generator=generator).to(images.device)
    return diffusion_loss(eps_model, schedule, images, t, eps).item()
