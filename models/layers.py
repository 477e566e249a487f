"""The small pieces that the three U-Nets are made of."""

import torch
from torch import nn
from torch.nn import functional as F


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    gain: float = 1.0,
    stride: int = 1,
    groups: int = 1,
) -> nn.Conv2d:
    """A convolution that keeps the size (divided by `stride`), initialised for what follows it.

    The weights are drawn from N(0, gain^2 / fan_in), the bias is zero: inputs of unit variance leave with
    variance gain^2. Take `gain=RELU` where a ReLU follows (He 2015, arXiv 1502.01852).
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups)
    fan_in = conv.weight[0].numel()
    nn.init.normal_(conv.weight, std=gain / fan_in**0.5)
    nn.init.zeros_(conv.bias)
    return conv


RELU = 2**0.5  # the gain that makes up for the half that a ReLU removes


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each with a ReLU: (B, in, H, W) -> (B, out, H, W) (arXiv 1505.04597)."""

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int) -> None:
        super().__init__(
            conv2d(in_channels, mid_channels, 3, gain=RELU),
            nn.ReLU(inplace=True),
            conv2d(mid_channels, out_channels, 3, gain=RELU),
            nn.ReLU(inplace=True),
        )


class InvertedBottleneck(nn.Sequential):
    """Look around with a depthwise 7x7, then think in each pixel: (B, in, H, W) -> (B, out, H, W).

    The depthwise convolution (arXiv 1610.02357) and the batch norm work on the few input channels; the two
    pointwise convolutions widen to `hidden` channels and come back (arXiv 1801.04381, 2201.03545). The output
    is linear: no ReLU. The depthwise bias only acts in eval mode; in training the batch norm subtracts it.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__(
            conv2d(in_channels, in_channels, 7, groups=in_channels),
            nn.BatchNorm2d(in_channels),
            conv2d(in_channels, hidden_channels, 1, gain=RELU),
            nn.ReLU(inplace=True),
            conv2d(hidden_channels, out_channels, 1),
        )


def upsample(x: torch.Tensor) -> torch.Tensor:
    """Bilinear, corners on corners: (B, C, H, W) -> (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class Concatenate(nn.Module):
    """Joins a decoder feature and a skip side by side: (B, C, H, W), (B, C, 2H, 2W) -> (B, 2C, 2H, 2W)."""

    def forward(self, lower: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return torch.cat([upsample(lower), skip], dim=1)


class Add(nn.Module):
    """Joins a decoder feature and a skip by their sum: (B, C, H, W), (B, C, 2H, 2W) -> (B, C, 2H, 2W)."""

    def forward(self, lower: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return upsample(lower) + skip
