"""The network that guesses the noise: a small UNet that reads prompts, built as an Encoder and a Decoder.

It knows nothing of ControlNet but one optional argument: `control`, residuals to be added to what the encoder hands to
the decoder. A ControlNet is a trained copy of the Encoder that makes such residuals (controlnet.py).

All feature maps are (B, C, H, W). Every block is called as `block(x, emb, words)`: emb (B, E) is the embedding of
timestep and prompt, words is what the text encoder made of the prompt. So a list of blocks runs in one loop, whatever
each of them uses.

UNet: Ronneberger et al. 2015, arXiv 1505.04597; for diffusion: Ho et al. 2020, arXiv 2006.11239; with cross-attention
to words: Rombach et al. 2022, arXiv 2112.10752.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from minicnet.words import LENGTH, VOCABULARY, TextEncoder, attend, attention_weights


def timestep_embedding(t, dim):
    """Sines, then cosines, of t times 10000^(-i / (dim/2)), i = 0 .. dim/2 - 1. t: (B,) -> (B, dim), float32."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    angles = t[:, None].float() * frequencies  # (B, dim/2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + emb))): adds to x what two convolutions see. -> (B, C_out, H, W)"""

    def __init__(self, in_channels, out_channels, emb_channels):
        super().__init__()
        self.norm1 = nn.GroupNorm(8, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.emb = nn.Linear(emb_channels, out_channels)
        self.norm2 = nn.GroupNorm(8, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x, emb, words=None):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.emb(emb)[:, :, None, None]  # (B, C_out, 1, 1): the same for every pixel
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class SelfAttention(nn.Module):
    """Every place looks at all the others and takes from them what it needs: x + proj(softmax(q k^T / sqrt(d)) v)."""

    def __init__(self, channels, heads=4):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x, emb=None, words=None):
        places = self.norm(x).flatten(2).mT  # (B, H*W, C)
        q, k, v = self.qkv(places).chunk(3, dim=-1)
        return x + self.proj(attend(attention_weights(q, k, self.heads), v)).mT.view_as(x)


class CrossAttention(nn.Module):
    """Every place looks at the words and takes from them what it needs: q is made of places, k and v of words."""

    def __init__(self, channels, word_channels, heads=4):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.q = nn.Linear(channels, channels)
        self.k = nn.Linear(word_channels, channels)
        self.v = nn.Linear(word_channels, channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x, emb, words):
        return x + self.proj(attend(self.weights(x, words), self.v(words.vectors))).mT.view_as(x)

    def weights(self, x, words):
        """How much each place takes from each word: (B, heads, H*W, L)."""
        places = self.norm(x).flatten(2).mT  # (B, H*W, C)
        return attention_weights(self.q(places), self.k(words.vectors), self.heads, words.mask)


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2) by a convolution of stride 2."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x, emb=None, words=None):
        return self.conv(x)


class Upsample(nn.Module):
    """(B, C_in, H, W) -> (B, C_out, 2H, 2W): the channels are mixed, then each pixel becomes four.

    The two commute, and in this order the mixing costs a quarter.
    """

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x, emb=None, words=None):
        return F.interpolate(self.conv(x), scale_factor=2.0, mode="nearest")


class Blocks(nn.ModuleList):
    """Blocks run one after the other."""

    def forward(self, x, emb, words):
        for block in self:
            x = block(x, emb, words)
        return x


