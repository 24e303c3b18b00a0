"""Assignment 2: the UNet. Each class is a task; each test looks at one idea in it, and at no other task's function."""

import pytest
import torch
from checking import check, close, waves, with_waves
from torch import nn

POINTS = pytest.mark.points
RES_BLOCK = [-0.38856, 0.60413, 0.27354]  # some numbers of right results
ATTENTION_OF_EQUALS = -0.09369
ATTENTION = {1: [13.61764, -15.8286, 10.48256], 2: [13.6623, -15.86599, 10.47713],
             4: [13.75405, -15.88478, 10.46471]}  # for each number of heads


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

    @POINTS(2)
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

    @POINTS(2)
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


class TestSelfAttention:
    """3. SelfAttention.forward"""

    def attention(self, heads=2, scale=0.3):
        from minicnet.unet import SelfAttention
        return with_waves(SelfAttention(8, heads), scale), waves(2, 8, 3, 4)

    @POINTS(1)
    def test_the_shortcut(self):
        attention, x = self.attention()
        nn.init.zeros_(attention.proj.weight)
        nn.init.zeros_(attention.proj.bias)
        check(close(attention(x), x), "when the projection gives zero, x itself must be left, untouched by the norm")

    @POINTS(1)
    def test_the_weights_of_a_pixel_sum_to_1(self):
        attention, x = self.attention()
        nn.init.zeros_(attention.qkv.weight[16:])
        found = attention(x) - x
        check(close(found, found[:, :, :1, :1].expand_as(found)) and close(found[0, 0, 0, 0], ATTENTION_OF_EQUALS),
              "if all pixels have the same v, then v is what each of them must take, whatever its weights are: over "
              "which axis does softmax sum to 1? And do q, k and v take the right thirds of the channels?")

    @POINTS(2)
    def test_a_pixel_that_asks_nothing_looks_at_all_alike(self):
        attention, x = self.attention()
        with torch.no_grad():
            attention.qkv.weight[:8] = 0
            attention.qkv.bias[:8] = 0
        found = attention(x) - x
        check(close(found, found[:, :, :1, :1].expand_as(found)), "with q = 0 all scores are equal, so every pixel "
              "takes the mean of v. Which axis do you sum over: that of the pixels that look, or that are looked at?")

    @POINTS(1)
    def test_it_does_not_matter_where_a_pixel_sits(self):
        attention, x = self.attention()
        order = torch.tensor([5, 2, 11, 0, 7, 1, 10, 3, 8, 4, 9, 6])

        def shuffled(x):
            return x.flatten(2)[:, :, order].view_as(x)

        check(close(attention(shuffled(x)), shuffled(attention(x))), "shuffled pixels must give shuffled results: are "
              "channels and pixels mixed up by a view or reshape, on the way in or on the way back?")

    @POINTS(3)
    def test_heads_and_scale(self):
        for heads, expected in ATTENTION.items():
            attention, x = self.attention(heads, scale=1.5)
            check(close((attention(x) - x)[[0, 0, 1], [0, 3, 7], [0, 1, 2], [1, 0, 3]], expected, 1e-3),
                  f"the result differs with {heads} head(s) of {8 // heads} channels. The channels of qkv are all q, "
                  "then all of k, then all of v, and each of these is head after head. Is d the width of one head?")


class Adds(nn.Module):
    """A block that adds a number, and remembers the embedding it was called with."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, x, emb):
        self.emb = emb
        return x + self.number


class TestRest:
    """4. Encoder.rest"""

    def run(self):
        from minicnet.unet import Encoder
        encoder, emb = Encoder(1, 3, 8, (1, 2), 1, 1), torch.ones(1, 32)
        encoder.stages = nn.ModuleList([Adds(1), Adds(10), Adds(100)])
        encoder.middle = Adds(1000)
        result = encoder.rest(torch.zeros(1, 1, 1, 1), emb)
        check(isinstance(result, tuple) and len(result) == 2, "two things are returned: the skips, then the middle")
        blocks = [*encoder.stages, encoder.middle]
        check(all(getattr(block, "emb", None) is emb for block in blocks), "every block is called once, with (h, emb)")
        return result

    @POINTS(2)
    def test_the_skips(self):
        skips = [int(skip) for skip in self.run()[0]]
        check(len(skips) == 4, f"h itself and the result of each of the 3 stages are skips, so 4, but not {len(skips)}")
        check(skips[0] == 0, "the first skip is h as it came in")
        check(sorted(skips) == skips, "the skips are to be listed from first to last")
        check(skips == [0, 1, 11, 111], "each stage goes on from what the stage before it gave")

    @POINTS(2)
    def test_the_middle(self):
        check(int(self.run()[1]) == 1111, "the middle goes on from what the last stage gave")


class Records(nn.Module):
    """A decoder stage that remembers its inputs and gives the first channel, plus 1."""

    def forward(self, x, emb):
        self.x, self.emb = x, emb
        return x[:, :1] + 1


class TestDecoder:
    """5. Decoder.forward"""

    def run(self):
        """What each of three stages was given, (2,) channels each, and the result."""
        from minicnet.unet import Decoder
        decoder, emb = Decoder(1, [8, 8, 8], 8, (1,), 2, 1), torch.ones(1, 32)
        decoder.stages = nn.ModuleList([Records(), Records(), Records()])
        decoder.norm_out = decoder.conv_out = nn.Identity()
        skips = [torch.full((1, 1, 2, 3), value) for value in (10.0, 20.0, 30.0)]
        image = decoder(skips, torch.full((1, 1, 2, 3), 5.0), emb)
        for stage in decoder.stages:
            check(getattr(stage, "emb", None) is emb, "every stage is called once, with (h and skip, emb)")
            check(stage.x.shape == (1, 2, 2, 3), "skip and h are put side by side as channels: nothing is added")
        return [stage.x[0, :, 0, 0].tolist() for stage in decoder.stages], image

    @POINTS(2)
    def test_the_last_skip_comes_first(self):
        given, _ = self.run()
        check({30.0} <= set(given[0]), "the first stage continues the middle, at the coarsest resolution: which of the "
                                       "skips has that resolution?")
        check([set(pair) & {10.0, 20.0, 30.0} for pair in given] == [{30.0}, {20.0}, {10.0}],
              "each stage takes one skip, in the order opposite to the encoder's")

    @POINTS(2)
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
