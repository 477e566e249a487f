"""Losses. Each is that of the whole batch, also when several processes have a part of it each.

The mean over the processes is then the loss of the batch, as DistributedDataParallel takes the mean of the gradients.
Dice is the same in each; a cross-entropy is that of the process's own part, weighted.
"""

import torch
from torch import nn
from torch.nn import functional as F

from utils.distributed import size, total


def one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """(B, H, W) label codes 0..classes to (B, classes, H, W) float masks; background (0) has no channel."""
    codes = torch.arange(1, classes + 1, device=labels.device, dtype=labels.dtype)
    return (labels[:, None] == codes[None, :, None, None]).float()


def mean(values: torch.Tensor) -> torch.Tensor:
    """This process's share of the mean over the batch of all: the mean over processes is that of the batch."""
    if size() == 1:
        return values.mean()
    return values.sum() * size() / total(torch.full((), float(values.numel()), device=values.device))


def dice(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """1 - soft Dice of each channel over the whole batch, mean over channels (MONAI's DiceLoss(sigmoid, batch))."""
    axes = (0, 2, 3)
    probabilities = logits.sigmoid()
    overlap = total((probabilities * masks).sum(axes))
    both = total(probabilities.sum(axes) + masks.sum(axes))
    return (1 - (2 * overlap + 1e-5) / (both + 1e-5)).mean()


class DiceBCE(nn.Module):
    """Soft Dice over the whole batch plus binary cross-entropy, each channel a sigmoid of its own.

    Dice over the batch, not slice by slice: a slice without tumour has no Dice worth the name. Milletari 2016
    (arXiv 1606.04797), with cross-entropy as in nnU-Net (Isensee 2021, 10.1038/s41592-020-01008-z).
    """

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) logits and (B, H, W) label codes to a scalar."""
        logits, masks = logits.float(), one_hot(labels, logits.shape[1])
        return dice(logits, masks) + mean(F.binary_cross_entropy_with_logits(logits, masks, reduction="none"))


class BCE(nn.Module):
    """Binary cross-entropy alone."""

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) logits and (B, H, W) label codes to a scalar."""
        masks = one_hot(labels, logits.shape[1])
        return mean(F.binary_cross_entropy_with_logits(logits.float(), masks, reduction="none"))


class CrossEntropy(nn.Module):
    """Softmax cross-entropy; `smoothing` is the share of the target that is spread over all classes.

    Label smoothing: Szegedy 2015, arXiv 1512.00567.
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B, C) logits and (B,) class codes to a scalar."""
        return mean(F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing, reduction="none"))


LOSSES: dict[str, type[nn.Module]] = {"dice_bce": DiceBCE, "bce": BCE}
