"""ControlNet: a trained base, locked, and a trainable copy of its encoder that reads a condition.

The copy reads edges, colours or another map. It is tied to the base by zero convolutions alone, 1x1
convolutions whose weights and biases start at zero, so training starts from exactly the base. A
random connection would instead add noise to the base's features from the first step on. The base
is locked so that it keeps what it learned from much data, whatever the copy learns from little. The
encoder is copied because its features describe images already (section 3.1).

Why do zero weights learn at all? For y = W x + b,

    dy/dW = x,    dy/db = 1,    dy/dx = W = 0.

The gradient of W does not contain W, so W leaves zero in the first step, unless x is zero or no
gradient reaches y, as over an untrained base, whose last layer is zero. From then on, gradients
also flow through W to whatever computed x. Two zero convolutions lie on the way from the condition
to the base, one before the copy and one after it, so that the first gradients arrive in this order:

    step 1    the zero convolutions at the outputs
    step 2    the copy, and the zero convolution at the end of the condition encoder
    step 3    the rest of the condition encoder

Paper: Zhang, Rao, Agrawala, "Adding Conditional Control to Text-to-Image Diffusion Models", ICCV
2023, https://arxiv.org/abs/2302.05543. Equations, figures and sections below are that paper's.
"""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn


def zero_conv(in_channels, out_channels=None):
    """Return Z(.; Θz), a 1x1 convolution whose weight and bias are zero.

    out_channels: the same as in_channels unless given.
    """
    conv = nn.Conv2d(in_channels, out_channels or in_channels, kernel_size=1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


def freeze(module):
    """Lock a trained module, whose weights are Θ: eval mode, requires_grad off, gradients cleared.

    Returns the module. Gradients still flow through its operations, from the decoder's output to
    added residuals.
    """
    module.zero_grad(set_to_none=True)
    return module.eval().requires_grad_(False)


def trainable_copy(module):
    """Return a deep copy of a module, with weights Θc, that trains even if the module is locked."""
    return copy.deepcopy(module).train().requires_grad_(True)


class ControlledBlock(nn.Module):
    """A condition added to any block that keeps the shape of its feature map (Fig. 2, Eq. 2):

        y_c = F(x; Θ) + Z(F(x + Z(c; Θz1); Θc); Θz2)

    This is the idea on a single block. The ControlNet below is not made of such blocks: it takes
    the whole encoder as F, with one Z(c) at the entrance and one zero convolution at each output.

    block: F, already trained; it takes x (B, channels, H, W) and perhaps more arguments, and is
    locked here. condition_channels: those of c (B, condition_channels, H, W), as many as x has
    unless given. At the start y_c = F(x; Θ), bit for bit.
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
        """Set the mode of the copy. The locked half stays in eval mode, and acts as before."""
        super().train(mode)
        self.locked.eval()
        return self


@dataclass(eq=False)
class Control:
    """The residuals that one ControlNet, or a sum of several, adds to the base.

    `a + b` and `sum([a, b])` add the residuals of several conditions, without weights (section
    3.4). `s * a` sets the strength of one.
    """

    skips: list  # of (B, C, H, W), in the encoder's order
    middle: torch.Tensor  # (B, C, H, W)

    def __add__(self, other):
        if other == 0:  # sum([a, b]) starts from 0
            return self
        skips = [a + b for a, b in zip(self.skips, other.skips, strict=True)]
        return Control(skips, self.middle + other.middle)

    def __mul__(self, scale):
        return Control([scale * skip for skip in self.skips], scale * self.middle)

    __radd__ = __add__
    __rmul__ = __mul__


class ZeroConvs(nn.Module):
    """One zero convolution for each skip of an encoder, and one for its middle block (Fig. 3).

    skip_channels: the widths of the skips; the middle block is as wide as the last.
    """

    def __init__(self, skip_channels):
        super().__init__()
        self.skips = nn.ModuleList(zero_conv(channels) for channels in skip_channels)
        self.middle = zero_conv(skip_channels[-1])

    def forward(self, skips, middle):
        residuals = [zero(skip) for zero, skip in zip(self.skips, skips, strict=True)]
        return Control(residuals, self.middle(middle))


class ConditionEncoder(nn.Sequential):
    """Bring a condition to the size of the base's first feature map (section 3.2, Eq. 4).

    (B, condition_channels, H, W) -> (B, channels, H/patch, W/patch). Pixels are folded as the base
    folds them. The last convolution is Z(c; Θz1) of Eq. 2. The paper has four 4x4 convolutions of
    stride 2 before it; its published code has seven 3x3 ones, three of them of stride 2.
    """

    outer_layers = ("1",)  # the first convolution, trained by AdamW (see training.py)

    def __init__(self, condition_channels, channels, patch):
        super().__init__(
            nn.PixelUnshuffle(patch),
            nn.Conv2d(condition_channels * patch**2, channels // 2, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels // 2, channels // 2, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels // 2, channels, 3, padding=1),
            nn.SiLU(),
            zero_conv(channels),
        )
        self.condition_channels = condition_channels


class ControlNet(nn.Module):
    """The trainable half: a copy of a UNet's encoder, and the zero convolutions at it (Fig. 3).

    unet: the base. Its encoder is copied with the weights that it has now, so train it first. The
    base itself is neither kept nor changed: lock it with `freeze`. condition_channels: 1 for edges,
    3 for colours.

    The text encoder is part of the encoder and is copied with it. (Stable Diffusion's is locked,
    and the base and the copy share it.)
    """

    def __init__(self, unet, condition_channels=1):
        super().__init__()
        self.encoder = trainable_copy(unet.encoder)
        self.condition_encoder = ConditionEncoder(
            condition_channels, self.encoder.channels, self.encoder.patch)
        self.zero_convs = ZeroConvs(self.encoder.skip_channels)

    def forward(self, x_t, t, prompt, condition=None, *, hint=None):
        """Return the Control to add to the base, which is given the same x_t, t and prompt.

        x_t: (B, C, H, W); t: (B,); prompt: (B, L); condition: (B, condition_channels, H, W) in [0,
        1]. hint: the encoded condition, from `encode`, in place of the condition; a sampler encodes
        once instead of at every step. Raises ValueError for shapes that do not fit, and as `encode`
        does; values of t are checked by the base.
        """
        self.encoder.check(x_t, t, prompt)
        if hint is None:
            hint = self.encode(condition)
        first = self.encoder.first(x_t)  # (B, channels, h, w)
        if hint.shape != first.shape:
            raise ValueError(f"the condition, encoded to {tuple(hint.shape)}, does not fit x_t, "
                             f"encoded to {tuple(first.shape)}: batch, height and width must agree")
        skips, middle = self.encoder.rest(first + hint, *self.encoder.embed(t, prompt))
        return self.zero_convs(skips, middle)

    def encode(self, condition):
        """Encode a condition: (B, condition_channels, H, W) in [0, 1] -> (B, channels, h, w).

        Raises ValueError for another shape, and for values outside [0, 1] or NaN. On a GPU the
        values are not checked, because the program would have to wait for them.
        """
        channels, patch = self.condition_encoder.condition_channels, self.encoder.patch
        shape = () if condition is None else tuple(condition.shape)
        if len(shape) != 4 or shape[1] != channels or shape[2] % patch or shape[3] % patch:
            raise ValueError(f"the condition must be (B, {channels}, H, W), with H and W multiples "
                             f"of {patch}, but is {shape or None}")
        if condition.is_cpu and not (condition.min() >= 0 and condition.max() <= 1):
            raise ValueError("the condition must lie in [0, 1]: edges are 0 or 1, and colours run "
                             "from 0 to 1, although images run from -1 to 1")
        return self.condition_encoder(condition)


class Conditioning(NamedTuple):
    """A control network with its condition, its strength, and when it acts while sampling.

    net: a ControlNet, or any module with `encode(condition) -> hint` and
    `forward(x_t, t, prompt, hint=hint) -> Control`. condition: (B, K, H, W) in [0, 1]. scale: the
    strength, which multiplies the residuals; controls are trained at 1. start, end: fractions of
    the way from noise to image; the control acts from start until before end, and to the last step
    if end is 1.
    """

    net: nn.Module
    condition: torch.Tensor
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def acts_at(self, t, T):
        """Return whether the control acts at the timesteps t (B,), which are equal in sampling."""
        if self.start == 0 and self.end == 1:
            return True  # without reading t, which would make the program wait for a GPU
        done = 1 - t[0].item() / (T - 1)  # 0 at the first step of sampling, 1 at the last
        return self.start <= done and (done < self.end or self.end == 1)


def controlled(unet, prompt, controls=()):
    """Return the base under a prompt, with its controls, as an eps_model(x_t, t).

    This is eps_theta(x_t, t, c_t, c_f) of Eq. 5, where c_t is the prompt (its t stands for text).
    To what the base's decoder reads, the controls add

        Σ_k s_k ControlNet_k(x_t, t, c_t, c_k),    c_k the k-th condition, s_k its strength,

    which is the plain sum of section 3.4 where each s_k is 1. prompt: (B, L). controls:
    Conditionings, or triples (net, condition, scale). Each condition is encoded once, here. Where
    no control acts, the result is the base's, bit for bit.
    """
    controls = [Conditioning(*control) for control in controls]
    hints = [control.net.encode(control.condition) for control in controls]

    def eps_model(x_t, t):
        acting = [control.scale * control.net(x_t, t, prompt, hint=hint)
                  for control, hint in zip(controls, hints)
                  if control.acts_at(t, len(unet.schedule))]
        return unet(x_t, t, prompt, control=sum(acting) if acting else None)

    return eps_model
