"""Figures of a set of labelled images, in the style of `utils.plots`. Copies in it: `datasets.audit.montage`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from utils.plots import COLOURS, canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def class_distribution(counts: Mapping[str, int]) -> "Figure":
    """How many images each class has in each part of a data set.

    Args:
        counts: "Training/glioma" -> number of images, as `datasets.download.count_images` gives them.

    Raises:
        ValueError: there are no images.
    """
    if not sum(counts.values()):
        raise ValueError("no images to draw")
    parts, classes = (list(dict.fromkeys(name.split("/")[at] for name in counts)) for at in (0, 1))
    width = 0.8 / len(parts)
    with canvas(width=7.5, height=3.6) as figure:
        axes = figure.subplots()
        for number, (part, colour) in enumerate(zip(parts, COLOURS, strict=False)):
            heights = [counts.get(f"{part}/{name}", 0) for name in classes]
            places = np.arange(len(classes)) + (number - (len(parts) - 1) / 2) * width
            bars = axes.bar(places, heights, 0.94 * width, color=colour, label=f"{part} ({sum(heights):,})")
            axes.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize=9)
        axes.set_xticks(range(len(classes)), classes)
        axes.set(xlabel="class", ylabel="images")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.grid(visible=False, axis="x")
        figure.legend(loc="outside upper center", ncols=len(parts))
    return figure


def samples(images: Mapping[str, Sequence[np.ndarray]]) -> "Figure":
    """Some images of each class, a line a class.

    Args:
        images: class -> (H, W) gray levels 0 to 255.

    Raises:
        ValueError: there are no images.
    """
    across = max(map(len, images.values()), default=0)
    if not across:
        raise ValueError("no images to draw")
    with canvas(width=1.5 * across + 0.3, height=1.5 * len(images)) as figure:
        panels = figure.subplots(len(images), across, squeeze=False)
        for line, (name, shown) in zip(panels, images.items(), strict=True):
            line[0].set_ylabel(name)
            for axes in line:
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            for axes, image in zip(line, shown, strict=False):
                axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    return figure
