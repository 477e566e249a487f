"""CustomCNN: four convolutions with batch norm and Mish, then three linear layers.

Batch norm: Ioffe 2015, arXiv 1502.03167. Mish: Misra 2019, arXiv 1908.08681. Skip connections: He 2015, arXiv
1512.03385.
"""

from functools import partial

import torch
from torch import nn

from models.cnn import CNN, Conv
from models.quick_cnn import GrayConv2d, QuickMish

CONVS = (
    Conv(96, 9, stride=4, pool=True),
    Conv(256, 5, pool=True),
    Conv(384, 3, padding=1),
    Conv(256, 3, padding=1, pool=True),
)


class CustomCNN(CNN):
    """(B, in_channels, image_size, image_size) -> logits (B, num_classes); 3.0 million parameters.

    Args:
        residual: add a skip connection around each convolution (a 1x1 convolution, since the channels change).
    """

    def __init__(
        self, in_channels: int = 3, num_classes: int = 4, image_size: int = 128, dropout: float = 0.4,
        residual: bool = False,
    ) -> None:  # fmt: skip
        block = partial(ConvBlock, residual=residual)
        super().__init__(CONVS, block, (512, 128), nn.Mish, dropout, in_channels, num_classes, image_size)


class ConvBlock(nn.Module):
    """Convolution, batch norm, (plus the input,) Mish: (B, in, H, W) -> (B, channels, H', W')."""

    def __init__(self, in_channels: int, conv: Conv, residual: bool) -> None:
        super().__init__()
        self.conv = GrayConv2d(in_channels, conv.channels, conv.kernel, conv.stride, conv.padding)
        self.norm = nn.BatchNorm2d(conv.channels)
        self.skip = nn.Conv2d(in_channels, conv.channels, 1, bias=False) if residual else None
        self.margin = conv.kernel // 2 - conv.padding  # pixels that the convolution loses on each side
        self.stride = conv.stride
        self.activation = QuickMish(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm(self.conv(x))
        if self.skip is not None:
            height, width = x.shape[-2:]
            # every n-th pixel, then 1x1: see AttentionGate on 1x1 convolutions with a stride
            rows, columns = (slice(self.margin, side - self.margin, self.stride) for side in (height, width))
            out = out + self.skip(x[..., rows, columns])
        return self.activation(out)
