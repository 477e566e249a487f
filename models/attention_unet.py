"""AttentionUNet: ImprovedUNet with an additive attention gate at each skip.

Oktay 2018, arXiv 1804.03999.
"""

import torch
from torch import nn

from models.improved_unet import ImprovedUNet
from models.layers import RELU, conv2d, upsample


class AttentionUNet(ImprovedUNet):
    """(B, in_channels, H, W) -> logits (B, out_channels, H, W); 3.3 million parameters at n_filters=32.

    `utils.explain.attention_maps` reads what the gates let through.
    """

    def join(self, channels: int) -> nn.Module:
        return AttentionGate(channels)


class AttentionGate(nn.Module):
    """Where the decoder (the query) and the encoder (the key) agree, the skip passes; then it is added.

    Query and key start with half the variance each, so that their sum has unit variance, and the score
    starts small: every gate opens half-way (its sigmoid within about 0.35 to 0.65), where the sigmoid is
    steepest, and the score is not zero, so that query and key learn from the first step.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = conv2d(channels, channels, 1, gain=RELU * 0.5**0.5)
        self.key = conv2d(channels, channels, 1, gain=RELU * 0.5**0.5, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.score = conv2d(channels, 1, 1, gain=0.25)
        self.sigmoid = nn.Sigmoid()  # a module of its own, so that a hook can read the map

    def forward(self, lower: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """lower (B, C, H, W), skip (B, C, 2H, 2W) -> (B, C, 2H, 2W)."""
        agreement = self.relu(self.query(lower) + self.key(skip))  # (B, C, H, W)
        attention = self.sigmoid(self.score(agreement))            # (B, 1, H, W)
        return upsample(lower) + upsample(attention) * skip
