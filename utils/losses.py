"""Losses of the U-Nets."""

import torch
from monai.losses import DiceLoss
from torch import nn


def one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """(B, H, W) label codes 0..classes to (B, classes, H, W) float masks; background (0) has no channel."""
    codes = torch.arange(1, classes + 1, device=labels.device, dtype=labels.dtype)
    return (labels[:, None] == codes[None, :, None, None]).float()


class DiceBCE(nn.Module):
    """Soft Dice over the whole batch plus binary cross-entropy, each channel a sigmoid of its own.

    Dice over the batch, not slice by slice: a slice without tumour has no Dice worth the name. Milletari 2016
    (arXiv 1606.04797), with cross-entropy as in nnU-Net (Isensee 2021, 10.1038/s41592-020-01008-z).
    """

    def __init__(self) -> None:
        super().__init__()
        self.dice = DiceLoss(sigmoid=True, batch=True)
        self.bce = nn.BCEWithLogitsLoss()

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) logits and (B, H, W) label codes to a scalar."""
        logits, masks = logits.float(), one_hot(labels, logits.shape[1])
        return self.dice(logits, masks) + self.bce(logits, masks)


class BCE(nn.Module):
    """Binary cross-entropy alone."""

    def __init__(self) -> None:
        super().__init__()
        self.bce = nn.BCEWithLogitsLoss()

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) logits and (B, H, W) label codes to a scalar."""
        logits = logits.float()
        return self.bce(logits, one_hot(labels, logits.shape[1]))


LOSSES: dict[str, type[nn.Module]] = {"dice_bce": DiceBCE, "bce": BCE}
