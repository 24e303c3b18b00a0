"""Assignment 2: the UNet. Each class is a task; each test looks at one idea in it, and at no other task's function."""

import pytest
import torch
from checking import check, close, waves, with_waves
from torch import nn

POINTS = pytest.mark.points
RES_BLOCK = [-0.38856, 0.60413, 0.27354]  # some numbers of right results
WEIGHTS = [0.54335, 0.0513, 0.5727]
CROSS = [4.86920, -4.06949, 0.71508]


class TestTimestepEmbedding:
    """1. timestep_embedding"""

    def embed(self, t, dim):
        from minicnet.unet import timestep_embedding
        found = timestep_embedding(torch.tensor(t), dim)
        check(found.shape == (len(t), dim), "the result has one row of `dim` numbers for each timestep")
        check(found.dtype == torch.float32, "t holds integers: what must it become before it is multiplied?")
        return found

    @POINTS(2)
    def test_sines_come_before_cosines(self):
        check(close(self.embed([0], 6), [[0, 0, 0, 1, 1, 1]]), "sine and cosine of 0 tell which column is which: all "
              "sines come first, then all cosines")
        found = self.embed([3, 999], 10)
        check(close(found[:, :5] ** 2 + found[:, 5:] ** 2, torch.ones(2, 5)), "each frequency has one sine and one "
              "cosine of the same angle")

    @POINTS(1)
    def test_the_highest_frequency(self):
        found = self.embed([1, 2, 500], 8)
        check(close(found[:, 0], [0.84147, 0.90930, -0.46777]), "the first frequency is 1: its angle is t itself, in "
                                                                "radians")

    @POINTS(2)
    def test_frequencies_fall_in_equal_ratios(self):
        found = self.embed([100], 8)[0, :4]
        check(close(found[2], 0.84147), "of four frequencies the third is 1/100 (10000^-(2/4)): what is in the "
                                        "exponent, and what is divided by what?")
        check(close(found, [-0.50637, -0.54402, 0.84147, 0.09983]), "frequencies fall by the same *factor*, not by the "
                                                                    "same difference")
        check(close(self.embed([100], 4)[0, :2], [-0.50637, 0.84147]), "does your code hold for every dim?")


