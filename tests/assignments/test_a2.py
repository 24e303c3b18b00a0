"""Assignment 2: the UNet. Each class tests one task. Stand-ins replace your other functions.

Rows of numbers below are samples of right results, for inputs that are the same on every machine.
"""

import pytest
import torch
from checking import check, check_tensor, close, waves, with_waves
from torch import nn

from minicnet import unet, words

POINTS = pytest.mark.points


class TestTimestepEmbedding:
    """1. timestep_embedding"""

    def embed(self, t, dim):
        return unet.timestep_embedding(torch.tensor(t), dim)

    @POINTS(2)
    def test_sines_and_cosines(self):
        check(close(self.embed([0], 6), [[0, 0, 0, 1, 1, 1]]), "the sine of 0 is 0 and its cosine "
              "is 1: all sines come first, then all cosines")
        found = self.embed([3, 999], 10)
        check(found.shape == (2, 10), "there is one row of `dim` numbers per timestep")
        check(found.dtype == torch.float32, "t holds integers: which dtype should the angles have?")
        check(close(found[:, :5] ** 2 + found[:, 5:] ** 2, torch.ones(2, 5)),
              "each frequency has one sine and one cosine, of the same angle")
        check(close(self.embed([1, 2, 500], 8)[:, 0], [0.84147, 0.90930, -0.46777]),
              "the first frequency is 1, so its angle is t itself, in radians")

    @POINTS(2)
    def test_frequencies_fall_by_equal_factors(self):
        found = self.embed([100], 8)[0, :4]
        check(close(found[2], 0.84147), "the third of four frequencies is 1/100 = 10000^(-2/4): "
              "what is in the exponent, and by what is it divided?")
        check(close(found, [-0.50637, -0.54402, 0.84147, 0.09983]), "frequencies fall by the same "
              "*factor* from one to the next, not by the same difference")
        check(close(self.embed([100], 4)[0, :2], [-0.50637, 0.84147]), "does it hold for any dim?")


class TestResBlock:
    """2. ResBlock.forward"""

    def block(self, out_channels):
        block = with_waves(unet.ResBlock(8, out_channels, 4))
        return block, waves(2, 8, 3, 5), waves(2, 4, phase=1)

    @POINTS(2)
    def test_the_embedding_reaches_every_pixel(self):
        block, x, emb = self.block(16)
        nn.init.zeros_(block.conv1.weight)  # now x itself makes no difference
        block.conv2 = nn.Identity()
        found = block(x, emb) - block.shortcut(x)
        check(found.shape == (2, 16, 3, 5), "the result is (B, C_out, H, W)")
        check(not close(found[0], found[1]), "each image has its own embedding: does it arrive?")
        check(close(found, found[:, :, :1, :1].expand_as(found)), "the embedding is one vector "
              "(B, C_out) for the whole image: which axes must it gain?")

    @POINTS(3)
    def test_all_in_order(self):
        for out_channels, expected in (
                (16, [0.02437, 0.10476, -0.15826, 0.25817, -0.11587, -0.04527]),
                (8, [0.15566, -0.74859, -0.83259, -1.34041, -0.97678, -0.66827])):
            block, x, emb = self.block(out_channels)
            found = block(x, emb)
            with_waves(block.conv2, scale=0.0)
            check(close(block(x, emb), block.shortcut(x)), "when the last convolution gives zero, "
                  "what must be left? x itself, with the right number of channels")
            check_tensor(found, (2, out_channels, 3, 5), expected, "the result differs. Read the "
                         "formula from the inside: norm, silu, conv; add the embedding; norm, "
                         "silu, conv; add the shortcut")


class TestAttentionWeights:
    """3. attention_weights"""

    Q, K = waves(2, 3, 8, scale=3.0), waves(2, 5, 8, phase=1)

    @POINTS(2)
    def test_each_row_sums_to_1(self):
        found = words.attention_weights(self.Q, self.K, 2)
        check(found.shape == (2, 2, 3, 5), "the weights are (B, heads, N, M): one row per query, "
              "one column per key")
        check(close(found.sum(-1), torch.ones(2, 2, 3)), "the weights that a query gives to all "
              "keys sum to 1: over which axis does softmax run?")
        check((found > 0).all(), "every weight is positive: where is the exponential?")

    @POINTS(2)
    def test_heads_and_scale(self):
        q = 2**0.5 * torch.tensor([[[1.0, 0.0, 0.0, 1.0]]])  # (1, 1, 4): two heads, d = 2
        k = torch.tensor([[[1.0986123, 0.0, 0.0, 0.0], [0.0, 5.0, 9.0, 1.3862944]]])
        check(close(words.attention_weights(q, k, 2), [[[[0.75, 0.25]], [[0.2, 0.8]]]]),
              "the scores of the first head should be ln 3 and 0, those of the second 0 and ln 4. "
              "Does each head have channels of its own, those of one head side by side? Is d one "
              "head's width?")
        check_tensor(words.attention_weights(self.Q, self.K, 2), (2, 2, 3, 5),
                     [0.41479, 0.00296, 0.03847, 0.16608, 0.6666, 0.0033, 0.01448, 0.48543],
                     "with several queries the weights are wrong: splitting C into (heads, d) and "
                     "exchanging two axes are different steps")

    @POINTS(2)
    def test_masked_keys_get_nothing(self):
        mask = torch.tensor([[True, True, False, True, False], [True] + 4 * [False]])
        found = words.attention_weights(self.Q / 3, 3 * self.K, 2, mask)
        check(found.isfinite().all(), "some weights are not finite")
        check(not found.mT[0, :, [2, 4]].any() and not found.mT[1, :, 1:].any(), "a key whose mask "
              "is False must get no weight: which score does softmax turn into 0?")
        check(close(found.sum(-1), torch.ones(2, 2, 3)), "the weights of the other keys still sum "
              "to 1: do you mask before or after softmax?")


