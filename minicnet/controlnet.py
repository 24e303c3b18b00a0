"""ControlNet: Zhang, Rao, Agrawala, "Adding Conditional Control to Text-to-Image Diffusion Models", ICCV 2023,
arXiv 2302.05543. Equations, figures and section numbers below are that paper's.

The base network is locked. A copy of its encoder is trained to read a condition (edges, colours, ...), and speaks to
the base through zero convolutions only: 1x1 convolutions that start at zero. So training starts from exactly the base.

Why do zero weights learn at all? For y = W x + b:   dy/dW = x,   dy/db = 1,   dy/dx = W = 0.   The weight's gradient
is not zero unless x is. After one step, then, W is no longer zero, and gradient also flows through it to x.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn


def zero_conv(in_channels, out_channels=None):
    """Z(.; Θz): a 1x1 convolution whose weight and bias start at zero. out_channels: as in_channels unless given."""
    conv = nn.Conv2d(in_channels, out_channels or in_channels, kernel_size=1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


def freeze(module):
    """Locks a trained module, Θ, and returns it: eval mode, no parameter asks for a gradient or keeps one.

    Gradient still flows through it, from a decoder's output to the residuals that a control adds before it.
    """
    module.zero_grad(set_to_none=True)
    return module.eval().requires_grad_(False)


def trainable_copy(module):
    """Θc: a copy of a trained module that shares no memory with it and trains, even if the original is frozen."""
    return copy.deepcopy(module).train().requires_grad_(True)


class ControlledBlock(nn.Module):
    """Any block that keeps the shape of its feature map, with a condition added to it (Fig. 2, Eq. 2):

        y_c = F(x; Θ) + Z(F(x + Z(c; Θz1); Θc); Θz2)

    block: F, trained, taking x (B, channels, H, W) and perhaps more; it becomes the locked half. channels: of x.
    condition_channels: of c (B, condition_channels, H, W); as x unless given. At the start y_c = F(x; Θ), bit for bit.

    This is the idea on a single block. ControlNet, below, does not consist of such blocks: it takes the whole encoder
    for F, with one Z(c) at its entrance and a zero convolution at each of its outputs.
    """

    def __init__(self, block, channels, condition_channels=None):
        super().__init__()
        self.copy = trainable_copy(block)
        self.locked = freeze(block)
        self.zero_in = zero_conv(condition_channels or channels, channels)
        self.zero_out = zero_conv(channels)

    def forward(self, x, c, *args):
        return self.locked(x, *args) + self.zero_out(self.copy(x + self.zero_in(c), *args))

    def train(self, mode=True):
        """Trains or evaluates the copy; the locked half stays in eval mode, or dropout in it would change the base."""
        super().train(mode)
        self.locked.eval()
        return self


@dataclass(eq=False)
class Control:
    """What one ControlNet, or a sum of several, adds to the base: a residual for each skip and one for the middle.

    `a + b` and `sum([a, b])` add conditions up, with no weights (section 3.4); `s * a` sets the strength of one.
    """

    skips: list  # of (B, C, H, W), the first convolution's first
    middle: torch.Tensor  # (B, C, H, W)

    def __add__(self, other):
        if other == 0:  # sum([a, b]) starts from 0
            return self
        skips = [a + b for a, b in zip(self.skips, other.skips, strict=True)]
        return Control(skips, self.middle + other.middle)

    def __mul__(self, scale):
        return Control([scale * skip for skip in self.skips], scale * self.middle)

    __radd__, __rmul__ = __add__, __mul__


class ConditionEncoder(nn.Sequential):
    """A small network that brings a condition to the size of the base's first feature map (section 3.2, Eq. 4).

    (B, condition_channels, H, W) -> (B, channels, H/patch, W/patch): pixels are folded as the base folds them, then
    three 3x3 convolutions with SiLU, then a zero convolution, the Z(c; Θz1) of Eq. 2. (The paper has four 4x4
    convolutions of stride 2; its published code seven 3x3 ones, three of them of stride 2, and the zero convolution.)
    """

    def __init__(self, condition_channels, channels, patch):
        layers, width = [nn.PixelUnshuffle(patch)], condition_channels * patch**2
        for next_width in (channels // 2, channels // 2, channels):
            layers += [nn.Conv2d(width, next_width, 3, padding=1), nn.SiLU()]
            width = next_width
        super().__init__(*layers, zero_conv(channels))
        self.condition_channels = condition_channels


class ControlNet(nn.Module):
    """A trainable copy of a UNet's encoder, tied to the UNet by zero convolutions (Fig. 3). It has no decoder.

    The text encoder is copied with the encoder. (Stable Diffusion's is locked, and shared by base and copy.)

    unet: the base; its encoder is copied with the weights that it has, so train the base first. condition_channels: 1
    for edges, 3 for colours. The base is neither changed nor kept: freeze it yourself (`freeze`).
    """

    def __init__(self, unet, condition_channels=1):
        super().__init__()
        self.encoder = trainable_copy(unet.encoder)
        self.condition_encoder = ConditionEncoder(condition_channels, self.encoder.channels, self.encoder.patch)
        self.zero_skips = nn.ModuleList(zero_conv(channels) for channels in self.encoder.skip_channels)
        self.zero_middle = zero_conv(self.encoder.skip_channels[-1])

    def forward(self, x_t, t, prompt, condition=None, *, hint=None):
        """What to add to the base, given the same x_t (B, C, H, W), t (B,) and prompt (B, L) as it, and a condition.

        condition: (B, condition_channels, H, W) in [0, 1], or, instead, hint: what `encode` made of it, so that a
        sampler can do that once and not at every step. Returns a Control for `unet(x_t, t, prompt, control=...)`.
        """
        self.encoder.check(x_t, t, prompt)
        if hint is None:
            hint = self.encode(condition)
        first = self.encoder.first(x_t)  # (B, C, h, w)
        if hint.shape != first.shape:
            raise ValueError(f"the condition, encoded to {tuple(hint.shape)}, does not fit x_t, encoded to "
                             f"{tuple(first.shape)}: both must have the same batch, height and width")
        skips, middle = self.encoder.rest(first + hint, *self.encoder.embed(t, prompt))
        return Control([zero(skip) for zero, skip in zip(self.zero_skips, skips)], self.zero_middle(middle))

    def encode(self, condition):
        """The condition, (B, condition_channels, H, W) in [0, 1], at the size of the copy's first feature map.

        Raises ValueError for another number of channels, or values outside [0, 1] (on a GPU, which would have to wait
        for that look, only for the former).
        """
        channels, patch = self.condition_encoder.condition_channels, self.encoder.patch
        shape = () if condition is None else condition.shape
        if len(shape) != 4 or shape[1] != channels or shape[2] % patch or shape[3] % patch:
            raise ValueError(f"conditions here are of shape (B, {channels}, H, W), H and W multiples of {patch}, "
                             f"but this is {tuple(shape) or None}")
        if condition.device.type == "cpu" and not (condition.min() >= 0 and condition.max() <= 1):  # refuses NaN, too
            raise ValueError("a condition must lie in [0, 1]: edges are 0 or 1, colours are not in [-1, 1] here")
        return self.condition_encoder(condition)


def controlled(unet, controls=()):
    """eps_theta(x_t, t, c_t, c_f) of Eq. 5: the base under a sum of ControlNets, with no weights but the scales.

        control = Σ_i s_i Z_i(x_t, t, c_t, c_i)     (section 3.4)

    controls: triples (control_net, condition, scale), scale a number. Each condition is encoded once, here. Returns an
    `eps_model(x_t, t, prompt)`. Where x_t holds a multiple of the conditions' batch, as in guidance, which asks with
    and without prompt at once, the conditions are repeated.
    """
    hints = [net.encode(condition) for net, condition, _ in controls]

    def eps_model(x_t, t, prompt):
        parts = [scale * net(x_t, t, prompt, hint=hint.repeat(len(x_t) // len(hint), 1, 1, 1))
                 for (net, _, scale), hint in zip(controls, hints)]
        return unet(x_t, t, prompt, control=sum(parts) if parts else None)

    return eps_model
