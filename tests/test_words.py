"""Prompts as tokens, and the text encoder against PyTorch's own layers."""

import pytest
import torch
import torch.nn.functional as F

from minicnet.errors import UserError
from minicnet.unet import UNet
from minicnet.words import LENGTH, VOCABULARY, TextEncoder, tokenize

FULL = "a red seven on navy paper"
PROMPTS = [FULL, "a seven", "horse", ""]


@pytest.fixture
def predict(randomised):
    """predict(prompts (B, L)) returns a UNet's eps for one noisy image under each prompt."""
    unet = randomised(UNet(channels=16))
    x_t = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return lambda prompt: unet(x_t.expand(len(prompt), -1, -1, -1),
                               torch.full((len(prompt),), 500), prompt)


# Prompts


def test_a_prompt_becomes_the_indices_of_its_words_in_the_vocabulary_then_zeros():
    tokens = tokenize([*PROMPTS, *VOCABULARY])
    assert tokens.shape == (4 + len(VOCABULARY), LENGTH) and tokens.dtype == torch.int64
    for row, prompt in zip(tokens.tolist(), [*PROMPTS, *VOCABULARY]):
        words = prompt.split()
        assert [VOCABULARY[token] for token in row] == words + [""] * (LENGTH - len(words))
        assert row[len(words):] == [0] * (LENGTH - len(words))
    assert tokens[4:, 0].tolist() == list(range(len(VOCABULARY)))  # each word has its own
    assert tokenize([]).shape == (0, LENGTH) and tokenize([LENGTH * "a "]).all()


def test_capitals_spaces_and_the_spelling_of_the_article_do_not_matter():
    assert torch.equal(tokenize(["  An Orange   seven "]), tokenize(["a orange seven"]))


@pytest.mark.parametrize("prompts, error, message", [
    (["a seven", "a red sevn"], UserError, "no word 'sevn': did you mean 'seven'"),
    (["a navvy digit"], UserError, "no word 'navvy': did you mean 'navy'"),
    (["qqq"], UserError, "no word 'qqq': did you mean '"),
    ([(LENGTH + 1) * "a "], UserError, f"at most {LENGTH} words, but .* has {LENGTH + 1}"),
    ("a seven", ValueError, "must be a list"),
    ("", ValueError, "must be a list"),
])
def test_unknown_words_long_prompts_and_single_strings_are_refused(prompts, error, message):
    with pytest.raises(error, match=message):
        tokenize(prompts)


# The text encoder


def test_the_text_encoder_is_pytorch_s_transformer_layer_behind_two_embeddings(randomised):
    encoder = randomised(TextEncoder(16), std=0.5)
    oracle = torch.nn.TransformerEncoderLayer(
        16, 4, 64, dropout=0, activation=F.silu, batch_first=True, norm_first=True)
    pairs = {"self_attn.in_proj_": "qkv.", "self_attn.out_proj.": "proj.", "linear1.": "mlp1.",
             "linear2.": "mlp2.", "norm1.": "norm1.", "norm2.": "norm2."}
    weights = encoder.state_dict()
    oracle.load_state_dict({theirs + kind: weights[ours + kind]
                            for theirs, ours in pairs.items() for kind in ("weight", "bias")})
    prompt = tokenize(PROMPTS)
    padding = (prompt == 0) & (torch.arange(LENGTH) > 0)  # the null prompt has one token, too
    x = encoder.tokens.weight[prompt] + encoder.positions.weight
    expected = F.layer_norm(oracle(x, src_key_padding_mask=padding), (16,),
                            encoder.norm_out.weight, encoder.norm_out.bias)
    words = encoder(prompt)
    torch.testing.assert_close(words.vectors, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(words.mask, ~padding)
    for b, count in enumerate([6, 2, 1, 1]):
        torch.testing.assert_close(words.sum()[b], words.vectors[b, :count].sum(0))


# Prompts in a network


@pytest.mark.parametrize("prompt", PROMPTS)
def test_padding_changes_nothing(predict, prompt):
    padded = tokenize([prompt])
    for length in {max(1, len(prompt.split())), LENGTH - 1}:
        torch.testing.assert_close(predict(padded[:, :length]), predict(padded),
                                   rtol=1e-5, atol=1e-5)


def test_every_word_makes_a_difference_and_so_do_their_order_and_the_null_prompt(predict):
    eps = predict(tokenize([*VOCABULARY, FULL, "a navy seven on red paper"])).flatten(1)
    assert (torch.cdist(eps, eps) + 10 * torch.eye(len(eps))).min() > 5e-3
