"""What CustomCNN, AlexNet and VGG16 share: a list of convolutions, then a list of linear layers."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from models.base import Model
from models.layers import RELU, initialised
from models.quick_cnn import GrayConv2d


class Conv(NamedTuple):
    """One convolution, as a line of an architecture's table."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    pool: bool = False  # a 2x2 max-pool behind it


class CNN(Model):
    """`features`, a stack of convolutions, and `classifier`, a stack of linear layers.

    Args:
        convs: the convolutions.
        block: makes one of them, with all that stands before its pool: called with its input channels and its line.
        widths: of the hidden linear layers.
        activation: behind each hidden linear layer.
        dropout: its share, behind each of the same.

    Raises:
        ValueError: `image_size` is too small for the convolutions, or another number makes no network.
    """

    def __init__(
        self, convs: tuple[Conv, ...], block: Callable[[int, Conv], nn.Module], widths: tuple[int, ...],
        activation: type[nn.Module], dropout: float, in_channels: int, num_classes: int, image_size: int,
    ) -> None:  # fmt: skip
        super().__init__()
        if min(in_channels, num_classes) < 1 or not 0 <= dropout < 1:
            raise ValueError("in_channels and num_classes must be positive, dropout at least 0 and less than 1.")
        if (side := _side(convs, image_size)) < 1:
            smallest = next(size for size in range(image_size, 10_000) if _side(convs, size) >= 1)
            raise ValueError(f"{type(self).__name__} needs an image_size of {smallest} or more, not {image_size}.")

        layers: list[nn.Module] = []
        channels = in_channels
        for conv in convs:
            layers.append(block(channels, conv))
            layers += [nn.MaxPool2d(2)] if conv.pool else []
            channels = conv.channels
        self.features = nn.Sequential(*layers)

        layers, width = [nn.Flatten()], channels * side**2
        for wider in widths:
            layers += [nn.Linear(width, wider), activation(), nn.Dropout(dropout)]
            width = wider
        self.classifier = nn.Sequential(*layers, nn.Linear(width, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, in_channels, image_size, image_size) -> logits (B, num_classes)."""
        return self.classifier(self.features(images))


def _side(convs: tuple[Conv, ...], size: int) -> int:
    """Pixels along a side of the last feature map; 0 or less where the image is too small."""
    for conv in convs:
        size = (size + 2 * conv.padding - conv.kernel) // conv.stride + 1
        size = size // 2 if conv.pool else size
        if size < 1:
            return 0
    return size


def plain(in_channels: int, conv: Conv) -> nn.Module:
    """Convolution and ReLU; a deep stack would not learn from PyTorch's own start."""
    convolution = GrayConv2d(in_channels, conv.channels, conv.kernel, conv.stride, conv.padding)
    return nn.Sequential(initialised(convolution, gain=RELU), nn.ReLU(inplace=True))
