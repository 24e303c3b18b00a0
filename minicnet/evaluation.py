"""Measures: do generated images follow their conditions and prompts, and do they look real?

A measure alone says little. We print its floor (the same images without control) and its ceiling
(real images) beside it. Images are (B, C, H, W) in [-1, 1] everywhere; values that are not finite
raise a ValueError, because they would otherwise end up in a table as plausible numbers.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from minicnet.conditions import canny, check_range, colour, depth, dilate, mask, paper_colour
from minicnet.data.colours import RGB
from minicnet.data.digits import LEFT, RIGHT, THICK, THIN, UPRIGHT
from minicnet.data.prompts import attributes
from minicnet.diffusion import diffusion_loss
from minicnet.muon import Muon
from minicnet.words import CLOTHES, DIGITS, STROKES, THINGS

BATCH = 1000  # images that a network evaluates at a time

# -- Do images follow their conditions? --------------------------------------------------------
#
# Each measure compares the maps that images were given with the maps that are found in the images.
# It returns the mean over the images, a float in [0, 1]. Real images with their own maps reach the
# best value exactly, except for scribbles. Images and maps that do not fit raise a ValueError.


@torch.no_grad()
def edge_f1(images, edges, tolerance=1):
    """Measure how well images follow the edges (B, 1, H, W) of {0, 1}; 1 is best.

    Precision is the fraction of the images' edge pixels that have a given edge pixel at most
    `tolerance` pixels away, where diagonal steps count as one. Recall is the fraction of the given
    edge pixels that have one of the image's this near. F1 is their harmonic mean. It is 1 if both
    maps are empty, and 0 if only one of them is.
    """
    found, given = (edge_map.bool() for edge_map in _found_and_given(canny, images, edges, "edges"))
    precision = _fraction_near(found, given, tolerance)  # (B,)
    recall = _fraction_near(given, found, tolerance)  # (B,)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    both_empty = ~(found | given).flatten(1).any(1)  # (B,)
    return f1.where(~both_empty, 1.0).mean().item()


def _fraction_near(mask, target, tolerance):
    """Return the fraction of each mask's pixels that are near a pixel of its target: (B,)."""
    for _ in range(tolerance):
        target = dilate(target)
    near = (mask & target).flatten(1).sum(1)
    return near / mask.flatten(1).sum(1).clamp(min=1)


@torch.no_grad()
def colour_error(images, colours):
    """Measure how far images are from the colour maps (B, C, H, W) in [0, 1]; 0 is best.

    It is the mean absolute difference.
    """
    found, given = _found_and_given(colour, images, colours, "colours")
    return (found - given).abs().mean().item()


@torch.no_grad()
def mask_iou(images, masks):
    """Measure how well images fill the masks (B, 1, H, W) of {0, 1}; 1 is best.

    It is intersection over union, and 1 if both masks are empty.
    """
    found, given = (one.bool() for one in _found_and_given(mask, images, masks, "masks"))
    both = (found & given).flatten(1).sum(1)  # (B,)
    either = (found | given).flatten(1).sum(1)  # (B,)
    return (both / either).where(either > 0, 1.0).mean().item()


@torch.no_grad()
def depth_error(images, depths):
    """Measure how far images are from the reliefs (B, 1, H, W) in [0, 1]; 0 is best.

    It is the mean absolute difference over the pixels where either relief is above 0. The
    background does not count, because most images share it and it would hide the rest.
    """
    found, given = _found_and_given(depth, images, depths, "depths")
    either = ((found > 0) | (given > 0)).flatten(1).sum(1)  # (B,)
    return ((found - given).abs().flatten(1).sum(1) / either.clamp(min=1)).mean().item()


def scribble_f1(images, scribbles):
    """Measure how well images follow scribbles (B, 1, H, W) of {0, 1}; 1 is best.

    It is `edge_f1` with a tolerance of two pixels, because a scribble's lines may lie two pixels
    from the edges. Real images score a little below 1: some edges lie where their scribble breaks.
    """
    return edge_f1(images, scribbles, tolerance=2)


MEASURES = {
    "canny": edge_f1,
    "colour": colour_error,
    "mask": mask_iou,
    "depth": depth_error,
    "scribble": scribble_f1,
}


def _found_and_given(condition, images, given, name):
    """Return the maps found in images and the given ones, checked, as float32 on one device."""
    found = condition(images)
    check_range(images)  # conditions check the values on a CPU only
    if not torch.is_tensor(given) or given.shape != found.shape:
        shape = tuple(given.shape) if torch.is_tensor(given) else type(given).__name__
        raise ValueError(f"these images need {name} {tuple(found.shape)}, not {shape}")
    if name in ("edges", "masks") and not ((given == 0) | (given == 1)).all():
        raise ValueError(f"{name} must hold nothing but 0 and 1")
    if not ((given >= 0) & (given <= 1)).all():  # this is never true of NaN
        raise ValueError(f"{name} must lie in [0, 1]")
    return found, given.to(found.device, torch.float32)


