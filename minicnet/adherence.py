"""Do images show what their prompts say? Each word is looked for by itself: digit, thing, ink, paper, stroke, lean."""

import torch
import torch.nn.functional as F

from minicnet.colours import DARK, LIGHT
from minicnet.conditions import paper_colour
from minicnet.digits import LEFT, RIGHT, THICK, THIN, UPRIGHT
from minicnet.evaluation import read_labels
from minicnet.words import CLOTHES, DIGITS, STROKES, THINGS


@torch.no_grad()
def prompt_accuracy(images, prompts, classifier):
    """The share of images (B, C, H, W) in [-1, 1] that show what their prompts (a list of B) say: {attribute: share}.

        digit, label  as the classifier reads it, which was trained on images of the same kind; label is any other noun
        ink, paper    the nearest of all colours with a name
        stroke, lean  on which side of the middle it lies, for a digit as the classifier reads it; words as in digits.py
        all           whether all of these are right

    A prompt that does not name an attribute does not count for it. Real images with their captions give the ceiling.
    """
    read = read_labels(classifier, images).cpu()  # (B,)
    ink, paper, _ = _ink_on_paper(images)
    shown = {"digit": read.tolist(), "label": read.tolist(), "ink": _colour_names(ink), "paper": _colour_names(paper)}
    thick = stroke_width(images) > THIN + THICK  # these are half widths
    right = slant(images).cpu() + UPRIGHT[read] > (LEFT + RIGHT) / 2
    shown["stroke"] = [STROKES[side] for side in thick.tolist()]
    shown["lean"] = [("left", "right")[side] for side in right.tolist()]
    hits = {}
    for i, prompt in enumerate(prompts):
        said = _attributes(prompt)
        found = {name: shown[name][i] == value for name, value in said.items()}
        for name, hit in {**found, "all": all(found.values())}.items() if said else ():
            hits.setdefault(name, []).append(hit)
    return {name: sum(found) / len(found) for name, found in hits.items()}


def stroke_width(images):
    """How thick the strokes in images (B, C, H, W) are, in pixels: (B,). Twice a line's area over its outline."""
    _, _, share = _ink_on_paper(images)
    share = F.pad(share, (1, 1, 1, 1))  # (B, H+2, W+2)
    down, right = share.diff(dim=1)[:, :, :-1], share.diff(dim=2)[:, :-1]
    outline = (down**2 + right**2).sqrt().sum((1, 2))  # the total variation is the length of the rim, sharp or soft
    return 2 * share.sum((1, 2)) / outline.clamp(min=1e-6)


def slant(images):
    """How far the strokes in images (B, C, H, W) lean to the right: (B,), pixels sideways for each pixel upwards."""
    _, _, share = _ink_on_paper(images)
    weight = share / share.sum((1, 2), keepdim=True).clamp(min=1e-6)  # (B, H, W), sums to 1
    y, x = torch.meshgrid(*(torch.arange(n, device=images.device).float() for n in share.shape[1:]), indexing="ij")
    y, x = (place - (place * weight).sum((1, 2), keepdim=True) for place in (y, x))  # (B, H, W), from the ink's middle
    return -(x * y * weight).sum((1, 2)) / (y * y * weight).sum((1, 2)).clamp(min=1e-6)  # y points down


def _ink_on_paper(images):
    """The colours of ink and paper (B, 3) in [0, 1], and how much of each pixel is ink (B, H, W) in [0, 1]."""
    rgb = ((images.float() + 1) / 2).expand(-1, 3, -1, -1)
    paper = paper_colour(rgb)  # (B, 3, 1, 1)
    contrast = (rgb - paper).square().sum(1, keepdim=True).sqrt()  # (B, 1, H, W)
    share = contrast / contrast.amax((2, 3), keepdim=True).clamp(min=1e-6)
    share = ((share - 0.1) / 0.8).clamp(0, 1)  # faint speckle changes neither ink nor paper
    pure = share == 1
    ink = (rgb * pure).sum((2, 3)) / pure.sum((2, 3)).clamp(min=1)
    return ink, paper[..., 0, 0], share[:, 0]


def _colour_names(colours):
    """The names of the known colours that are nearest to colours (B, 3) in [0, 1]."""
    known = {**LIGHT, **DARK}
    nearest = torch.cdist(colours.cpu(), torch.tensor(list(known.values()))).argmin(1)
    return [list(known)[i] for i in nearest.tolist()]


def _attributes(prompt):
    """What a prompt says: "a red seven on navy paper" is {"ink": "red", "digit": 7, "paper": "navy"}."""
    said, words = {}, prompt.lower().split()
    for before, word in zip(["", *words], words):
        for name, nouns in (("digit", DIGITS), ("label", CLOTHES), ("label", THINGS)):
            if word in nouns:
                said[name] = nouns.index(word)
        for name, known in (("stroke", STROKES), ("lean", ("left", "right")),
                            ("paper" if before == "on" else "ink", {**LIGHT, **DARK})):
            if word in known:
                said[name] = word
    return said