class TestAttend:
    """4. attend"""

    @POINTS(2)
    def test_values_and_channels(self):
        v, order = waves(2, 3, 8), [2, 0, 1, 1]
        check(close(words.attend(torch.eye(3)[order].expand(2, 2, 4, 3), v), v[:, order]),
              "each of the N queries gets C channels: (B, N, C). A query that gives all its weight "
              "to one key gets the value there, with all its channels in order: are locations and "
              "channels mixed up, on the way to heads or on the way back?")
        check_tensor(words.attend(waves(2, 2, 4, 3, phase=1), v), (2, 4, 8),
                     [-0.46953, 0.25953, -0.71634, 1.20976, -0.80943, 1.68202, -0.90981, 1.44561],
                     "the result is a sum of values, weighted by the weights: which two matrices "
                     "are multiplied?")

    @POINTS(1)
    def test_each_head_has_its_own_channels(self):
        weights = torch.tensor([[[[0.75, 0.25]], [[0.2, 0.8]]]])
        v = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]]])
        check(close(words.attend(weights, v), [[[3.25, 6.5, 24.6, 32.8]]]), "the first head's "
              "weights act on the first half of the channels, and the second's on the second")


@pytest.fixture
def calls(monkeypatch):
    """Replace attention_weights and attend by stand-ins, and record their arguments."""
    calls = {}

    def attention_weights(q, k, heads, mask=None):
        calls.update(q=q, k=k, heads=heads, mask=mask)
        return waves(len(q), heads, q.shape[1], k.shape[1], phase=2)

    def attend(weights, v):
        calls.update(weights=weights, v=v)
        return waves(len(v), weights.shape[2], v.shape[2], phase=3)

    monkeypatch.setattr(unet, "attention_weights", attention_weights)
    monkeypatch.setattr(unet, "attend", attend)
    return calls


X = waves(2, 8, 3, 5)
PROMPT = words.Words(  # the second image's prompt has two words and padding
    waves(2, 4, 6, phase=1), torch.arange(4) < torch.tensor([[4], [2]]))
QUERIES = [0.64128, 0.92024, -2.31565, -2.49106, 1.84803, -0.55483]


def check_result(found, expected):
    check(not close(found, X), "nothing is added to x")
    check_tensor(found, (2, 8, 3, 5), expected, "The result differs. What `attend` returns goes "
                 "through `proj`, each location returns to its row and column, and x itself is "
                 "added")


class TestSelfAttention:
    """5. SelfAttention.forward"""

    @pytest.fixture
    def attention(self):
        return with_waves(unet.SelfAttention(8, heads=2), scale=0.8)

    @POINTS(1)
    def test_queries_keys_and_values(self, attention, calls):
        attention(X)
        check(set(calls) >= {"q", "k", "v"}, "call `attention_weights`, then `attend`")
        check(calls["heads"] == 2 and calls["mask"] is None, "there are `self.heads` heads, and "
              "no location is masked")
        for name, numbers in {
                "q": QUERIES,
                "k": [-4.54682, -2.52199, -1.51705, -1.50363, -2.4909, -2.16979],
                "v": [1.8862, 0.78613, 3.21156, 3.37615, -0.16673, 1.97716]}.items():
            check_tensor(calls[name], (2, 15, 8), numbers, "x is normed first, and each of the H*W "
                         "locations becomes a row. `qkv` then gives the queries, the keys and the "
                         "values of C channels, in this order")

    @POINTS(2)
    def test_the_result(self, attention, calls):
        check_result(attention(X), [0.61572, -3.07474, -2.14012, -4.0402, -4.87739, -5.01625])
        check(close(calls["weights"], waves(2, 2, 15, 15, phase=2)), "`attend` gets the weights "
              "that `attention_weights` returned")


