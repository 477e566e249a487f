"""Figures of a classifier's results, in the style of `utils.plots`."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.classification import BINS, reliability, softmax
from utils.plots import COLOURS, FAINT, INK, canvas, error_bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACCURACY: dict[str, Any] = {"color": COLOURS[0], "marker": "o"}  # what a comparison shows
TRAINED: dict[str, Any] = {"color": COLOURS[2], "marker": "D", "linestyle": "", "fillstyle": "none"}
SCALED: dict[str, Any] = TRAINED | {"fillstyle": "full"}


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
    from matplotlib.ticker import NullFormatter

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
        right.yaxis.set(major_formatter="{x:g}", minor_formatter=NullFormatter())
        right.legend(loc="upper left")
    return figure


def comparison(scores: Mapping[str, Mapping[str, float] | None]) -> "Figure":
    """Classifiers line by line: how often they are right, how sure they are, and how far apart the two lie.

    Args:
        scores: model -> accuracy, accuracy_low, accuracy_high, confidence, confidence_scaled, ece and ece_scaled, as
            `classification_results.saved` gives them; None is a model without results, and its line says so.

    Raises:
        ValueError: there are no models.
    """
    from matplotlib.lines import Line2D

    if not scores:
        raise ValueError("no models to compare")
    with canvas(width=10, height=0.5 * len(scores) + 2) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for line, row in enumerate(scores.values()):
            if row is None:
                left.text(0.02, line, "no predictions", transform=left.get_yaxis_transform(), va="center")
                continue
            reach = error_bar(row["accuracy"], row["accuracy_low"], row["accuracy_high"])
            left.errorbar(row["accuracy"], line, xerr=reach, capsize=4, **ACCURACY)
            right.plot([row["ece"], row["ece_scaled"]], [line, line], color=FAINT, zorder=1)
            for axes, key, below in ((left, "confidence", 0.25), (right, "ece", 0)):
                axes.plot(row[key], line + below, **TRAINED)
                axes.plot(row[f"{key}_scaled"], line + below, **SCALED)
        left.set_yticks(range(len(scores)), scores)
        left.set(xlabel="accuracy, mean confidence (0 to 1)", ylim=(len(scores) - 0.4, -0.6))
        right.set(xlabel="expected calibration error (0 to 1)", xlim=(0, None))
        for axes in (left, right):
            axes.grid(visible=False, axis="y")
        names = ("accuracy, 95 % interval", "confidence, calibration error as trained", "with temperature")
        handles = [Line2D([], [], label=name, **style)
                   for name, style in zip(names, (ACCURACY, TRAINED, SCALED), strict=True)]  # fmt: skip
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
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
            axes.set_title("\n".join(fill(line, 34) for line in row["title"].splitlines()), fontsize=7)
    return figure
