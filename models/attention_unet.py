"""AttentionUNet: ImprovedUNet with an additive attention gate at each skip.

Oktay 2018, arXiv 1804.03999.
"""

import torch
from torch import nn
from torch.nn import functional as F

from models.improved_unet import ImprovedUNet
from models.layers import RELU, initialised, upsample


class AttentionUNet(ImprovedUNet):
    """(B, in_channels, H, W) -> logits (B, out_channels, H, W); 3.3 million parameters at n_filters=32.

    `utils.explain.attention_maps` shows where its gates are open.
    """

    def join(self, channels: int) -> nn.Module:
        return AttentionGate(channels)


class AttentionGate(nn.Module):
    """Lets the skip pass where decoder (query) and encoder (key) agree, then adds it.

    It starts half open: query and key have half the variance each, so that their sum has what the ReLU
    expects, and the score starts small, within the steep middle of the sigmoid, where gradients are largest.
    Small, not zero: a zero score would pass no gradient on to query and key.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = initialised(nn.Conv2d(channels, channels, 1), gain=RELU / 2**0.5)
        self.key = initialised(nn.Conv2d(channels, channels, 1), gain=RELU / 2**0.5)
        self.relu = nn.ReLU(inplace=True)
        self.score = initialised(nn.Conv2d(channels, 1, 1), gain=0.25)
        self.sigmoid = nn.Sigmoid()

    def forward(self, lower: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Decoder feature (B, C, H, W), skip (B, C, 2H, 2W) -> (B, C, 2H, 2W)."""
        # every second pixel (a pool of 1x1 keeps its gradient channels_last, a slice does not), then 1x1: training a
        # 1x1 of stride 2 with fewer than 16 channels breaks the memory of the process (AVX-512, torch 2.14.1)
        agreement = self.relu(self.query(lower) + self.key(F.avg_pool2d(skip, 1, stride=2)))  # (B, C, H, W)
        attention = self.sigmoid(self.score(agreement))  # (B, 1, H, W)
        return upsample(lower) + upsample(attention) * skip