class TestCrossAttention:
    """6. CrossAttention"""

    @pytest.fixture
    def attention(self):
        return with_waves(unet.CrossAttention(8, 6, heads=2), scale=0.8)

    @POINTS(1)
    def test_its_weights(self, attention, calls):
        found = attention.weights(X, PROMPT)
        check("q" in calls, "`attention_weights` computes the weights")
        check(calls["heads"] == 2 and calls["mask"] is PROMPT.mask, "padding must get no weight, "
              "in any of `self.heads` heads: who knows where it is?")
        hint = ("the H*W locations ask, and the L words answer: whose are the queries, and whose "
                "are the keys? x is normed, and `q` makes the queries of it; `k` makes the keys of "
                "the words")
        check_tensor(calls["q"], (2, 15, 8), QUERIES, hint)
        check_tensor(calls["k"], (2, 4, 8),
                     [-2.97517, -1.96358, 0.4371, 2.59313, 3.25732, -2.91852], hint)
        check(close(found, waves(2, 2, 15, 4, phase=2)), "the weights themselves are returned")

    @POINTS(2)
    def test_the_result(self, attention, calls):
        attention.weights = lambda x, words: waves(2, 2, 15, 4, phase=5)
        found = attention(X, None, PROMPT)
        check(close(calls["weights"], waves(2, 2, 15, 4, phase=5)), "the weights are those of "
              "your own method `weights`")
        check_tensor(calls["v"], (2, 4, 8), [0.93016, -0.6989, -1.48309, -1.68216, -1.7067,
                                             0.81804], "the values are made of the words, by `v`")
        check_result(found, [1.45042, 3.26163, 2.75018, 0.01663, 0.75572, 1.59022])


EMBEDDED = torch.ones(1, 32), "words"  # the emb and words that every block should get


class Stage(nn.Module):
    """Stands in for a block: it records its input, and adds a number to the first channel."""

    def __init__(self, number):
        super().__init__()
        self.number, self.given = number, None

    def forward(self, x, emb, words):
        check(emb is EMBEDDED[0] and words is EMBEDDED[1], "every block is called with (x, emb, "
              "words), in this order")
        self.given = x[0, :, 0, 0].tolist()
        return x[:, :1] + self.number


class TestRest:
    """7. Encoder.rest"""

    def run(self):
        encoder = unet.Encoder(1, 8, (1, 2), 1, 1)
        encoder.stages = nn.ModuleList(map(Stage, (1, 10, 100)))
        encoder.middle = Stage(1000)
        result = encoder.rest(torch.zeros(1, 1, 1, 1), *EMBEDDED)
        check(isinstance(result, tuple) and len(result) == 2, "two things are returned: the list "
              "of skips, and then the middle")
        return [int(skip) for skip in result[0]], int(result[1])

    @POINTS(2)
    def test_the_skips(self):
        skips, _ = self.run()
        check(len(skips) == 4, "h itself and the result of each of the three stages are skips, "
              f"which makes 4, not {len(skips)}")
        check(skips[0] == 0, "the first skip is h as it came in")
        check(skips == [0, 1, 11, 111], "each stage continues from the stage before it, and the "
              "list is in this order")

    @POINTS(1)
    def test_the_middle(self):
        check(self.run()[1] == 1111, "the middle block runs once, on the last stage's result")


class TestDecoder:
    """8. Decoder.forward"""

    def run(self):
        """Return what each of three stages was given, as (h, skip), and the final image."""
        decoder = unet.Decoder(1, [8, 8, 8], 8, (1,), 2, 1)
        decoder.stages = nn.ModuleList(map(Stage, (1, 1, 1)))
        decoder.norm_out = decoder.conv_out = nn.Identity()
        skips = [torch.full((1, 1, 2, 3), value) for value in (10.0, 20.0, 30.0)]
        image = decoder(skips, torch.full((1, 1, 2, 3), 5.0), *EMBEDDED)
        check([skip.mean().item() for skip in skips] == [10.0, 20.0, 30.0],
              "the list of skips belongs to the caller and must not change")
        given = [stage.given for stage in decoder.stages]
        check(all(given), "every stage runs once")
        check(all(len(pair) == 2 for pair in given), "h and skip are put side by side as channels")
        return given, image

    @POINTS(2)
    def test_the_order_of_the_skips(self):
        given, _ = self.run()
        check(30.0 in given[0], "the first stage continues from the middle, at the coarsest "
              "resolution: which of the skips has this resolution?")
        check([set(pair) & {10.0, 20.0, 30.0} for pair in given] == [{30.0}, {20.0}, {10.0}],
              "each stage takes one skip, in the opposite order to the encoder's")
        check(all(pair[1] >= 10 for pair in given), "h comes first, and then the skip")

    @POINTS(1)
    def test_the_stages_form_a_chain(self):
        given, image = self.run()
        check([min(pair) for pair in given] == [5.0, 6.0, 7.0],
              "the first stage starts from the middle, and each other from the one before it")
        check(close(image, torch.full((1, 1, 2, 3), 7.99732)), "the output layers read what the "
              "last stage returned: is it called h?")
