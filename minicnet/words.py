"""Prompts: short sentences of a closed vocabulary, as numbers, and the small text encoder that reads them.

    tokenize(["a red seven on navy paper", "seven", ""])    # (3, LENGTH) int64; 0 is padding, "" the null prompt

Stable Diffusion's prompts go through CLIP, a text encoder of 123 million parameters. Here one transformer block reads
them. "seven" alone is a label, and there is no other way to give one.

Attention: Vaswani et al. 2017, arXiv 1706.03762.
"""

import difflib
import itertools
import math
import re
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STROKES = ("thin", "thick")
LIGHT = ("white", "red", "orange", "yellow", "green", "cyan", "azure", "pink")
DARK = ("black", "navy", "maroon", "olive", "teal", "purple")
CLOTHES = ("tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
THINGS = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
VOCABULARY = ("", "a", "digit", *DIGITS, *STROKES, "leaning", "left", "right", *LIGHT, "on", *DARK, "paper",
              *CLOTHES, *THINGS)  # a word's place in it is its token
LENGTH = 8  # tokens in a prompt, padding included


def with_article(phrase):
    """ "red seven" -> "a red seven", "eight" -> "an eight". """
    return ("an " if phrase.startswith(("eight", "orange", "azure", "olive")) else "a ") + phrase


def tokenize(prompts):
    """list of B prompts -> (B, LENGTH) int64; "an" is a spelling of "a".

    Raises ValueError for an unknown word, or a prompt of too many words.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts must be a list of sentences, as [{prompts!r}]")
    tokens = torch.zeros(len(prompts), LENGTH, dtype=torch.int64)
    for row, prompt in zip(tokens, prompts):
        words = ["a" if word == "an" else word for word in prompt.lower().split()]
        if len(words) > LENGTH:
            raise ValueError(f"a prompt has at most {LENGTH} words, but {prompt!r} has {len(words)}")
        for i, word in enumerate(words):
            if word not in VOCABULARY:
                near = difflib.get_close_matches(word, VOCABULARY[1:], n=1, cutoff=0)[0]
                raise ValueError(f"the word {word!r} is unknown: is {near!r} meant? "
                                 f"Known are {' '.join(VOCABULARY[1:])}")
            row[i] = VOCABULARY.index(word)
    return tokens


def shorter(caption):
    """Every way to say as much or less, the caption itself first: "a red seven", "a red digit", "a seven", "a digit".

    Each with its article, then each without: "red seven", ... caption: begins with an article, as all do (data.py).
    """
    _, *phrases = re.findall(r"leaning \w+|on \w+ paper|\w+", caption)

    def ways(phrase):
        if phrase in DIGITS:
            return phrase, "digit"
        optional = " " in phrase or phrase in (*STROKES, *LIGHT, *DARK)
        return (phrase, "") if optional else (phrase,)

    bare = [" ".join(filter(None, kept)) for kept in itertools.product(*map(ways, phrases))]
    return [*map(with_article, bare), *bare]


def training_prompts(captions):
    """list of N captions -> (N, V, LENGTH) int64: V ways to say each or a part of it, the whole caption first."""
    ways = {caption: shorter(caption) for caption in set(captions)}
    V = max(map(len, ways.values()))  # a power of two, as every number of ways is
    tokens = {caption: tokenize(some * (V // len(some))) for caption, some in ways.items()}
    return torch.stack([tokens[caption] for caption in captions])


def attention_weights(q, k, heads, mask=None):
    """softmax(q k^T / sqrt(d)): how much each of N places takes from each of M, for each head.

    q: (B, N, C), k: (B, M, C), d = C / heads. mask: (B, M), False where nothing is to be taken. -> (B, heads, N, M)
    """
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))  # (B, heads, N or M, d)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -math.inf)
    return scores.softmax(-1)


def attend(weights, v):
    """weights: (B, heads, N, M), v: (B, M, C) -> (B, N, C): each place gets what it takes from v, head beside head."""
    v = v.unflatten(-1, (weights.shape[1], -1)).transpose(1, 2)  # (B, heads, M, d)
    return (weights @ v).transpose(1, 2).flatten(2)


class Words(NamedTuple):
    """What the text encoder makes of prompts."""

    vectors: torch.Tensor  # (B, L, E)
    mask: torch.Tensor  # (B, L), False at padding

    def sum(self):
        """The sum over the words: (B, E)."""
        return (self.vectors * self.mask[..., None]).sum(1)


class TextEncoder(nn.Module):
    """Prompts (B, L) -> Words: embeddings of tokens and of their places, then one transformer block.

    Padding is looked at by no word. Only the first place always counts: in the null prompt, padding stands there, and
    its embedding says that nothing was said.
    """

    def __init__(self, channels, heads=4):
        super().__init__()
        self.heads = heads
        self.tokens = nn.Embedding(len(VOCABULARY), channels)
        self.places = nn.Embedding(LENGTH, channels)
        nn.init.normal_(self.places.weight, std=0.1)  # what a word means counts more, at first, than where it stands
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp1 = nn.Linear(channels, 4 * channels)
        self.mlp2 = nn.Linear(4 * channels, channels)
        self.norm_out = nn.LayerNorm(channels)

    def forward(self, prompt):
        first = torch.arange(prompt.shape[1], device=prompt.device) == 0
        mask = (prompt != 0) | first  # (B, L)
        x = self.tokens(prompt) + self.places.weight[: prompt.shape[1]]  # (B, L, E)
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.proj(attend(attention_weights(q, k, self.heads, mask), v))
        x = x + self.mlp2(F.silu(self.mlp1(self.norm2(x))))
        return Words(self.norm_out(x), mask)
