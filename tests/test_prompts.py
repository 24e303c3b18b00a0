"""Prompts: parsing and composing undo each other, shorter prompts, and what training shows."""

import itertools

import pytest
import torch

from minicnet.data.prompts import (
    ATTRIBUTES,
    attributes,
    phrase,
    shorter,
    training_prompts,
    with_article,
)
from minicnet.words import LENGTH, tokenize

FULL = "a red seven on navy paper"


@pytest.mark.parametrize("prompt, expected", [
    (FULL, {"ink": "red", "digit": "seven", "paper": "navy"}),
    ("a thick five leaning left", {"stroke": "thick", "digit": "five", "lean": "left"}),
    ("a horse", {"label": "horse"}), ("a digit", {}), ("", {}), ("of navy", {"ink": "navy"}),
    ("  An Orange EIGHT on a navy paper", {"ink": "orange", "digit": "eight", "paper": "navy"}),
    ("on navy paper thin leaning right", {"stroke": "thin", "lean": "right", "paper": "navy"})])
def test_a_prompt_is_parsed_into_the_attributes_that_it_names(prompt, expected):
    assert attributes(prompt) == expected


@pytest.mark.parametrize("noun", [{"digit": "eight"}, {"label": "boot"}, {}])
@pytest.mark.parametrize("count", range(5))
def test_parsing_undoes_composing(noun, count):
    for names in itertools.combinations(["stroke", "ink", "lean", "paper"], count):
        named = noun | {name: ATTRIBUTES[name][-1] for name in names}
        assert attributes(phrase(**named)) == named


@pytest.mark.parametrize("prompt", [FULL, "an orange eight", "an azure one on black paper",
                                    "an olive zero on white paper", "an eight", "a ship"])
def test_a_vowel_has_its_own_article(prompt):
    assert with_article(phrase(**attributes(prompt))) == prompt


@pytest.mark.parametrize("caption, ways", [
    (FULL, ["a red seven on navy paper", "a red seven", "a red digit on navy paper", "a red digit",
            "a seven on navy paper", "a seven", "a digit on navy paper", "a digit"]),
    ("a thick five leaning left", [
        "a thick five leaning left", "a thick five", "a thick digit leaning left", "a thick digit",
        "a five leaning left", "a five", "a digit leaning left", "a digit"]),
    ("an orange eight", ["an orange eight", "an orange digit", "an eight", "a digit"]),
    ("a seven", ["a seven", "a digit"]), ("a horse", ["a horse"]), ("a tshirt", ["a tshirt"])])
def test_shorter_lists_every_way_to_say_less_with_its_article_and_then_without(caption, ways):
    assert shorter(caption) == ways + [way.split(" ", 1)[1] for way in ways]


def test_training_shows_every_shorter_prompt_equally_often_and_the_caption_first():
    captions = ["a seven", FULL, "a horse", FULL]
    batch = training_prompts(captions)
    assert batch.shape == (4, 16, LENGTH) and batch.dtype == torch.int64
    for caption, tokens in zip(captions, batch):
        expected = tokenize(shorter(caption))
        assert torch.equal(tokens, expected.repeat(16 // len(expected), 1))
