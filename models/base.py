"""What all models have in common."""

from typing import Any

from torch import nn


class Model(nn.Module):
    """A network that knows how it was made: `models.build` sets `name` and `options`, `models.load` `header`."""

    name: str
    options: dict[str, Any]  # all of them, defaults included
    header: dict[str, Any]  # of the file that the weights came from
