"""Measures: do generated images follow their condition and label, are they like real ones, is the noise guessed well?

A measure alone says little. Beside each stand its floor (the same without control) and its ceiling (real images).
"""

import torch
import torch.nn.functional as F
from torch import nn

from minicnet.conditions import canny, colour, depth, dilate, mask
from minicnet.diffusion import diffusion_loss


@torch.no_grad()
def edge_f1(images, edges, tolerance=1):
    """How well `images` (B, C, H, W) in [-1, 1] follow the `edges` (B, 1, H, W) of {0, 1} they were given.

    Their Canny edges are found and compared with the given ones. Precision is the share of found edge pixels with a
    given one at most `tolerance` pixels away (diagonal steps count as one), recall the share of given edge pixels with
    a found one as near. F1 is their harmonic mean: 1 if both maps are empty, 0 if only one is.

    Returns the mean F1 over the images, in [0, 1], a float. `edge_f1(real, canny(real))` is exactly 1.
    Raises ValueError for images that `canny` refuses, or edges or a tolerance that are not as said.
    """
    found = canny(images).bool()
    given = _checked(edges, found, "edges").bool()
    if not isinstance(tolerance, int) or tolerance < 0:
        raise ValueError(f"tolerance must be a whole number of pixels, 0 or more, not {tolerance!r}")
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
    """How far `images` (B, C, H, W) in [-1, 1] are from the coarse `colours` (B, C, H, W) in [0, 1] they were given.

    The mean absolute difference between `colour(images)` and `colours`, a float in [0, 1]. 0 is best, and is what
    `colour_error(real, colour(real))` is exactly.
    Raises ValueError for images that `colour` refuses, or colours that are not as said.
    """
    found = colour(images)
    return (found - _checked(colours, found, "colours")).abs().mean().item()


@torch.no_grad()
def mask_iou(images, masks):
    """How well `images` (B, C, H, W) in [-1, 1] fill the `masks` (B, 1, H, W) of {0, 1} they were given.

    Intersection over union: of the pixels in `mask(images)` or in the given mask, the share that is in both; 1 if both
    are empty. Returns the mean over the images, a float in [0, 1]. 1 is best, and is what `mask_iou(real, mask(real))`
    is exactly.
    Raises ValueError for images that `mask` refuses, or masks that are not as said.
    """
    found = mask(images)
    given = _checked(masks, found, "masks").bool()
    both = (found.bool() & given).flatten(1).sum(1)  # (B,)
    either = (found.bool() | given).flatten(1).sum(1)  # (B,)
    return (both / either).where(either > 0, 1.0).mean().item()


@torch.no_grad()
def depth_error(images, depths):
    """How far `images` (B, C, H, W) in [-1, 1] are from the relief `depths` (B, 1, H, W) in [0, 1] they were given.

    The mean absolute difference between `depth(images)` and `depths` over the pixels where either is above 0: over all
    pixels the background, which most images share, would hide everything. 0 if both are 0 everywhere. Returns the mean
    over the images, a float in [0, 1]. 0 is best, and is what `depth_error(real, depth(real))` is exactly.
    Raises ValueError for images that `depth` refuses, or depths that are not as said.
    """
    found = depth(images)
    given = _checked(depths, found, "depths")
    either = ((found > 0) | (given > 0)).flatten(1).sum(1)  # (B,)
    return ((found - given).abs().flatten(1).sum(1) / either.clamp(min=1)).mean().item()


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


def scribble_f1(images, scribbles):
    """`edge_f1` within two pixels, because the lines of `scribble` are up to two pixels from the edges they stand for.

    Real images score a little less than 1: some of their edges lie where the scribble breaks off.
    """
    return edge_f1(images, scribbles, tolerance=2)


MEASURES = {  # of each condition
    "canny": edge_f1, "colour": colour_error, "mask": mask_iou, "depth": depth_error, "scribble": scribble_f1}


class Classifier(nn.Module):
    """A small convolutional network that reads labels, (B, C, H, W) -> (B, num_labels), and lends its features."""

    def __init__(self, in_channels=1, num_labels=10):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),  # 28 -> 14
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),  # 14 -> 7
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9 * 64, 64), nn.ReLU())
        self.head = nn.Linear(64, num_labels)

    def features(self, images):
        """What the last layer but one makes of the images: (B, 64)."""
        return self.body(images)

    def forward(self, images):
        return self.head(self.features(images))


def train_classifier(images, labels, steps=500, batch_size=128, seed=0):
    """Trains a Classifier on real images (N, C, H, W) in [-1, 1] with labels (N,). Returns it in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():  # the first weights too depend on the seed alone
        torch.manual_seed(seed)
        classifier = Classifier(images.shape[1], int(labels.max()) + 1).to(images.device)
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for _ in range(steps):
        index = torch.randint(len(images), (batch_size,), generator=generator).to(images.device)
        loss = F.cross_entropy(classifier(images[index]), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval().requires_grad_(False)


@torch.no_grad()
def label_accuracy(classifier, images, labels):
    """The share of images (B, C, H, W) in which the classifier reads the label (B,) they should show. In [0, 1]."""
    read = torch.cat([classifier(batch).argmax(1) for batch in images.split(1000)])
    return (read == labels).float().mean().item()


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
    features = torch.cat([classifier.features(batch) for batch in images.split(1000)]).double().cpu()
    return features.mean(0), features.T.cov()  # (64,), (64, 64)


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