class TestResBlock:
    """2. ResBlock.forward"""

    def block(self, out_channels=8, scale=0.3):
        from minicnet.unet import ResBlock
        return with_waves(ResBlock(8, out_channels, 4), scale), waves(2, 8, 3, 5), waves(2, 4, phase=1)

    @POINTS(1)
    def test_the_shortcut(self):
        for out_channels in (8, 16):
            block, x, emb = self.block(out_channels)
            nn.init.zeros_(block.conv2.weight)
            nn.init.zeros_(block.conv2.bias)
            found = block(x, emb)
            check(found.shape == (2, out_channels, 3, 5), "the result has out_channels channels and the size of x")
            check(close(found, block.shortcut(x)), "when the last convolution gives zero, what must be left? x itself, "
                  "brought to the right number of channels, and nothing done to it")

    @POINTS(2)
    def test_the_embedding_reaches_every_pixel(self):
        block, x, emb = self.block(16)
        nn.init.zeros_(block.conv1.weight)
        with torch.no_grad():
            block.conv2.weight[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0  # now a 1x1 convolution
        found = block(x, emb) - block.shortcut(x)
        check(not close(found[0], found[1]), "each image has its own embedding: does it arrive?")
        check(close(found, found[:, :, :1, :1].expand_as(found)),
              "the embedding is one vector (B, C_out) for the whole image: which axes does it lack to be added to (B, "
              "C_out, H, W)?")

    @POINTS(3)
    def test_all_in_order(self):
        block, x, emb = self.block(16)
        found = block(x, emb)[[0, 0, 1], [0, 3, 9], [0, 1, 2], [1, 0, 4]]
        check(close(found, RES_BLOCK), "the parts are there, but the result differs. From the inside of the formula "
              "to the outside: norm, silu, conv; then the embedding; then norm, silu, conv again; then the shortcut")


class TestAttention:
    """3. attention_weights and attend"""

    def weights(self, q, k, *arguments):
        from minicnet.words import attention_weights
        found = attention_weights(q, k, *arguments)
        check(found.shape == (len(q), arguments[0], q.shape[1], k.shape[1]),
              "the weights are (B, heads, N, M): a row for each place that asks, in it one for each that is looked at")
        return found

    @POINTS(1)
    def test_the_weights_of_a_place_sum_to_1(self):
        found = self.weights(waves(2, 3, 8, scale=3.0), waves(2, 5, 8, phase=1), 2)
        check(close(found.sum(-1), torch.ones(2, 2, 3)), "each place shares out a whole of 1 among those it looks at: "
                                                         "over which axis does softmax sum to 1?")

    @POINTS(2)
    def test_heads_and_scale(self):
        q = 2**0.5 * torch.tensor([[[1.0, 0.0, 0.0, 1.0]]])  # (1, 1, 4), two heads of two channels
        k = torch.tensor([[[1.0986123, 0.0, 0.0, 0.0], [0.0, 5.0, 9.0, 1.3862944]]])  # ln 3 and ln 4
        check(close(self.weights(q, k, 2), [[[[0.75, 0.25]], [[0.2, 0.8]]]]), "the scores of the first head are ln 3 "
              "and 0, of the second 0 and ln 4. Does each head have its own channels, one head's after the other's? "
              "Is d the width of one head?")
        check(close(self.weights(0 * q, k, 1), [[[[0.5, 0.5]]]]), "who asks nothing looks at all alike")

    @POINTS(2)
    def test_what_is_masked_is_not_looked_at(self):
        mask = torch.tensor([[True, True, False, True, False], [True, False, False, False, False]])
        found = self.weights(waves(2, 3, 8), waves(2, 5, 8, phase=1, scale=3.0), 2, mask)
        check(not found.isnan().any(), "there is a weight that is no number")
        check(not found.mT[0, :, [2, 4]].any() and not found.mT[1, :, 1:].any(),
              "nothing may be taken from where mask is False: what must a score be, for softmax to make 0 of it?")
        check(close(found.sum(-1), torch.ones(2, 2, 3)), "the others still share out a whole of 1: do you mask before "
                                                         "or after softmax?")

    @POINTS(2)
    def test_each_place_gets_what_it_looks_at(self):
        from minicnet.words import attend
        v, order = waves(2, 3, 8), [2, 0, 1, 1]
        found = attend(torch.eye(3)[order].expand(2, 2, 4, 3), v)
        check(found.shape == (2, 4, 8), "N places get C channels each: (B, N, C)")
        check(close(found, v[:, order]), "a place that looks at one other only gets what is there, all channels of it: "
              "are places and channels mixed up, on the way to heads or on the way back?")

    @POINTS(1)
    def test_each_head_has_its_own_channels(self):
        from minicnet.words import attend
        weights = torch.tensor([[[[0.75, 0.25]], [[0.2, 0.8]]]])
        v = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]]])
        check(close(attend(weights, v), [[[3.25, 6.5, 24.6, 32.8]]]),
              "the first head's weights belong to the first half of the channels, the second's to the second")


class TestCrossAttention:
    """4. CrossAttention"""

    @pytest.fixture
    def attention(self, monkeypatch):
        """A CrossAttention of 2 heads; `attention_weights` and `attend` are not yours."""
        from minicnet import unet

        def attention_weights(q, k, heads, mask=None):
            q, k = (x.view(*x.shape[:2], heads, -1).permute(0, 2, 1, 3) for x in (q, k))
            mask = None if mask is None else mask[:, None, None].expand(-1, heads, q.shape[2], -1)
            everything = torch.eye(k.shape[2]).expand(*k.shape[:3], -1)
            return nn.functional.scaled_dot_product_attention(q, k, everything, mask)

        def attend(weights, v):
            return torch.einsum("bhnm,bmhd->bnhd", weights, v.view(*v.shape[:2], weights.shape[1], -1)).flatten(2)

        monkeypatch.setattr(unet, "attention_weights", attention_weights)
        monkeypatch.setattr(unet, "attend", attend)
        return with_waves(unet.CrossAttention(8, 6, heads=2), scale=0.8)

    def words(self, phase=1.0):
        """Of two prompts of four words; the last two words of the second are padding."""
        from minicnet.words import Words
        return Words(waves(2, 4, 6, phase=phase), torch.tensor([[True] * 4, [True, True, False, False]]))

    @POINTS(1)
    def test_places_look_at_words(self, attention):
        x, words = waves(2, 8, 3, 5), self.words()
        found = attention.weights(x, words)
        check(found.shape == (2, 2, 15, 4), "each of the H*W places has a weight for each word: (B, heads, H*W, L). "
                                            "Who asks, places or words?")
        check(not found[1, :, :, 2:].any(), "nothing is to be taken from padding: who knows where it is?")
        check(close(found[[0, 0, 1], [0, 1, 1], [0, 7, 14], [1, 3, 0]], WEIGHTS),
              "the weights differ: is x normed, and who is q, who k?")

    @POINTS(1)
    def test_the_shortcut(self, attention):
        nn.init.zeros_(attention.proj.weight)
        nn.init.zeros_(attention.proj.bias)
        x = waves(2, 8, 3, 5)
        check(close(attention(x, None, self.words()), x), "when the projection gives zero, x itself must be left")

    @POINTS(2)
    def test_values_come_from_words(self, attention):
        x = waves(2, 8, 3, 5)
        found = attention(x, None, self.words())
        check(found.shape == x.shape, "the result has the shape of x")
        check(not close(found, attention(x, None, self.words(phase=2.0))), "other words make no difference")
        check(close((found - x)[[0, 0, 1], [0, 3, 7], [0, 1, 2], [1, 0, 3]], CROSS),
              "the result differs. What is taken is v, of words; then comes the projection, then each place goes back "
              "to its row and column")