# -- Do images show what their prompts name? ---------------------------------------------------

LABELS = {noun: label for nouns in (DIGITS, CLOTHES, THINGS) for label, noun in enumerate(nouns)}


@torch.no_grad()
def prompt_accuracy(images, prompts, classifier):
    """Measure how many images (B, C, H, W) show what their prompts, a list of B, name.

    Returns {attribute: fraction of the images that show it, among those whose prompt names it}:

        digit, label  the classifier recognises it; a label is any other noun than a digit. The
                      classifier must have been trained on images of the same kind.
        ink, paper    of all colours that have a name, the named one is nearest
        stroke, lean  it lies on the right side of the middle; the lean is compared with the usual
                      lean of the digit that the classifier recognises
        all           everything that the prompt names is right

    An attribute that no prompt names is missing. Real images with their captions give the ceiling.
    """
    check_range(images)
    labels = predict_labels(classifier, images).cpu()  # (B,)
    ink, paper, _ = _ink_on_paper(images)
    thick = stroke_width(images) > THIN + THICK  # THIN and THICK are half widths
    right = slant(images).cpu() + UPRIGHT[labels] > (LEFT + RIGHT) / 2
    shown = {
        "digit": labels.tolist(),
        "label": labels.tolist(),
        "ink": _colour_names(ink),
        "paper": _colour_names(paper),
        "stroke": [STROKES[side] for side in thick.tolist()],
        "lean": [("left", "right")[side] for side in right.tolist()],
    }
    hits = {}
    for i, prompt in enumerate(prompts):
        named = {name: LABELS.get(word, word) for name, word in attributes(prompt).items()}
        correct = {name: shown[name][i] == value for name, value in named.items()}
        if named:
            correct["all"] = all(correct.values())
        for name, hit in correct.items():
            hits.setdefault(name, []).append(hit)
    return {name: sum(found) / len(found) for name, found in hits.items()}


def stroke_width(images):
    """Measure the width of the strokes in images (B, C, H, W), in pixels: (B,).

    A line that is much longer than wide has an outline of twice its length, so its width is twice
    its area divided by its outline.
    """
    _, _, coverage = _ink_on_paper(images)
    coverage = F.pad(coverage, (1, 1, 1, 1))  # (B, H+2, W+2)
    down, right = coverage.diff(dim=1)[:, :, :-1], coverage.diff(dim=2)[:, :-1]
    # The total variation is the length of the outline, whether the outline is sharp or soft.
    outline = (down**2 + right**2).sqrt().sum((1, 2))
    return 2 * coverage.sum((1, 2)) / outline.clamp(min=1e-6)


def slant(images):
    """Measure how far the strokes in images (B, C, H, W) lean to the right: (B,).

    The unit is pixels sideways per pixel upwards, from a least squares fit of x to y.
    """
    _, _, coverage = _ink_on_paper(images)
    weight = coverage / coverage.sum((1, 2), keepdim=True).clamp(min=1e-6)  # (B, H, W), sums to 1
    y = torch.arange(weight.shape[1], device=images.device).float()[:, None]  # (H, 1)
    x = torch.arange(weight.shape[2], device=images.device).float()  # (W,)
    y = y - (y * weight).sum((1, 2), keepdim=True)  # (B, H, 1), measured from the ink's centre
    x = x - (x * weight).sum((1, 2), keepdim=True)  # (B, 1, W)
    return -(x * y * weight).sum((1, 2)) / (y * y * weight).sum((1, 2)).clamp(min=1e-6)  # y: down


def _ink_on_paper(images):
    """Separate ink from paper: their colours (B, 3) and the ink's coverage (B, H, W), in [0, 1]."""
    rgb = ((images.float() + 1) / 2).expand(-1, 3, -1, -1)
    paper = paper_colour(rgb)  # (B, 3, 1, 1)
    contrast = (rgb - paper).square().sum(1, keepdim=True).sqrt()  # (B, 1, H, W)
    coverage = contrast / contrast.amax((2, 3), keepdim=True).clamp(min=1e-6)
    coverage = ((coverage - 0.1) / 0.8).clamp(0, 1)  # faint speckle changes neither ink nor paper
    pure = coverage == 1
    ink = (rgb * pure).sum((2, 3)) / pure.sum((2, 3)).clamp(min=1)
    return ink, paper[..., 0, 0], coverage[:, 0]


def _colour_names(colours):
    """Name the known colour that is nearest to each of the colours (B, 3) in [0, 1]."""
    nearest = torch.cdist(colours.cpu(), torch.tensor(list(RGB.values()))).argmin(1)
    return [list(RGB)[i] for i in nearest.tolist()]


# -- Do images look real? ----------------------------------------------------------------------


