"""Figures of what `utils.explain` finds, in the style of `utils.plots`."""

import math
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.plots import COLOURS, canvas, mri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BRIGHTEST = 99.5  # percentile of a map that is drawn as its full strength
SHOWN = 16  # feature maps of a convolution that are drawn


def heat(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Images, and beside each the same with a map over it: the stronger, the less transparent.

    Args:
        rows: one image each, with the keys
            title: such as "glioma, called meningioma (0.93)";
            image: (H, W) gray levels;
            map: (H, W), as `explain.grad_cam`, `rollout` or `integrated_gradients` give it for one image.

    Raises:
        ValueError: no rows.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    if not rows:
        raise ValueError("no images to draw")
    signed = any(np.asarray(row["map"]).min() < 0 for row in rows)
    colours = ScalarMappable(Normalize(-1 if signed else 0, 1), "coolwarm" if signed else "inferno")
    across = min(len(rows), 3)
    down = -(-len(rows) // across)
    with canvas(width=3.6 * across, height=2.2 * down + 0.6) as figure:
        panels = figure.subplots(down, 2 * across, squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        for (plain, covered), row in zip(panels.reshape(-1, 2), rows, strict=False):
            strength = relative(np.asarray(row["map"], dtype=float))
            for axes in (plain, covered):
                axes.imshow(row["image"], cmap="gray")
            covered.imshow(colours.to_rgba(strength), alpha=0.8 * np.abs(strength))
            plain.set_title(fill(row["title"], 56), loc="left", fontsize=8)
        ticks = (-1, 0, 1) if signed else (0, 0.5, 1)
        legend = figure.colorbar(colours, ax=panels, location="bottom", aspect=40, shrink=0.5, ticks=ticks)
        legend.set_label(f"strength (1: the {100 - BRIGHTEST} % strongest pixels)")
    return figure


def relative(strength: np.ndarray) -> np.ndarray:
    """A map as shares of its strongest pixels, so that one stray pixel does not darken all others."""
    size = np.abs(strength)
    limit = np.percentile(size, BRIGHTEST) or size.max() or 1.0
    return np.clip(strength / limit, -1, 1)


def kernels(weights: Any) -> "Figure":
    """The kernels of a first convolution: blue lowers, red raises what it finds; one scale for all.

    Args:
        weights: (channels, in_channels, k, k), as `explain.kernels` gives them. Summed over the input channels, which
            are equal in a gray image: that is how the kernel acts on it.
    """
    total = np.asarray(weights, dtype=float).sum(axis=1)
    limit = np.abs(total).max()
    picture = mosaic(total, across=math.ceil((1.5 * len(total)) ** 0.5))
    with canvas(width=6, height=5 * picture.shape[0] / picture.shape[1] + 0.3) as figure:
        axes = figure.subplots()
        shown = axes.imshow(picture, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set_axis_off()
        figure.colorbar(shown, label="weight")
    return figure


def feature_maps(maps: Sequence[Any]) -> "Figure":
    """What each convolution passes on of one image: the maps that vary the most, one scale a convolution.

    Args:
        maps: (B, channels, h, w) a convolution, as `explain.feature_maps` gives them; the first image is drawn.

    Raises:
        ValueError: no maps.
    """
    if not maps:
        raise ValueError("no feature maps to draw")
    with canvas(width=9, height=len(maps) * 2.5) as figure:
        for number, (axes, found) in enumerate(zip(np.ravel(figure.subplots(len(maps), 1)), maps, strict=True), 1):
            layer = np.asarray(found[0], dtype=float)
            lively = np.sort(np.argsort(layer.std(axis=(1, 2)))[::-1][:SHOWN])
            axes.imshow(mosaic(layer[lively], across=SHOWN // 2), cmap="gray", interpolation="nearest")
            size = " x ".join(map(str, layer.shape[1:]))
            axes.set_title(f"convolution {number}: {len(lively)} of {len(layer)} maps, {size} pixels")
            axes.set_axis_off()
    return figure


def mosaic(tiles: np.ndarray, across: int) -> np.ndarray:
    """Tiles (N, h, w) beside and below each other, NaN between them: one picture."""
    columns = min(across, len(tiles))
    missing = -len(tiles) % columns
    padded = np.pad(tiles, ((0, missing), (0, 1), (0, 1)), constant_values=np.nan)
    padded[len(tiles) :] = np.nan
    lines = padded.reshape(-1, columns, *padded.shape[1:]).swapaxes(1, 2)
    return lines.reshape(lines.shape[0] * lines.shape[1], -1)[:-1, :-1]


def gates(image: np.ndarray, maps: Sequence[Any], truth: np.ndarray, title: str = "") -> "Figure":
    """How far each gate of an AttentionUNet is open over one slice, with the outline of the true tumour.

    Args:
        image: (X, Y) slice, shown as `plots.overlay` shows it: front up, the patient's right on the left.
        maps: four (1, 1, h, w) in [0, 1], the coarsest first, as `explain.attention_maps` gives them for one image.
        truth: (X, Y) label map, 0 is background.
    """
    width, height = np.shape(image)
    with canvas(width=2 * (len(maps) + 1) + 0.6, height=2 * height / width + 0.6) as figure:
        figure.suptitle(title, fontsize=10)
        panels = figure.subplots(1, len(maps) + 1)
        mri(panels[0], image)
        panels[0].set_title("image")
        for level, (axes, found) in enumerate(zip(panels[1:], maps, strict=True)):
            cell = 2 ** (len(maps) - level)  # pixels along a side
            values = np.asarray(found, dtype=float)[0, 0]
            edges = (-0.5, values.shape[0] * cell - 0.5, values.shape[1] * cell - 0.5, -0.5)
            shown = axes.imshow(values.T, "viridis", vmin=0, vmax=1, interpolation="nearest", extent=edges)
            axes.set(title=f"gate at 1/{cell}", xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
            axes.set_axis_off()
        for axes in panels:
            if np.any(truth):
                axes.contour(np.asarray(truth).T > 0, levels=[0.5], colors=[COLOURS[2]], linewidths=1)
        figure.colorbar(shown, ax=panels, shrink=0.7, label="0 closed, 1 open")
    return figure
