"""A condition as more channels of a network's input: what one does who has no ControlNet.

The first convolution of a trained UNet gets input channels for the condition, whose weights start at zero. So training
starts from the base here, too (up to rounding: the sums are longer).
"""

import torch
from torch import nn

from minicnet.controlnet import trainable_copy


class ConcatenatedUNet(nn.Module):
    """A trainable copy of a UNet whose first convolution also reads a condition. It is called as a UNet is.

    unet: the base, trained; it is neither changed nor kept. condition_channels: 1 for edges.
    """

    def __init__(self, unet, condition_channels=1):
        super().__init__()
        self.unet = trainable_copy(unet)
        encoder, narrow = self.unet.encoder, self.unet.encoder.conv_in
        more = condition_channels * encoder.patch**2
        wide = nn.Conv2d(narrow.in_channels + more, narrow.out_channels, narrow.kernel_size, padding=narrow.padding)
        wide.to(narrow.weight.device)
        with torch.no_grad():  # pixel_unshuffle keeps the pixels of a channel together: those of x_t come first
            wide.weight[:, : narrow.in_channels] = narrow.weight
            wide.weight[:, narrow.in_channels :] = 0
            wide.bias.copy_(narrow.bias)
        encoder.conv_in = wide
        encoder.in_channels += condition_channels

    def forward(self, x_t, t, prompt, control):
        """UNet.forward, with the condition itself, (B, condition_channels, H, W), in the place of a Control.

        The encoder reads it beside x_t. The share of x_t that is added in the end remains one of x_t alone.
        """
        skips, middle, emb, words = self.unet.encoder(torch.cat([x_t, control], dim=1), t, prompt)
        return self.unet.decoder(skips, middle, emb, words) + self.unet.share(emb)[:, :, None, None] * x_t


class ConditionItself:
    """Stands where `controlled` wants a ControlNet, and hands the condition on to a base that reads it itself."""

    def encode(self, condition):
        return condition

    def __call__(self, x_t, t, prompt, hint):
        return hint
