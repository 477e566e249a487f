"""The skeleton shared by ClassicUNet, ImprovedUNet and AttentionUNet.

Four levels down, a bottleneck, four levels up; what a level does is left to the subclass:

    image -> encoder --------------- join -> decoder -> head -> logits
                pool               upsample
                  encoder --- join -> decoder
                     ...  bottleneck  ...

Ronneberger, Fischer, Brox 2015, arXiv 1505.04597.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from models.layers import conv2d

LEVELS = 4  # each halves the size


class UNet(nn.Module):
    """A U-Net whose blocks are made by the four methods that a subclass overrides.

    Level i of the encoder has n_filters * 2^i channels. Images of any size: they are padded to a multiple of
    16 and the logits are cropped back.
    """

    def __init__(self, in_channels: int = 4, out_channels: int = 3, n_filters: int = 32) -> None:
        """Raises ValueError when a number is not positive."""
        super().__init__()
        if min(in_channels, out_channels, n_filters) < 1:
            raise ValueError("in_channels, out_channels and n_filters must be positive.")

        down = [in_channels, *(n_filters * 2**i for i in range(LEVELS))]  # in, n, 2n, 4n, 8n
        up = [*reversed(down[1:]), n_filters]                             # 8n, 4n, 2n, n, n
        self.encoders = nn.ModuleList(self.encoder(c_in, c_out) for c_in, c_out in pairwise(down))
        self.bottleneck = self.middle(up[0])
        self.joins = nn.ModuleList(self.join(c) for c in up[:-1])
        self.decoders = nn.ModuleList(self.decoder(c_in, c_out) for c_in, c_out in pairwise(up))
        self.head = conv2d(n_filters, out_channels, 1)

    def encoder(self, in_channels: int, out_channels: int) -> nn.Module:
        """A block (B, in, H, W) -> (B, out, H, W)."""
        raise NotImplementedError

    def middle(self, channels: int) -> nn.Module:
        """The block at the bottom, (B, C, H, W) -> (B, C, H, W)."""
        raise NotImplementedError

    def join(self, channels: int) -> nn.Module:
        """A module (lower (B, C, H, W), skip (B, C, 2H, 2W)) -> what the decoder of the level reads."""
        raise NotImplementedError

    def decoder(self, in_channels: int, out_channels: int) -> nn.Module:
        """A block from the joined features of two `in_channels`-wide inputs to (B, out, H, W)."""
        raise NotImplementedError

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) -> logits (B, out_channels, H, W)."""
        height, width = images.shape[-2:]
        x = pad_to_multiple(images, 2**LEVELS)
        skips = []
        for encoder in self.encoders:
            x = encoder(x)          # (B, n * 2^i, H / 2^i, W / 2^i)
            skips.append(x)
            x = F.max_pool2d(x, 2)

        x = self.bottleneck(x)      # (B, 8n, H / 16, W / 16)

        for join, decoder in zip(self.joins, self.decoders, strict=True):
            x = join(x, skips.pop())
            x = decoder(x)
        return self.head(x)[..., :height, :width]


def pad_to_multiple(images: torch.Tensor, multiple: int) -> torch.Tensor:
    """Zeros on the right and at the bottom until both sides are multiples; a view of nothing added is free.

    Zeros, because they are the background of a normalised slice and what the convolutions see beyond the
    edge anyway: (B, C, H, W) -> (B, C, H', W').
    """
    height, width = images.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    return F.pad(images, (0, right, 0, bottom)) if bottom or right else images
