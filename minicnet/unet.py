"""The network that predicts the noise: a small UNet with prompts, as an Encoder and a Decoder.

It knows nothing of ControlNet, except that `forward` takes an optional `control`, residuals that
are added to what the encoder hands to the decoder, and that the Encoder runs in separate parts. A
ControlNet is a trained copy of the Encoder that computes such residuals (controlnet.py). The last
convolution gives v, of which `NoiseSchedule.predict_eps` makes eps. These are the shapes for gray
images of 28 x 28 pixels in the default sizes:

    x_t (1, 28, 28) -> folded 2 x 2 (4, 14, 14)                        eps (1, 28, 28)
        |                                                                  ^
    conv_in     (32, 14, 14) -- skip 0 ------------------------> ResBlock (32, 14, 14)
    ResBlock    (32, 14, 14) -- skip 1 ------------------------> ResBlock (32, 14, 14)
    Downsample  (32, 7, 7)   -- skip 2 -------------> ResBlock, Upsample  (32, 14, 14)
    ResBlock +  (64, 7, 7)   -- skip 3 ------------------------> ResBlock (64, 7, 7)
    attention                                                              ^
        |---------------------> middle (64, 7, 7) -------------------------|

Feature maps are (B, C, H, W). Every block is called as `block(x, emb, words)`, so that one loop
runs a list of blocks, whichever of the arguments each of them uses:

    emb      (B, E), the embedding of timestep and prompt       words    the encoded prompt

UNet                          Ronneberger et al. 2015     https://arxiv.org/abs/1505.04597
... for diffusion             Ho et al. 2020              https://arxiv.org/abs/2006.11239
... with cross-attention      Rombach et al. 2022         https://arxiv.org/abs/2112.10752
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from minicnet.diffusion import NoiseSchedule
from minicnet.words import LENGTH, TextEncoder, attend, attention_weights


def timestep_embedding(t, dim):
    """Return the sines, then the cosines, of t 10000^(-i / (dim/2)) for i = 0 .. dim/2 - 1.

    t: (B,). Returns (B, dim), float32.
    """
    exponents = torch.arange(dim // 2, device=t.device) / (dim // 2)
    angles = t[:, None].float() * torch.exp(-math.log(10_000) * exponents)  # (B, dim/2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def zeroed(layer):
    """Set a layer's weight and bias to zero, and return it.

    The last layer of every ResBlock and attention block starts like this, so that at first each
    returns its input (through a 1x1 convolution where the widths differ). The UNet's last
    convolution starts at zero, too, so that the network predicts v = 0. This is usual in diffusion
    models, and is not ControlNet's zero convolution.
    """
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + linear(emb)))), at two widths if need be.

    (B, C_in, H, W) -> (B, C_out, H, W). Where the widths differ, a 1x1 convolution brings x to the
    second.
    """

    def __init__(self, in_channels, out_channels, emb_channels):
        super().__init__()
        self.norm1 = nn.GroupNorm(8, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.emb = nn.Linear(emb_channels, out_channels)
        self.norm2 = nn.GroupNorm(8, out_channels)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.shortcut = (nn.Identity() if in_channels == out_channels
                         else nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, x, emb, words=None):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.emb(emb)[:, :, None, None]  # (B, C_out, 1, 1): the same at every location
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class SelfAttention(nn.Module):
    """x + proj(softmax(q k^T / sqrt(d)) v): every location attends to all locations.

    q, k and v are linear in norm(x).
    """

    def __init__(self, channels, heads=4):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = zeroed(nn.Linear(channels, channels))

    def forward(self, x, emb=None, words=None):
        locations = self.norm(x).flatten(2).mT  # (B, H*W, C)
        q, k, v = self.qkv(locations).chunk(3, dim=-1)
        h = attend(attention_weights(q, k, self.heads), v)  # (B, H*W, C)
        return x + self.proj(h).mT.view_as(x)


class CrossAttention(nn.Module):
    """Every location attends to the words: queries come from x, keys and values from the words."""

    def __init__(self, channels, word_channels, heads=4):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.q = nn.Linear(channels, channels)
        self.k = nn.Linear(word_channels, channels)
        self.v = nn.Linear(word_channels, channels)
        self.proj = zeroed(nn.Linear(channels, channels))

    def forward(self, x, emb, words):
        h = attend(self.weights(x, words), self.v(words.vectors))  # (B, H*W, C)
        return x + self.proj(h).mT.view_as(x)

    def weights(self, x, words):
        """Return each location's attention over the words: (B, heads, H*W, L)."""
        locations = self.norm(x).flatten(2).mT  # (B, H*W, C)
        return attention_weights(self.q(locations), self.k(words.vectors), self.heads, words.mask)


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2), by a convolution of stride 2."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x, emb=None, words=None):
        return self.conv(x)


