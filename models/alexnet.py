"""AlexNet for small images: five convolutions with ReLU.

Krizhevsky 2012 (10.1145/3065386); here the first kernel is 9x9, pooling is 2x2, there is no local response
normalisation, and the linear layers are narrower.
"""

from torch import nn

from models.cnn import CNN, Conv, plain

CONVS = (
    Conv(96, 9, stride=4, pool=True),
    Conv(256, 5, pool=True),
    Conv(384, 3, padding=1),
    Conv(384, 3, padding=1),
    Conv(256, 3, padding=1, pool=True),
)


class AlexNet(CNN):
    """(B, in_channels, image_size, image_size) -> logits (B, num_classes); 4.6 million parameters."""

    def __init__(
        self, in_channels: int = 3, num_classes: int = 4, image_size: int = 128, dropout: float = 0.5
    ) -> None:
        super().__init__(CONVS, plain, (512, 512, 128), nn.ReLU, dropout, in_channels, num_classes, image_size)
