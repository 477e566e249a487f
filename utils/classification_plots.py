"""Figures of a classifier's results, in the style of `utils.plots`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.classification import BINS, reliability, softmax
from utils.plots import COLOURS, INK, canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion_matrix(table: np.ndarray, classes: Sequence[str]) -> "Figure":
    """How many images of each true class (row) were called what (column); the shade is the share of the row.

    Args:
        table: (C, C) counts, as `utils.classification.confusion` gives them.
    """
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    with canvas(width=5.2, height=4.4) as figure:
        axes = figure.subplots()
        shown = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(*table.shape):
            colour = "white" if share[row, column] > 0.5 else INK
            axes.text(column, row, f"{table[row, column]}", ha="center", va="center", color=colour)
        axes.set_xticks(range(len(classes)), classes, rotation=20)
        axes.set_yticks(range(len(classes)), classes)
        axes.set(xlabel="called", ylabel="true class")
        axes.grid(visible=False)
        figure.colorbar(shown, label="share of the true class")
    return figure


def calibration(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> "Figure":
    """Reliability diagram (how often is it right when it is so sure?) and histogram of confidence of right and wrong.

    Args:
        logits: (N, C); labels: (N,); temperature: that of the second line, drawn where it is not 1.

    Source: Guo 2017, arXiv 1706.04599, figure 4.
    """
    curves = {"as trained": softmax(logits)}
    if temperature != 1:
        curves[f"temperature {temperature:.2f}"] = softmax(logits, temperature)
    with canvas(width=9, height=4) as figure:
        left, right = figure.subplots(1, 2)
        left.plot([0, 1], [0, 1], color=INK, linestyle=":", label="perfect")
        for (name, probabilities), colour, marker in zip(curves.items(), COLOURS, "os", strict=False):
            confidence, accuracy, _ = reliability(probabilities, labels)
            there = ~np.isnan(confidence)
            left.plot(confidence[there], accuracy[there], color=colour, marker=marker, markersize=4, label=name)
        left.set(xlabel="confidence (largest softmax)", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
        left.legend()
        confidence = curves["as trained"].max(axis=1)
        correct = logits.argmax(axis=1) == labels
        edges = np.linspace(0, 1, BINS + 1)
        for chosen, name, colour in ((correct, "right", COLOURS[0]), (~correct, "wrong", COLOURS[2])):
            right.hist(confidence[chosen], edges, color=colour, alpha=0.75, label=f"{name} ({chosen.sum()})")
        right.set(xlabel="confidence (largest softmax)", ylabel="images", yscale="log", xlim=(0, 1))
        right.legend(loc="upper left")
    return figure


def mistakes(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """A page of images that were called something else than they are.

    Args:
        rows: most confident first, with image (H, W), title; at most 24 are drawn.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("no mistakes to draw")
    rows, across = rows[:24], 6
    down = -(-len(rows) // across)
    with canvas(width=2 * across, height=2.5 * down) as figure:
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
        for axes, row in zip(panels, rows, strict=False):
            axes.imshow(row["image"], cmap="gray", vmin=0, vmax=255)
            axes.set_title(row["title"], fontsize=7)
    return figure
