"""Networks that are compared with ControlNet. Each is made as a ControlNet is: make(unet,
channels).

A network either returns a Control for the locked base, as a ControlNet does, or reads the condition
itself and has `parts`: what draws in the base's place, and what stands in a ControlNet's place.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from minicnet.controlnet import (
    ConditionEncoder,
    Control,
    ControlNet,
    ZeroConvs,
    freeze,
    trainable_copy,
    zero_conv,
)
from minicnet.unet import Blocks, Downsample, ResBlock, UNet


class ConditionItself:
    """Stands where `controlled` wants a ControlNet, and hands the condition to a base that reads
    it."""

    def encode(self, condition):
        return condition

    def __call__(self, x_t, t, prompt, hint):
        return hint


class ReadsCondition(nn.Module):
    """A network that stands in the base's place and is called with the condition as its
    `control`."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet
        self.schedule = unet.schedule

    def parts(self):
        return self, ConditionItself()


# -- Variants of ControlNet --------------------------------------------------------------------


def gaussian(unet, condition_channels, scale=1.0):
    """A ControlNet whose zero convolutions start from N(0, scale^2 / in_channels), biases zero."""
    net = ControlNet(unet, condition_channels)
    for conv in (net.condition_encoder[-1], *net.zero_convs.skips, net.zero_convs.middle):
        nn.init.normal_(conv.weight, std=scale * conv.in_channels**-0.5)
    return net


def random_copy(unet, condition_channels):
    """A ControlNet whose encoder is not a copy: it starts as any untrained encoder does."""
    return ControlNet(UNet(**unet.settings), condition_channels)


class Lite(nn.Module):
    """ControlNet-lite (section 4.2): one convolution in place of each copied block.

    The first is fed by the encoded condition and a new convolution of x_t, and each of the others
    by the one before. It knows neither the base's weights, nor t, nor the words.
    """

    def __init__(self, unet, condition_channels):
        super().__init__()
        encoder = unet.encoder
        widths = encoder.skip_channels
        self.patch = encoder.patch
        self.condition_encoder = ConditionEncoder(condition_channels, widths[0], encoder.patch)
        self.conv_in = nn.Conv2d(encoder.in_channels * encoder.patch**2, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=stride_of(stage), padding=1)
            for stage, before, after in zip(encoder.stages, widths, widths[1:]))
        self.middle = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.zero_convs = ZeroConvs(widths)

    def encode(self, condition):
        return self.condition_encoder(condition)

    def forward(self, x_t, t, prompt, hint):
        skips = [self.conv_in(F.pixel_unshuffle(x_t, self.patch)) + hint]
        for conv in self.stages:
            skips.append(F.silu(conv(skips[-1])))
        return self.zero_convs(skips, F.silu(self.middle(skips[-1])))


def stride_of(stage):
    return 2 if isinstance(stage[0], Downsample) else 1


class FirstBlocks(ControlNet):
    """A ControlNet that copies the first stages of the encoder alone, without its middle block."""

    def __init__(self, unet, condition_channels, stages):
        super().__init__(unet, condition_channels)
        self.missing = len(self.encoder.stages) - stages
        self.encoder.stages = self.encoder.stages[:stages]
        self.encoder.middle = Blocks()
        self.zero_convs = ZeroConvs(self.encoder.skip_channels[: stages + 1])

    def forward(self, *args, **kwargs):
        control = super().forward(*args, **kwargs)
        nothing = control.middle.new_zeros(1)
        return Control(control.skips + [nothing] * self.missing, nothing)


class MiddleOnly(ControlNet):
    """`only_mid_control` of the authors' code: of all residuals only the middle block's is
    added."""

    def forward(self, *args, **kwargs):
        control = super().forward(*args, **kwargs)
        return Control([control.middle.new_zeros(1)] * len(control.skips), control.middle)


class Unlocked(nn.Module):
    """A ControlNet whose base trains its decoder, too (`sd_locked = False` in the authors'
    code)."""

    def __init__(self, unet, condition_channels):
        super().__init__()
        self.control_net = ControlNet(unet, condition_channels)
        self.unet = freeze(trainable_copy(unet))
        self.unet.decoder.requires_grad_(True)

    def parts(self):
        return self.unet, self.control_net


class LowRank(nn.Module):
    """W + A B, where W stays as it is. A and B have `rank` columns and rows, and A starts at
    zero."""

    def __init__(self, weight, rank=4):
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.a = nn.Parameter(torch.zeros(rows, rank))
        self.b = nn.Parameter(torch.randn(rank, columns) * columns**-0.5)

    def forward(self, weight):
        return weight + (self.a @ self.b).view_as(weight)


def control_lora(unet, condition_channels):
    """Control-LoRA (Stability AI 2023): a ControlNet whose copy learns low-rank changes alone."""
    net = ControlNet(unet, condition_channels)
    net.encoder.requires_grad_(False)
    for module in [*net.encoder.modules()]:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            parametrize.register_parametrization(module, "weight", LowRank(module.weight))
            module.parametrizations.weight.original.requires_grad_(False)
    return net


# -- Other ways to read a condition ------------------------------------------------------------