class Upsample(nn.Module):
    """(B, C_in, H, W) -> (B, C_out, 2H, 2W): mix the channels, then repeat each pixel four times.

    The two operations commute, and in this order the mixing costs a quarter.
    """

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x, emb=None, words=None):
        return F.interpolate(self.conv(x), scale_factor=2.0, mode="nearest")


class Blocks(nn.ModuleList):
    """A list of blocks that run one after the other."""

    def forward(self, x, emb, words):
        for block in self:
            x = block(x, emb, words)
        return x


class Encoder(nn.Module):
    """The way down, from the noisy image to the middle block: the half that a ControlNet copies.

    `forward` runs `embed`, `first` and `rest` in turn, and returns the skips, the middle block's
    output, emb and words. The parts are separate because a ControlNet adds its condition to the
    output of `first`.
    """

    outer_layers = ("conv_in",)  # trained by AdamW (see training.py)

    def __init__(self, in_channels, channels, multipliers, blocks, patch):
        super().__init__()
        self.in_channels = in_channels
        self.channels = channels
        self.patch = patch
        self.multiple = patch * 2 ** (len(multipliers) - 1)  # height and width are multiples of it
        emb_channels = 4 * channels
        word_channels = 2 * channels
        self.text = TextEncoder(word_channels)
        self.summary = nn.Linear(word_channels, emb_channels)
        # Larger than torch's default, so that the prompt has more weight in emb at the start.
        nn.init.normal_(self.summary.weight, std=word_channels**-0.5)
        self.time = nn.Sequential(
            nn.Linear(channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels))
        self.conv_in = nn.Conv2d(in_channels * patch**2, channels, 3, padding=1)

        self.skip_channels = [channels]  # one skip of the first convolution, and one of each stage
        self.stages = nn.ModuleList()
        width = channels
        for level, multiplier in enumerate(multipliers):
            coarsest = level == len(multipliers) - 1
            for _ in range(blocks):
                stage = [ResBlock(width, channels * multiplier, emb_channels)]
                width = channels * multiplier
                if coarsest:
                    stage += [SelfAttention(width), CrossAttention(width, word_channels)]
                self.stages.append(Blocks(stage))
                self.skip_channels.append(width)
            if not coarsest:
                self.stages.append(Blocks([Downsample(width)]))
                self.skip_channels.append(width)
        self.middle = Blocks([
            ResBlock(width, width, emb_channels),
            SelfAttention(width),
            CrossAttention(width, word_channels),
            ResBlock(width, width, emb_channels),
        ])

    def embed(self, t, prompt):
        """Embed timesteps t (B,) and prompts (B, L). Returns emb (B, E) and the encoded Words."""
        words = self.text(prompt)
        waves = timestep_embedding(t, self.channels).to(words.vectors.dtype)
        return F.silu(self.time(waves) + self.summary(words.sum())), words

    def first(self, x_t):
        """Run the first convolution on folded pixels: (B, channels, H/patch, W/patch)."""
        return self.conv_in(F.pixel_unshuffle(x_t, self.patch))

    def rest(self, h, emb, words):
        """Run the stages and the middle block on h, the output of `first`.

        Returns the list of skips, of which h is the first, and the middle block's output.
        """
        skips = [h]
        for stage in self.stages:
            h = stage(h, emb, words)
            skips.append(h)
        return skips, self.middle(h, emb, words)

    def forward(self, x_t, t, prompt):
        self.check(x_t, t, prompt)
        emb, words = self.embed(t, prompt)
        skips, middle = self.rest(self.first(x_t), emb, words)
        return skips, middle, emb, words

    def check(self, x_t, t, prompt):
        """Raise ValueError unless x_t, t and prompt fit together and fit this network."""
        B, C, H, W = x_t.shape if x_t.ndim == 4 else (len(x_t), 0, 0, 0)
        if C != self.in_channels or H % self.multiple or W % self.multiple:
            raise ValueError(f"x_t must be (B, {self.in_channels}, H, W), with H and W multiples "
                             f"of {self.multiple}, but is {tuple(x_t.shape)}")
        if t.shape != (B,):
            raise ValueError(f"t must hold one timestep for each of the {B} images, but is "
                             f"{tuple(t.shape)}")
        fits = prompt.ndim == 2 and len(prompt) == B and 1 <= prompt.shape[1] <= LENGTH
        if not fits or prompt.dtype != torch.int64:
            raise ValueError("prompt must hold a row of int64 tokens, from `tokenize`, for each "
                             f"of the {B} images, but is {prompt.dtype} {tuple(prompt.shape)}")