class Classifier(nn.Module):
    """A small convolutional network that recognises labels: (B, C, H, W) -> logits (B, num_labels).

    Its features serve the Frechet distance. H and W must be even and at least 8. `width` is the
    number of channels of the first two of its five convolutions; 16 are enough for digits.
    """

    def __init__(self, in_channels=1, num_labels=10, width=16):
        super().__init__()
        widths = (4 * in_channels, width, width, 2 * width, 2 * width, 4 * width)
        layers = [nn.PixelUnshuffle(2)]
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            layers.append(nn.Conv2d(before, after, 3, padding=1, bias=False))
            layers += [nn.BatchNorm2d(after), nn.ReLU()]
            if i in (1, 3):
                layers.append(nn.MaxPool2d(2))
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width, num_labels)

    def features(self, images):
        """Return the largest output of each channel of the last convolution: (B, 4 width)."""
        return self.body(images).amax((2, 3))

    def forward(self, images):
        return self.head(self.features(images))


def train_classifier(images, labels, steps=500, batch_size=128, seed=0, width=16):
    """Train a Classifier on real images (N, C, H, W) with labels (N,); return it in eval mode.

    Each batch is shifted by up to two pixels, so that the classifier does not depend on positions.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # so that the seed alone decides the weights
        classifier = Classifier(images.shape[1], int(labels.max()) + 1, width).to(images.device)
    matrices = [p for p in classifier.parameters() if p.ndim == 4]
    others = [p for p in classifier.parameters() if p.ndim < 4]
    rates = {
        Muon(matrices, lr=0.02): 0.02,
        torch.optim.AdamW(others, weight_decay=0.01): 0.005,
    }
    for step in range(steps):
        index = torch.randint(len(images), (batch_size,), generator=generator).to(images.device)
        shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
        logits = classifier(images[index].roll(shift, (2, 3)))
        F.cross_entropy(logits, labels[index], label_smoothing=0.1).backward()
        for optimizer, rate in rates.items():  # the rate rises for 5% of the steps and then falls
            warmup, decay = min(1, 20 * (step + 1) / steps), 1 - step / steps
            optimizer.param_groups[0]["lr"] = rate * warmup * decay
            optimizer.step()
            optimizer.zero_grad()
    return classifier.eval().requires_grad_(False)


@torch.no_grad()
def predict_labels(classifier, images):
    """Predict the label of each image: (B, C, H, W) -> (B,)."""
    return _in_batches(classifier, images).argmax(1)


def label_accuracy(classifier, images, labels):
    """Return the fraction of images whose label (B,) the classifier recognises."""
    return (predict_labels(classifier, images) == labels).float().mean().item()


@torch.no_grad()
def frechet_distance(classifier, images, reference):
    """Measure how much two sets of images differ; 0 means that they look alike.

    It is the Frechet distance of two Gaussians, each fitted to the classifier's features of a set:

        |mean - mean'|^2 + trace(cov + cov' - 2 sqrt(cov cov'))

    The FID (Heusel et al. 2017, arxiv.org/abs/1706.08500) is the same on other features. Ours come
    from our own small classifier, so the values compare with one another only. They also depend on
    the number of images: compare a value with that of equally many real images.
    Raises ValueError if a set has fewer than 2 images.
    """
    mean_a, cov_a = _gaussian_fit(classifier, images)
    mean_b, cov_b = _gaussian_fit(classifier, reference)
    # The trace of a matrix root is the sum of the roots of the eigenvalues. These are real here,
    # and rounding alone can make them negative.
    roots = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * roots.sum()
    return distance.item()


def _gaussian_fit(classifier, images):
    """Return the mean (D,) and the covariance (D, D) of the features of images, in float64."""
    if len(images) < 2:
        raise ValueError(f"the Frechet distance needs 2 images or more, not {len(images)}")
    features = _in_batches(classifier.features, images)
    features = features.cpu().double()  # on the CPU, because Apple's GPUs have no float64
    return features.mean(0), features.T.cov()


def _in_batches(network, images):
    """Apply a network to images (N, C, H, W), BATCH at a time, and check its outputs (N, D)."""
    outputs = torch.cat([network(batch) for batch in images.split(BATCH)])
    if not outputs.isfinite().all():  # argmax would take NaN for a label, and eigvals would crash
        raise ValueError("the images or the classifier hold values that are not finite")
    return outputs


# -- Is the noise predicted well? --------------------------------------------------------------


@torch.no_grad()
def heldout_loss(eps_model, schedule, images, seed=0):
    """Return the diffusion loss on images (N, C, H, W) that no network was trained on.

    Each image has its own timestep and noise. The timesteps are spread evenly over 0 .. T-1, and
    the noise depends on the seed alone, so two losses can be compared. The losses of two training
    batches cannot, because they differ in their images, timesteps and noise.

    eps_model(x_t, t) predicts the noise in all N images at once; a thousand are plenty.
    """
    generator = torch.Generator().manual_seed(seed)
    t = torch.linspace(0, len(schedule) - 1, len(images)).long().to(images.device)
    eps = torch.randn(images.shape, generator=generator).to(images.device)
    return diffusion_loss(eps_model, schedule, images, t, eps).item()
