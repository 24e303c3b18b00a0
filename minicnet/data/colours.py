"""Coloured digits: each in one colour on paper of another, with a prompt that names both.

    images, prompts = colourise(images, labels, seed=0)  # (N, 3, 28, 28) in [-1, 1], N prompts

A prompt is, for example, "a red seven on navy paper". A tenth of the combinations is held out of
training (`held_out`), so that we can test whether a network combines words in new ways.
"""

import torch

from minicnet.data.prompts import phrase, with_article
from minicnet.words import COLOURS, DIGITS

# Red, green and blue in [0, 1]. The colours of a digit differ from these by at most JITTER in each
# channel, so they remain nearest to the colour that the prompt names.
RGB = dict(zip(COLOURS, (
    (1, 1, 1), (1, 0.2, 0.2), (1, 0.6, 0.2), (1, 1, 0.2), (0.2, 1, 0.2), (0.2, 1, 1),
    (0.3, 0.6, 1), (1, 0.5, 0.8), (0, 0, 0), (0, 0, 0.4), (0.4, 0, 0), (0.3, 0.3, 0),
    (0, 0.3, 0.3), (0.35, 0, 0.4))))
JITTER = 0.08
MIN_CONTRAST = 0.7  # the smallest Euclidean distance between ink and paper
RGB_TABLE = torch.tensor(list(RGB.values()))  # (14, 3)
PAIRS = (torch.cdist(RGB_TABLE, RGB_TABLE) >= MIN_CONTRAST).nonzero()  # (138, 2), ink and paper


def colourise(images, labels, seed=0, train=False):
    """Paint gray digits in the colours that `choose_colours` chooses.

    images: (N, 1, H, W) in [-1, 1]; -1 becomes the paper's colour, 1 the ink's. labels: (N,).
    Returns images (N, 3, H, W) in [-1, 1] and a list of N prompts.
    """
    prompts, ink, paper = choose_colours(labels, seed, train)
    return torch.lerp(2 * paper - 1, 2 * ink - 1, (images + 1) / 2), prompts


def choose_colours(labels, seed, train):
    """Choose one of PAIRS at random for each digit of `labels` (N,).

    The same seed chooses the same colours. If `train`, no combination is `held_out`. Returns a list
    of N prompts, and the colours of ink and paper, (N, 3, 1, 1) each, in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)

    def choose(count):
        return PAIRS[torch.randint(len(PAIRS), (count,), generator=generator)]

    pairs = choose(len(labels))  # (N, 2)
    while train and (rejected := held_out(labels, *pairs.T)).any():
        pairs[rejected] = choose(rejected.sum())
    prompts = [with_article(phrase(ink=COLOURS[ink], digit=DIGITS[digit], paper=COLOURS[paper]))
               for digit, (ink, paper) in zip(labels.tolist(), pairs.tolist())]
    jitter = JITTER * (2 * torch.rand(*pairs.shape, 3, generator=generator) - 1)  # (N, 2, 3)
    ink, paper = (RGB_TABLE[pairs] + jitter).clamp(0, 1)[..., None, None].unbind(1)
    return prompts, ink, paper


def held_out(digit, ink, paper):
    """Return whether training never shows a combination. ink, paper: indices into COLOURS.

    Each of PAIRS is held out for exactly one digit. So is the same pair with ink and paper swapped,
    because otherwise training would show these two colours together on this digit.
    """
    return (digit + ink + paper) % 10 == 0
