"""Prompts: short sentences of a closed vocabulary, and the small text encoder that reads them.

    tokenize(["a red seven on navy paper", "seven", ""])    # (3, LENGTH) int64

Token 0 is padding, and "" is the null prompt. A prompt of one word, such as "seven", acts as a
class label, and the networks get no label in another form. The null prompt stands for "no prompt",
in guidance and where training drops one. Stable Diffusion reads prompts with CLIP's text encoder,
which has 123 million parameters; one transformer block is enough for this vocabulary.

Attention: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762
"""

import difflib
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from minicnet.errors import UserError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STROKES = ("thin", "thick")
COLOURS = ("white", "red", "orange", "yellow", "green", "cyan", "azure", "pink",
           "black", "navy", "maroon", "olive", "teal", "purple")
# Fashion-MNIST's labels, then CIFAR-10's.
CLOTHES = ("tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
           "boot")
THINGS = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
VOCABULARY = ("", "a", "digit", *DIGITS, *STROKES, "leaning", "left", "right", *COLOURS, "on",
              "paper", *CLOTHES, *THINGS)  # a word's token is its index
LENGTH = 8  # tokens in a prompt, padding included


def tokenize(prompts):
    """Turn a list of B prompts into tokens (B, LENGTH), int64. "an" counts as "a".

    Raises UserError, a ValueError, for an unknown word or a prompt of more than LENGTH words, and
    ValueError for a single string in place of a list.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts must be a list of sentences: write [{prompts!r}]")
    tokens = torch.zeros(len(prompts), LENGTH, dtype=torch.int64)
    for row, prompt in zip(tokens, prompts):
        words = ["a" if word == "an" else word for word in prompt.lower().split()]
        if len(words) > LENGTH:
            raise UserError(f"a prompt has at most {LENGTH} words, but {prompt!r} has {len(words)}")
        for i, word in enumerate(words):
            if word not in VOCABULARY:
                nearest = difflib.get_close_matches(word, VOCABULARY[1:], n=1, cutoff=0)[0]
                raise UserError(f"the vocabulary has no word {word!r}: did you mean {nearest!r}? "
                                f"The words are {' '.join(VOCABULARY[1:])}")
            row[i] = VOCABULARY.index(word)
    return tokens


def attention_weights(q, k, heads, mask=None):
    """Return softmax(q k^T / sqrt(d)), the attention of N queries over M keys, for each head.

    q: (B, N, C); k: (B, M, C); d = C / heads. mask: (B, M), False at keys that no query may attend
    to. Returns (B, heads, N, M); each row sums to 1.
    """
    q = q.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, N, d)
    k = k.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, M, d)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -math.inf)
    return scores.softmax(-1)


def attend(weights, v):
    """Return the weighted averages of the values. weights: (B, heads, N, M); v: (B, M, C).

    Each head averages its own C / heads channels. Returns (B, N, C).
    """
    v = v.unflatten(-1, (weights.shape[1], -1)).transpose(1, 2)  # (B, heads, M, d)
    return (weights @ v).transpose(1, 2).flatten(2)


class Words(NamedTuple):
    """Encoded prompts: one vector for each word, for cross-attention to read."""

    vectors: torch.Tensor  # (B, L, E)
    mask: torch.Tensor  # (B, L), False at padding

    def sum(self):
        """Return the sum of each prompt's vectors, (B, E), which summarises the prompt."""
        return (self.vectors * self.mask[..., None]).sum(1)


class TextEncoder(nn.Module):
    """Encode prompts (B, L): token and position embeddings, then one transformer block.

    No word attends to padding. The null prompt is all padding, and would leave nothing to attend
    to. Position 0 is therefore never masked: padding there becomes a vector that means "no prompt".
    """

    outer_layers = ("tokens", "positions")  # trained by AdamW (see training.py)

    def __init__(self, channels, heads=4):
        super().__init__()
        self.heads = heads
        self.tokens = nn.Embedding(len(VOCABULARY), channels)
        self.positions = nn.Embedding(LENGTH, channels)
        # At first, which word it is matters more than its position.
        nn.init.normal_(self.positions.weight, std=0.1)
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp1 = nn.Linear(channels, 4 * channels)
        self.mlp2 = nn.Linear(4 * channels, channels)
        self.norm_out = nn.LayerNorm(channels)

    def forward(self, prompt):
        L = prompt.shape[1]
        mask = (prompt != 0) | (torch.arange(L, device=prompt.device) == 0)  # (B, L)
        x = self.tokens(prompt) + self.positions.weight[:L]  # (B, L, E)
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.proj(attend(attention_weights(q, k, self.heads, mask), v))
        x = x + self.mlp2(F.silu(self.mlp1(self.norm2(x))))
        return Words(self.norm_out(x), mask)
