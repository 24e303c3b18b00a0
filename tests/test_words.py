"""Prompts as numbers, ways to say less, and attention and text encoder against PyTorch's own layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minicnet.unet import UNet
from minicnet.words import VOCABULARY, TextEncoder, attend, attention_weights, shorter, tokenize, training_prompts

FULL = "a red seven on navy paper"
PROMPTS = [FULL, "a seven", "horse", ""]
LENGTH = tokenize(PROMPTS).shape[1]


@pytest.fixture
def encoder(randomised):
    return randomised(TextEncoder(16), std=0.5)


@pytest.fixture
def unet(randomised):
    return randomised(UNet(channels=16))


def eps_of(unet, prompt):
    """What a UNet guesses for one and the same noisy image under each of the prompts (B, L)."""
    x_t = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return unet(x_t.expand(len(prompt), -1, -1, -1), torch.full((len(prompt),), 500), prompt)


# Prompts


def test_a_prompt_becomes_the_places_of_its_words_in_the_vocabulary_and_then_zeros():
    tokens = tokenize(PROMPTS)
    assert tokens.shape == (4, LENGTH) and tokens.dtype == torch.int64
    for row, prompt in zip(tokens.tolist(), PROMPTS):
        words = prompt.split()
        assert [VOCABULARY[token] for token in row] == words + [""] * (LENGTH - len(words))
        assert row[len(words):] == [0] * (LENGTH - len(words))
    assert tokenize([]).shape == (0, LENGTH)


def test_each_word_has_a_token_of_its_own():
    tokens = tokenize(list(VOCABULARY))
    assert tokens[:, 0].tolist() == list(range(len(VOCABULARY))) and not tokens[:, 1:].any()


def test_capitals_spaces_and_the_spelling_of_the_article_do_not_matter():
    assert torch.equal(tokenize(["  An Orange   seven "]), tokenize(["a orange seven"]))


@pytest.mark.parametrize("prompt, unknown, near", [
    ("a red sevn", "sevn", "seven"), ("a navvy digit", "navvy", "navy"), ("seven.", "seven.", "seven")])
def test_an_unknown_word_is_refused_with_the_nearest_known_one(prompt, unknown, near):
    with pytest.raises(ValueError, match=f"'{unknown}' is unknown: is '{near}' meant"):
        tokenize(["a seven", prompt])


def test_as_many_words_as_fit_will_do_and_no_more():
    assert tokenize([LENGTH * "a "]).all()
    with pytest.raises(ValueError, match=f"at most {LENGTH} words, but .* has {LENGTH + 1}"):
        tokenize([(LENGTH + 1) * "a "])


@pytest.mark.parametrize("prompt", ["a seven", ""])
def test_a_sentence_is_not_a_list_of_sentences(prompt):
    with pytest.raises(ValueError, match="must be a list"):
        tokenize(prompt)


# Saying less


@pytest.mark.parametrize("prompt, ways", [
    (FULL, ["a red seven on navy paper", "a red seven", "a red digit on navy paper", "a red digit",
            "a seven on navy paper", "a seven", "a digit on navy paper", "a digit"]),
    ("a thick five leaning left", ["a thick five leaning left", "a thick five", "a thick digit leaning left",
                                   "a thick digit", "a five leaning left", "a five", "a digit leaning left",
                                   "a digit"]),
    ("an orange eight", ["an orange eight", "an orange digit", "an eight", "a digit"]),
    ("a seven", ["a seven", "a digit"]), ("a horse", ["a horse"]), ("a tshirt", ["a tshirt"])])
def test_a_caption_can_be_shortened_in_every_way_with_and_without_its_article_and_comes_first_itself(prompt, ways):
    bare = [way.split(" ", 1)[1] for way in ways]
    assert shorter(prompt)[0] == prompt and sorted(shorter(prompt)) == sorted(ways + bare)


@pytest.mark.parametrize("caption, noun", [("a seven", "seven"), ("a horse", "horse"), (FULL, "seven"),
                                           ("a thin eight", "eight")])
def test_the_noun_alone_is_a_prompt_that_training_shows(caption, noun):
    assert noun in shorter(caption)


def test_while_training_each_way_to_say_a_caption_comes_equally_often_and_the_whole_one_first():
    captions = ["a seven", FULL, "a horse", FULL]
    prompts = training_prompts(captions)
    assert prompts.shape == (4, 16, LENGTH) and prompts.dtype == torch.int64
    for caption, rows in zip(captions, prompts):
        assert torch.equal(rows[:1], tokenize([caption]))
        ways, counts = rows.unique(dim=0, return_counts=True)
        assert set(map(tuple, ways.tolist())) == set(map(tuple, tokenize(shorter(caption)).tolist()))
        assert set(counts.tolist()) == {16 // len(shorter(caption))}


# Attention


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_pytorch_s_scaled_dot_product_attention(heads, masked):
    q, k, v = (torch.randn(2, n, 16) for n in (5, 7, 7))
    mask = torch.tensor([[True, False, True, True, False, True, True], [True] + 6 * [False]]) if masked else None
    weights = attention_weights(q, k, heads, mask)
    expected = F.scaled_dot_product_attention(*(x.view(2, -1, heads, 16 // heads).transpose(1, 2) for x in (q, k, v)),
                                              attn_mask=mask[:, None, None] if masked else None)
    assert weights.shape == (2, heads, 5, 7)
    torch.testing.assert_close(attend(weights, v), expected.transpose(1, 2).reshape(2, 5, 16))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, heads, 5))
    if masked:
        assert not weights.masked_select(~mask[:, None, None]).any()  # exactly zero


def test_the_text_encoder_is_pytorch_s_transformer_layer_behind_two_embeddings(encoder):
    oracle = nn.TransformerEncoderLayer(16, 4, 64, dropout=0, activation=F.silu, batch_first=True, norm_first=True)
    pairs = {"self_attn.in_proj_": "qkv.", "self_attn.out_proj.": "proj.", "linear1.": "mlp1.", "linear2.": "mlp2.",
             "norm1.": "norm1.", "norm2.": "norm2."}
    weights = encoder.state_dict()
    oracle.load_state_dict({theirs + kind: weights[ours + kind]
                            for theirs, ours in pairs.items() for kind in ("weight", "bias")})
    prompt = tokenize(PROMPTS)
    padding = prompt == 0
    padding[:, 0] = False
    x = encoder.tokens.weight[prompt] + encoder.places.weight
    expected = F.layer_norm(oracle(x, src_key_padding_mask=padding), (16,), encoder.norm_out.weight,
                            encoder.norm_out.bias)
    words = encoder(prompt)
    torch.testing.assert_close(words.vectors, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(words.mask, ~padding)


def test_the_sum_of_words_is_that_of_those_which_were_said(encoder):
    words = encoder(tokenize(PROMPTS))
    for b, count in enumerate([6, 2, 1, 1]):  # of the null prompt the first place counts
        torch.testing.assert_close(words.sum()[b], words.vectors[b, :count].sum(0))


def test_prompts_of_a_batch_do_not_see_each_other(encoder):
    prompt, order = tokenize(PROMPTS), [2, 0, 3, 1]
    words, shuffled = encoder(prompt), encoder(prompt[order])
    torch.testing.assert_close(shuffled.vectors, words.vectors[order])
    assert torch.equal(shuffled.mask, words.mask[order])


# Prompts in a network


@pytest.mark.parametrize("prompt", PROMPTS)
def test_padding_changes_nothing(unet, prompt):
    """Within the rounding of sums over more zeros: here 1e-5 of an eps of about 1. The words alone are one place for
    each, and at least one."""
    padded = tokenize([prompt])
    for length in range(max(1, len(prompt.split())), LENGTH):
        torch.testing.assert_close(eps_of(unet, padded[:, :length]), eps_of(unet, padded), rtol=1e-5, atol=1e-5)


def test_the_order_of_words_matters(unet):
    """Already the encoder's summary tells the two apart, though its words are the same and it is a sum."""
    prompt = tokenize([FULL, "a navy seven on red paper"])
    first, second = eps_of(unet, prompt)
    assert (first - second).abs().mean() > 1e-3 * first.std()
    first, second = unet.encoder.text(prompt).sum()
    assert (first - second).abs().mean() > 1e-3 * first.std()


def test_every_word_makes_a_difference_and_so_does_none(unet):
    eps = eps_of(unet, tokenize(list(VOCABULARY))).flatten(1)  # the first is the null prompt
    assert eps.isfinite().all()
    assert (torch.cdist(eps, eps) + 10 * torch.eye(len(eps))).min() > 1e-2
