"""The small pieces that the three U-Nets are made of; AlexNet and VGG16 share their initialisation."""

import torch
from torch import nn
from torch.nn import functional as F

from models.quick_conv import QuickConv2d

RELU = 2**0.5  # the gain that makes up for the half that a ReLU removes (He 2015, arXiv 1502.01852)


def initialised(conv: nn.Conv2d, gain: float = 1.0) -> nn.Conv2d:
    """The same convolution with weights from N(0, gain^2 / fan_in) and zero bias.

    So an input of unit variance leaves with variance gain^2; take `gain=RELU` where a ReLU follows.
    """
    fan_in = conv.weight[0].numel()
    nn.init.normal_(conv.weight, std=gain / fan_in**0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each with a ReLU: (B, in, H, W) -> (B, out, H, W) (arXiv 1505.04597)."""

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int) -> None:
        super().__init__(
            initialised(nn.Conv2d(in_channels, mid_channels, 3, padding=1), gain=RELU),
            nn.ReLU(inplace=True),
            initialised(nn.Conv2d(mid_channels, out_channels, 3, padding=1), gain=RELU),
            nn.ReLU(inplace=True),
        )


class InvertedBottleneck(nn.Sequential):
    """Look around in each channel, then think in each pixel: (B, in, H, W) -> (B, out, H, W).

    The depthwise 7x7 (arXiv 1610.02357) and the batch norm work on the few input channels; the pointwise
    convolutions widen to the hidden channels and come back (arXiv 1801.04381, 2201.03545). The output is
    linear: no ReLU. The depthwise bias has no effect in training, where the batch norm subtracts it again.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__(
            initialised(QuickConv2d(in_channels, in_channels, 7, padding=3, groups=in_channels)),
            nn.BatchNorm2d(in_channels),
            initialised(QuickConv2d(in_channels, hidden_channels, 1), gain=RELU),
            nn.ReLU(inplace=True),
            initialised(QuickConv2d(hidden_channels, out_channels, 1)),
        )


def upsample(x: torch.Tensor) -> torch.Tensor:
    """Twice the size, bilinear, corners on corners: (B, C, H, W) -> (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class Concatenate(nn.Module):
    """Sets decoder feature and skip side by side: (B, C, H, W), (B, C, 2H, 2W) -> (B, 2C, 2H, 2W)."""

    def forward(self, lower: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return torch.cat([upsample(lower), skip], dim=1)


class Add(nn.Module):
    """Adds decoder feature and skip: (B, C, H, W), (B, C, 2H, 2W) -> (B, C, 2H, 2W)."""

    def forward(self, lower: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return upsample(lower) + skip