TOLD = torch.ones(1, 32), "words"  # what every block is told: emb and words


def was_told(block):
    return all(a is b for a, b in zip(getattr(block, "given", [None]), TOLD))


class Adds(nn.Module):
    """A block that adds a number, and remembers with what it was called."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, x, emb, words):
        self.given = emb, words
        return x + self.number


class TestRest:
    """5. Encoder.rest"""

    def run(self):
        from minicnet.unet import Encoder
        encoder = Encoder(1, 8, (1, 2), 1, 1)
        encoder.stages = nn.ModuleList([Adds(1), Adds(10), Adds(100)])
        encoder.middle = Adds(1000)
        result = encoder.rest(torch.zeros(1, 1, 1, 1), *TOLD)
        check(isinstance(result, tuple) and len(result) == 2, "two things are returned: the skips, then the middle")
        blocks = [*encoder.stages, encoder.middle]
        check(all(map(was_told, blocks)), "every block is called once, with (h, emb, words)")
        return result

    @POINTS(2)
    def test_the_skips(self):
        skips = [int(skip) for skip in self.run()[0]]
        check(len(skips) == 4, f"h itself and the result of each of the 3 stages are skips, so 4, but not {len(skips)}")
        check(skips[0] == 0, "the first skip is h as it came in")
        check(sorted(skips) == skips, "the skips are to be listed from first to last")
        check(skips == [0, 1, 11, 111], "each stage goes on from what the stage before it gave")

    @POINTS(1)
    def test_the_middle(self):
        check(int(self.run()[1]) == 1111, "the middle goes on from what the last stage gave")


class Records(nn.Module):
    """A decoder stage that remembers its inputs and gives the first channel, plus 1."""

    def forward(self, x, emb, words):
        self.x, self.given = x, (emb, words)
        return x[:, :1] + 1


class TestDecoder:
    """6. Decoder.forward"""

    def run(self):
        """What each of three stages was given, (2,) channels each, and the result."""
        from minicnet.unet import Decoder
        decoder = Decoder(1, [8, 8, 8], 8, (1,), 2, 1)
        decoder.stages = nn.ModuleList([Records(), Records(), Records()])
        decoder.norm_out = decoder.conv_out = nn.Identity()
        skips = [torch.full((1, 1, 2, 3), value) for value in (10.0, 20.0, 30.0)]
        image = decoder(skips, torch.full((1, 1, 2, 3), 5.0), *TOLD)
        check([skip.mean().item() for skip in skips] == [10.0, 20.0, 30.0],
              "the list of skips belongs to the caller: it must stay as it is")
        for stage in decoder.stages:
            check(was_told(stage), "every stage is called once, with (h and skip, emb, words)")
            check(stage.x.shape == (1, 2, 2, 3), "skip and h are put side by side as channels: nothing is added")
        return [stage.x[0, :, 0, 0].tolist() for stage in decoder.stages], image

    @POINTS(2)
    def test_the_last_skip_comes_first(self):
        given, _ = self.run()
        check({30.0} <= set(given[0]), "the first stage continues the middle, at the coarsest resolution: which of the "
                                       "skips has that resolution?")
        check([set(pair) & {10.0, 20.0, 30.0} for pair in given] == [{30.0}, {20.0}, {10.0}],
              "each stage takes one skip, in the order opposite to the encoder's")

    @POINTS(1)
    def test_stages_go_on_from_each_other(self):
        given, _ = self.run()
        check(5.0 in given[0], "the first stage starts from the middle")
        check([pair[0] for pair in given] == [5.0, 6.0, 7.0], "each stage goes on from what the one before it gave; in "
              "the pair of channels, h is first and the skip second")

    @POINTS(1)
    def test_the_result(self):
        _, image = self.run()
        check(close(image, torch.full((1, 1, 2, 3), 7.99732)), "what the last stage gives goes to the output layers: "
                                                               "is it named h?")
