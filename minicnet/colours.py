"""Coloured digits: each in one colour on paper of another, and a prompt that names both.

    images, prompts = colourise(images, labels, seed=0)  # (N, 3, 28, 28) in [-1, 1], "a red seven on navy paper", ...

Training never sees a tenth of the combinations (`held_out`), so that it can be asked whether words compose.
"""

import torch

from minicnet.words import DIGITS, with_article

# The families of colours: red, green and blue in [0, 1]. A digit's own colour is within JITTER of its family's in each
# channel, which leaves it nearer to this family than to any other.
LIGHT = {"white": (1, 1, 1), "red": (1, 0.2, 0.2), "orange": (1, 0.6, 0.2), "yellow": (1, 1, 0.2),
         "green": (0.2, 1, 0.2), "cyan": (0.2, 1, 1), "azure": (0.3, 0.6, 1), "pink": (1, 0.5, 0.8)}
DARK = {"black": (0, 0, 0), "navy": (0, 0, 0.4), "maroon": (0.4, 0, 0), "olive": (0.3, 0.3, 0),
        "teal": (0, 0.3, 0.3), "purple": (0.35, 0, 0.4)}
JITTER = 0.08


def colourise(images, labels, seed=0, train=False):
    """Paint digits (N, 1, H, W): black in the paper's colour, white in the ink's. -> (N, 3, H, W), a list of N prompts.

    One colour is light and one is dark, whichever is the ink's. labels (N,). The same seed chooses the same colours.
    In training, no combination that is `held_out` is chosen.
    """
    prompts, ink, paper = choose_colours(labels, seed, train)
    return torch.lerp(2 * paper - 1, 2 * ink - 1, (images + 1) / 2), prompts


def choose_colours(labels, seed, train):
    """Choose colours for digits `labels` (N,): N prompts that name them, ink and paper (N, 3, 1, 1) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)

    def choose(families, count):
        return torch.randint(len(families), (count,), generator=generator)

    def shade(families, chosen):
        colour = torch.tensor(list(families.values()))[chosen]  # (N, 3)
        jitter = JITTER * (2 * torch.rand(colour.shape, generator=generator) - 1)
        return (colour + jitter).clamp(0, 1)[..., None, None]

    light, dark = choose(LIGHT, len(labels)), choose(DARK, len(labels))
    while train and (again := held_out(labels, light, dark)).any():
        dark[again] = choose(DARK, again.sum())
    swapped = torch.rand(len(labels), generator=generator) < 0.5
    prompts = []
    for digit, i, j, swap in zip(labels.tolist(), light.tolist(), dark.tolist(), swapped.tolist()):
        ink, paper = list(LIGHT)[i], list(DARK)[j]
        ink, paper = (paper, ink) if swap else (ink, paper)
        prompts.append(with_article(f"{ink} {DIGITS[digit]} on {paper} paper"))
    light, dark, swapped = shade(LIGHT, light), shade(DARK, dark), swapped[:, None, None, None]
    return prompts, torch.where(swapped, dark, light), torch.where(swapped, light, dark)


def held_out(digit, light, dark):
    """Whether training never shows a combination: true of 48 of all 480, spread evenly over digits, LIGHT and DARK."""
    return (digit + 2 * light + 3 * dark) % 10 == 0