class Encoder(nn.Module):
    """From the noisy image down to the middle of the U. This is the half that a ControlNet copies.

    `embed`, `first` and `rest` are the three parts of `forward`, so that a ControlNet can add to what `first` gives.
    """

    def __init__(self, in_channels, channels, multipliers, blocks, patch):
        super().__init__()
        if patch not in (1, 2, 4):
            raise ValueError(f"patch must be 1, 2 or 4, not {patch}")
        self.in_channels, self.channels, self.patch = in_channels, channels, patch
        self.multiple = patch * 2 ** (len(multipliers) - 1)  # height and width must be multiples of this
        widths = [channels * m for m in multipliers]
        emb_channels, word_channels = 4 * channels, 2 * channels
        self.text = TextEncoder(word_channels)
        self.summary = nn.Linear(word_channels, emb_channels)
        nn.init.normal_(self.summary.weight, std=word_channels**-0.5)  # so that words are heard from the start
        self.time = nn.Sequential(nn.Linear(channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels))
        self.conv_in = nn.Conv2d(in_channels * patch**2, channels, 3, padding=1)

        self.skip_channels = [channels]  # the first convolution and each stage leave one skip for the decoder
        self.stages = nn.ModuleList()
        width = channels
        for level, level_width in enumerate(widths):
            coarsest = level == len(widths) - 1
            for _ in range(blocks):
                stage = [ResBlock(width, level_width, emb_channels)]
                width = level_width
                if coarsest:  # where maps are small, so that places and words are few enough to look at one another
                    stage += [SelfAttention(width), CrossAttention(width, word_channels)]
                self.stages.append(Blocks(stage))
                self.skip_channels.append(width)
            if not coarsest:
                self.stages.append(Blocks([Downsample(width)]))
                self.skip_channels.append(width)
        self.middle = Blocks([ResBlock(width, width, emb_channels), SelfAttention(width),
                              CrossAttention(width, word_channels), ResBlock(width, width, emb_channels)])

    def embed(self, t, prompt):
        """What every block is told of timestep and prompt. t: (B,), prompt: (B, L) -> emb (B, E), words"""
        words = self.text(prompt)
        waves = timestep_embedding(t, self.channels).to(words.vectors.dtype)
        return F.silu(self.time(waves) + self.summary(words.sum())), words

    def first(self, x_t):
        """The first convolution, after each patch of pixels has become one of more channels. -> (B, C, H/p, W/p)"""
        return self.conv_in(F.pixel_unshuffle(x_t, self.patch))

    def rest(self, h, emb, words):
        """All that follows the first convolution's output h. -> (list of skips, h itself the first; middle)"""
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
        """Raises ValueError unless x_t (B, C, H, W), t (B,) and prompt (B, L) fit together and this network."""
        if x_t.ndim != 4 or x_t.shape[1] != self.in_channels or any(side % self.multiple for side in x_t.shape[2:]):
            raise ValueError(f"x_t must be (B, {self.in_channels}, H, W), H and W multiples of {self.multiple}, "
                             f"but is {tuple(x_t.shape)}")
        if t.shape != x_t.shape[:1]:
            raise ValueError(f"t must hold one timestep for each of the {len(x_t)} images, but is {tuple(t.shape)}")
        if prompt.ndim != 2 or len(prompt) != len(x_t) or prompt.dtype != torch.int64 or \
                not 1 <= prompt.shape[1] <= LENGTH:
            raise ValueError(f"prompt must hold a row of int64 tokens, as `tokenize` makes them, for each of the "
                             f"{len(x_t)} images, but is {prompt.dtype} {tuple(prompt.shape)}")
        if prompt.device.type == "cpu" and prompt.numel() and not 0 <= prompt.min() <= prompt.max() < len(VOCABULARY):
            raise ValueError(f"tokens run from 0 to {len(VOCABULARY) - 1}, but prompt holds {prompt.min()} .. "
                             f"{prompt.max()}")


class Decoder(nn.Module):
    """From the middle of the U back up to an image: at each stage it takes one skip, the last one first."""

    def __init__(self, out_channels, skip_channels, channels, multipliers, blocks, patch):
        super().__init__()
        self.patch = patch
        widths = [channels * m for m in multipliers]
        skip_channels = list(skip_channels)
        self.stages = nn.ModuleList()
        width = widths[-1]
        for level, level_width in reversed(list(enumerate(widths))):
            for i in range(blocks + 1):
                stage = [ResBlock(width + skip_channels.pop(), level_width, emb_channels=4 * channels)]
                width = level_width
                if i == blocks and level > 0:
                    stage.append(Upsample(width, widths[level - 1]))
                    width = widths[level - 1]
                self.stages.append(Blocks(stage))
        self.norm_out = nn.GroupNorm(8, width)
        self.conv_out = nn.Conv2d(width, out_channels * patch**2, 3, padding=1)

    def forward(self, skips, middle, emb, words):
        h = middle
        for stage, skip in zip(self.stages, reversed(skips), strict=True):
            h = stage(torch.cat([h, skip], dim=1), emb, words)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch)


class UNet(nn.Module):
    """eps_theta(x_t, t, c_t): the noise in x_t, given a prompt c_t in words (words.py).

    in_channels: 1 for gray images, 3 for RGB. channels: width of the first level; `multipliers` times that are the
    widths of all levels, each of half the resolution of the one before. blocks: residual blocks per level. patch:
    patch x patch pixels become one of more channels before the first convolution, and are unfolded again after the
    last (space-to-depth). So the network works at a lower resolution, as Stable Diffusion does in its latent space.
    """

    def __init__(self, in_channels=1, channels=32, multipliers=(1, 2), blocks=1, patch=2):
        super().__init__()
        self.settings = dict(in_channels=in_channels, channels=channels, multipliers=list(multipliers), blocks=blocks,
                             patch=patch)
        self.encoder = Encoder(in_channels, channels, multipliers, blocks, patch)
        self.decoder = Decoder(in_channels, self.encoder.skip_channels, channels, multipliers, blocks, patch)
        self.share = nn.Linear(4 * channels, 1)
        # Zero-inits: at first no block adds anything to its shortcut, and the network guesses that there is no noise.
        last = [self.decoder.conv_out, self.share]
        last += [module.conv2 for module in self.modules() if isinstance(module, ResBlock)]
        last += [module.proj for module in self.modules() if isinstance(module, (SelfAttention, CrossAttention))]
        for layer in last:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x_t, t, prompt, control=None):
        """x_t: (B, C, H, W); t: (B,); prompt: (B, L); control: a Control or None. -> eps like x_t, or ValueError."""
        skips, middle, emb, words = self.encoder(x_t, t, prompt)
        if control is not None:  # added to what the decoder gets, never to what the encoder goes on with
            skips = [skip + residual.to(skip.dtype) for skip, residual in zip(skips, control.skips, strict=True)]
            middle = middle + control.middle.to(middle.dtype)
        # Where there is nearly nothing but noise, eps is nearly x_t: a learned share of it leaves the decoder only the
        # rest to guess. (This is not in the papers.)
        return self.decoder(skips, middle, emb, words) + self.share(emb)[:, :, None, None] * x_t
