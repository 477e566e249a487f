"""ImprovedUNet: inverted bottlenecks instead of 3x3 convolutions, skips that are added.

Depthwise separable convolutions: Chollet 2017, arXiv 1610.02357. A 7x7 before a fourfold expansion: Liu 2022,
arXiv 2201.03545. Narrow blocks with a linear output: Sandler 2018, arXiv 1801.04381.
"""

from torch import nn

from models.layers import Add, InvertedBottleneck
from models.unet import UNet


class ImprovedUNet(UNet):
    """(B, in_channels, H, W) -> logits (B, out_channels, H, W); 3.1 million parameters at n_filters=32."""

    def encoder(self, in_channels: int, out_channels: int) -> nn.Module:
        return nn.Sequential(
            InvertedBottleneck(in_channels, 4 * out_channels, out_channels),
            InvertedBottleneck(out_channels, 4 * out_channels, out_channels),
        )

    def middle(self, channels: int) -> nn.Module:
        return self.encoder(channels, channels)

    def join(self, channels: int) -> nn.Module:
        return Add()

    def decoder(self, in_channels: int, out_channels: int) -> nn.Module:
        return nn.Sequential(
            InvertedBottleneck(in_channels, 4 * in_channels, out_channels),
            InvertedBottleneck(out_channels, 4 * out_channels, out_channels),
        )