class Decoder(nn.Module):
    """The way up, from the middle block to an image. Each stage reads a skip, last one first.

    It has no attention. Stable Diffusion's has it on the way down and on the way up.
    """

    outer_layers = ("conv_out",)  # trained by AdamW (see training.py)

    def __init__(self, out_channels, skip_channels, channels, multipliers, blocks, patch):
        super().__init__()
        self.patch = patch
        widths = [channels * multiplier for multiplier in multipliers]
        skip_channels = list(skip_channels)
        self.stages = nn.ModuleList()
        width = widths[-1]
        for level, level_width in reversed(list(enumerate(widths))):
            for i in range(blocks + 1):  # one ResBlock for each skip of this level
                stage = [ResBlock(width + skip_channels.pop(), level_width, 4 * channels)]
                width = level_width
                if i == blocks and level > 0:
                    stage.append(Upsample(width, widths[level - 1]))
                    width = widths[level - 1]
                self.stages.append(Blocks(stage))
        self.norm_out = nn.GroupNorm(8, width)
        self.conv_out = zeroed(nn.Conv2d(width, out_channels * patch**2, 3, padding=1))

    def forward(self, skips, middle, emb, words):
        h = middle
        for stage, skip in zip(self.stages, reversed(skips), strict=True):
            h = stage(torch.cat([h, skip], dim=1), emb, words)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return F.pixel_shuffle(h, self.patch)


class UNet(nn.Module):
    """eps_theta(x_t, t, c_t): predict the noise in x_t, given the timestep t and a prompt.

    In c_t, the t stands for text: it is the paper's name for the encoded prompt.

    in_channels: 1 for gray images, 3 for RGB. channels: width of the finest level, a multiple of 8.
    multipliers: the width of each level, in multiples of `channels`; each level but the first
    halves the resolution. blocks: ResBlocks in each level of the encoder; the decoder has one more.
    patch: patch x patch pixels are folded into channels before the first convolution and unfolded
    after the last (space-to-depth), so that the network works at a lower resolution, as Stable
    Diffusion does in its latent space.

    `schedule` is the noise schedule that the network is made for.
    """

    def __init__(self, in_channels=1, channels=32, multipliers=(1, 2), blocks=1, patch=2):
        super().__init__()
        self.settings = dict(in_channels=in_channels, channels=channels,
                             multipliers=list(multipliers), blocks=blocks, patch=patch)
        self.schedule = NoiseSchedule.cosine(1000)
        self.encoder = Encoder(in_channels, channels, multipliers, blocks, patch)
        self.decoder = Decoder(in_channels, self.encoder.skip_channels, channels, multipliers,
                               blocks, patch)

    def forward(self, x_t, t, prompt, control=None):
        """Return eps, like x_t (B, C, H, W), for t (B,), prompt (B, L) and a Control or None.

        Raises ValueError if x_t, t and prompt do not fit, or if the Control has another number of
        skips.
        """
        skips, middle, emb, words = self.encoder(x_t, t, prompt)
        if control is not None:  # the encoder has finished: only what the decoder reads changes
            skips = [skip + residual.to(skip.dtype)
                     for skip, residual in zip(skips, control.skips, strict=True)]
            middle = middle + control.middle.to(middle.dtype)
        v = self.decoder(skips, middle, emb, words)
        return self.schedule.predict_eps(x_t, v, t)  # sqrt(1 - alpha_bar) x_t + sqrt(alpha_bar) v