class Concatenated(ReadsCondition):
    """Fine-tuning: the base trains, and its first convolution reads the condition as more channels.

    The new weights start at zero, so training starts from the base.
    """

    def __init__(self, unet, condition_channels):
        super().__init__(trainable_copy(unet))
        encoder, narrow = self.unet.encoder, self.unet.encoder.conv_in
        more = condition_channels * encoder.patch**2
        wide = nn.Conv2d(narrow.in_channels + more, narrow.out_channels, 3, padding=1)
        with torch.no_grad():  # pixel_unshuffle keeps the pixels of a channel together, x_t's first
            wide.weight.zero_()[:, : narrow.in_channels] = narrow.weight
            wide.bias.copy_(narrow.bias)
        encoder.conv_in = wide.to(narrow.weight.device)
        encoder.in_channels += condition_channels

    def forward(self, x_t, t, prompt, control):
        encoded = self.unet.encoder(torch.cat([x_t, control], dim=1), t, prompt)
        return self.schedule.predict_eps(x_t, self.unet.decoder(*encoded), t)


def from_scratch(unet, condition_channels):
    """The same network without the base's weights: trained from scratch on the condition."""
    return Concatenated(UNet(**unet.settings), condition_channels)


class Adapter(nn.Module):
    """T2I-Adapter (Mou et al. 2023, arXiv 2302.08453): residual blocks that read the condition
    alone.

    It runs once for an image and not at every step. Ours: it adds to what the decoder reads, as a
    ControlNet does, and ends in zero convolutions, so that training starts from the base.
    """

    def __init__(self, unet, condition_channels):
        super().__init__()
        encoder = unet.encoder
        widths = encoder.skip_channels
        self.patch = encoder.patch
        self.conv_in = nn.Conv2d(condition_channels * self.patch**2, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            Downsample(before) if stride_of(stage) == 2 else ResBlock(before, after, 1)
            for stage, before, after in zip(encoder.stages, widths, widths[1:]))
        self.middle = ResBlock(widths[-1], widths[-1], 1)
        self.zero_convs = ZeroConvs(widths)

    def encode(self, condition):
        constant = condition.new_ones(len(condition), 1)  # in place of timestep and prompt
        skips = [self.conv_in(F.pixel_unshuffle(condition, self.patch))]
        for stage in self.stages:
            skips.append(stage(skips[-1], constant))
        return self.zero_convs(skips, self.middle(skips[-1], constant))

    def forward(self, x_t, t, prompt, hint):
        return hint


class ControlNetXS(ReadsCondition):
    """Like ControlNet-XS (Zavadski et al. 2023, arXiv 2312.06573): a thin encoder with feedback.

    It reads the base's features before every stage, and adds to the running base encoder, so that
    neither waits for the other's decoder. Ours: plain convolutions of an eighth of the base's
    width.
    """

    def __init__(self, unet, condition_channels):
        super().__init__(freeze(trainable_copy(unet)))
        encoder = unet.encoder
        widths = encoder.skip_channels
        thin = [max(8, width // 8) for width in widths]
        self.conv_in = nn.Conv2d(condition_channels * encoder.patch**2, thin[0], 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=stride_of(stage), padding=1)
            for stage, before, after in zip(encoder.stages, thin, thin[1:]))
        self.read = nn.ModuleList(nn.Conv2d(wide, narrow, 1) for wide, narrow in zip(widths, thin))
        self.write = nn.ModuleList(zero_conv(narrow, wide) for wide, narrow in zip(widths, thin))

    def forward(self, x_t, t, prompt, control):
        encoder = self.unet.encoder
        emb, words = encoder.embed(t, prompt)
        h = encoder.first(x_t)
        own = self.conv_in(F.pixel_unshuffle(control, encoder.patch))
        skips = []
        for i, write in enumerate(self.write):
            if i > 0:
                own = self.stages[i - 1](F.silu(own))
                h = encoder.stages[i - 1](h, emb, words)
            own = own + self.read[i](h)
            h = h + write(F.silu(own))
            skips.append(h)
        v = self.unet.decoder(skips, encoder.middle(h, emb, words), emb, words)
        return self.schedule.predict_eps(x_t, v, t)


class ControlNeXt(ReadsCondition):
    """Like ControlNeXt (Peng et al. 2024, arXiv 2408.06070): few layers, and no zero convolutions.

    The features of the condition are brought to the mean and the spread of the base's first feature
    map (cross normalisation) and added there, scaled by 0.2. Ours: the base stays locked.
    """

    def __init__(self, unet, condition_channels):
        super().__init__(freeze(trainable_copy(unet)))
        encoder = unet.encoder
        self.patch = encoder.patch
        self.conv_in = nn.Conv2d(condition_channels * self.patch**2, encoder.channels, 3, padding=1)
        self.block = ResBlock(encoder.channels, encoder.channels, 1)
        self.conv_out = nn.Conv2d(encoder.channels, encoder.channels, 1)

    def forward(self, x_t, t, prompt, control):
        encoder = self.unet.encoder
        own = self.conv_in(F.pixel_unshuffle(control, self.patch))
        own = self.conv_out(self.block(own, own.new_ones(len(own), 1)))
        h, every = encoder.first(x_t), (1, 2, 3)
        own = (own - own.mean(every, keepdim=True)) / (own.std(every, keepdim=True) + 1e-6)
        h = h + 0.2 * (own * h.std(every, keepdim=True) + h.mean(every, keepdim=True))
        emb, words = encoder.embed(t, prompt)
        skips, middle = encoder.rest(h, emb, words)
        return self.schedule.predict_eps(x_t, self.unet.decoder(skips, middle, emb, words), t)


def base_again(unet, condition_channels):
    """The base itself, trained on: for styles."""
    return trainable_copy(unet)


def new_base(unet, condition_channels):
    """Another base of the same shape, trained from scratch."""
    return UNet(**unet.settings)


GAUSSIAN = {scale: functools.partial(gaussian, scale=scale) for scale in (0.1, 1.0, 3.0)}
