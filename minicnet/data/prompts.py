"""The grammar of prompts: parse them, compose them, and say less than a caption does.

    attributes("a red seven on navy paper")  # {"ink": "red", "digit": "seven", "paper": "navy"}
    phrase(ink="red", digit="seven", paper="navy")  # "red seven on navy paper"
    shorter("a red seven")  # ["a red seven", "a red digit", "a seven", "a digit", "red seven", ...]
"""

import itertools

import torch

from minicnet.words import CLOTHES, COLOURS, DIGITS, STROKES, THINGS, tokenize

# What a prompt can name, in the order in which a caption names it, and the words for it.
ATTRIBUTES = {"stroke": STROKES, "ink": COLOURS, "digit": DIGITS, "label": (*CLOTHES, *THINGS),
              "lean": ("left", "right"), "paper": COLOURS}


def attributes(prompt):
    """Parse a prompt into {attribute: word}, with the keys in the order of ATTRIBUTES.

    "label" is a noun that is not a digit. A colour before "on" is the ink's, one after it the
    paper's. We ignore other words, and if an attribute is named twice, the last word counts.
    """
    words = prompt.lower().split()
    on = words.index("on") if "on" in words else len(words)
    places = {"ink": words[:on], "paper": words[on:]}
    return {name: word for name, known in ATTRIBUTES.items()
            for word in places.get(name, words) if word in known}


def phrase(*, stroke="", ink="", digit="", label="", lean="", paper=""):
    """Compose a prompt without an article: the inverse of `attributes`. The default is "digit"."""
    return " ".join(filter(None, (stroke, ink, digit or label or "digit",
                                  lean and f"leaning {lean}", paper and f"on {paper} paper")))


def with_article(phrase):
    """Put the article before a phrase: "a red seven", "an eight"."""
    return ("an " if phrase.startswith(("eight", "orange", "azure", "olive")) else "a ") + phrase


def shorter(caption):
    """List every prompt that says as much as a caption or less, the caption itself first.

    "a red seven" gives "a red seven", "a red digit", "a seven" and "a digit", then the same without
    the article. A label always stays, because there is no more general word for it.
    """
    named = attributes(caption)
    choices = [(word,) if name == "label" else (word, "") for name, word in named.items()]
    phrases = [phrase(**dict(zip(named, kept))) for kept in itertools.product(*choices)]
    return [*map(with_article, phrases), *phrases]


def training_prompts(captions):
    """Tokenize all of `shorter` for each of N captions: (N, V, LENGTH) int64, the caption first.

    V is the largest number of prompts of a caption. The shorter lists are repeated to this length;
    as all lengths are powers of two, every prompt of a caption occurs equally often.
    """
    prompts = {caption: shorter(caption) for caption in set(captions)}
    V = max(map(len, prompts.values()))
    tokens = {caption: tokenize(some * (V // len(some))) for caption, some in prompts.items()}
    return torch.stack([tokens[caption] for caption in captions])
