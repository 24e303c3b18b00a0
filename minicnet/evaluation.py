"""Measures: do generated images follow their edges and labels, are they like real ones, is the noise guessed well?

A measure alone says little. Beside each stand its floor (the same without control) and its ceiling (real images).
"""

import torch
import torch.nn.functional as F
from torch import nn

from minicnet.conditions import canny, dilate
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
    if edges.shape != found.shape:
        raise ValueError(f"images {tuple(images.shape)} need edges {tuple(found.shape)}, not {tuple(edges.shape)}")
    if not ((edges == 0) | (edges == 1)).all():
        raise ValueError("edges must hold nothing but 0 and 1")
    if not isinstance(tolerance, int) or tolerance < 0:
        raise ValueError(f"tolerance must be a whole number of pixels, 0 or more, not {tolerance!r}")
    given = edges.to(found.device).bool()
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
