"""ClassicUNet: 3x3 convolutions, ReLU, skips that are concatenated.

Ronneberger, Fischer, Brox 2015, arXiv 1505.04597. Here the convolutions are padded, upsampling is bilinear and has no
convolution of its own: the last convolution of a level halves the channels instead (at the bottom, 16 n becomes 8 n).
"""

from torch import nn

from models.layers import Concatenate, DoubleConv
from models.unet import UNet


class ClassicUNet(UNet):
    """(B, in_channels, H, W) -> logits (B, out_channels, H, W); 5.5 million parameters at n_filters=32."""

    def encoder(self, in_channels: int, out_channels: int) -> nn.Module:
        return DoubleConv(in_channels, out_channels, out_channels)

    def middle(self, channels: int) -> nn.Module:
        return DoubleConv(channels, 2 * channels, channels)

    def join(self, channels: int) -> nn.Module:
        return Concatenate()

    def decoder(self, in_channels: int, out_channels: int) -> nn.Module:
        return DoubleConv(2 * in_channels, in_channels, out_channels)
