"""The skeleton shared by ClassicUNet, ImprovedUNet and AttentionUNet.

Four levels down, a bottleneck, four levels up. A subclass says what the blocks are:

    images -> encoder ------------------> join -> decoder -> head -> logits
                 | pool           upsample |
              encoder --------------> join -> decoder
                 | pool           upsample |
                ...     bottleneck        ...

Ronneberger, Fischer, Brox 2015, arXiv 1505.04597.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from models.base import Model
from models.layers import initialised

LEVELS = 4


class UNet(Model):
    """The skeleton; a subclass overrides `encoder`, `middle`, `join` and `decoder`, which make one block each.

    in_channels: modalities of an image. out_channels: masks. n_filters: channels of the first level, doubled
    at each of the next three. Raises ValueError when one of them is not positive.
    """

    def __init__(self, in_channels: int = 4, out_channels: int = 3, n_filters: int = 32) -> None:
        super().__init__()
        if min(in_channels, out_channels, n_filters) < 1:
            raise ValueError("in_channels, out_channels and n_filters must be positive.")

        widths = [n_filters * 2**level for level in range(LEVELS)]  # n, 2n, 4n, 8n
        down = pairwise([in_channels, *widths])
        up = pairwise([*reversed(widths), n_filters])  # the last level keeps its width

        self.encoders = nn.ModuleList(self.encoder(c_in, c_out) for c_in, c_out in down)
        self.bottleneck = self.middle(widths[-1])
        self.joins = nn.ModuleList(self.join(c) for c in reversed(widths))
        self.decoders = nn.ModuleList(self.decoder(c_in, c_out) for c_in, c_out in up)
        self.head = initialised(nn.Conv2d(n_filters, out_channels, 1))

    def encoder(self, in_channels: int, out_channels: int) -> nn.Module:
        """(B, in, H, W) -> (B, out, H, W)."""
        raise NotImplementedError

    def middle(self, channels: int) -> nn.Module:
        """(B, C, H, W) -> (B, C, H, W), at the bottom."""
        raise NotImplementedError

    def join(self, channels: int) -> nn.Module:
        """Called with the lower decoder feature (B, C, H, W) and the skip (B, C, 2H, 2W)."""
        raise NotImplementedError

    def decoder(self, in_channels: int, out_channels: int) -> nn.Module:
        """What `join(in_channels)` returns -> (B, out, H, W)."""
        raise NotImplementedError

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, in_channels, H, W) of any size -> logits (B, out_channels, H, W)."""
        height, width = images.shape[-2:]
        x = pad(images, multiple=2**LEVELS)

        skips = []
        for encoder in self.encoders:
            x = encoder(x)  # (B, n * 2^level, H / 2^level, W / 2^level)
            skips.append(x)
            x = F.max_pool2d(x, 2)

        x = self.bottleneck(x)  # (B, 8n, H / 16, W / 16)

        for join, decoder in zip(self.joins, self.decoders, strict=True):
            x = join(x, skips.pop())
            x = decoder(x)
        return self.head(x)[..., :height, :width]


def pad(images: torch.Tensor, multiple: int) -> torch.Tensor:
    """Zeros at the right and the bottom, until both sides are multiples: (B, C, H, W) -> (B, C, H', W').

    Zeros, because that is the background of a normalised slice and what the convolutions see beyond the
    edge anyway. Images that fit are returned as they are.
    """
    bottom, right = (-size % multiple for size in images.shape[-2:])
    return F.pad(images, (0, right, 0, bottom)) if bottom or right else images
