"""VGG16: thirteen 3x3 convolutions, five pools.

Simonyan 2014, arXiv 1409.1556, configuration D.
"""

from torch import nn

from models.cnn import CNN, Conv, plain

LEVELS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions; a pool behind each level
CONVS = tuple(
    Conv(channels, 3, padding=1, pool=number == count) for channels, count in LEVELS for number in range(1, count + 1)
)


class VGG16(CNN):
    """(B, in_channels, image_size, image_size) -> logits (B, num_classes); 65.1 million parameters."""

    def __init__(
        self, in_channels: int = 3, num_classes: int = 4, image_size: int = 128, dropout: float = 0.5
    ) -> None:
        super().__init__(CONVS, plain, (4096, 4096), nn.ReLU, dropout, in_channels, num_classes, image_size)
