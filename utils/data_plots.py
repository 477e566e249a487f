"""Figures of the data, before any model: what a slice, a patient and a data set look like. Style of `utils.plots`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from datasets.brats import CLASSES, MODALITIES
from datasets.store import Store
from utils.pictures import as_image
from utils.plots import COLOURS, canvas, class_keys, grey_levels, masks, mri

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

NAMES = {"t1": "T1", "t1c": "T1c", "t2": "T2", "flair": "FLAIR"}
FILM = 480  # pixels: the width of a film
NAMED = 40  # cases whose names still fit under a figure


def modalities(image: np.ndarray, labels: np.ndarray, title: str = "") -> "Figure":
    """What a network is given of one slice and what it shall answer: four modalities, three masks.

    Args:
        image: (4, X, Y), as a store holds it: modalities in the order of MODALITIES, background 0.
        labels: (X, Y) label map, 0 background, 1 NCR, 2 ED, 3 ET. All is shown front up, the right side on the left.
    """
    width, height = labels.shape
    with canvas(width=8, height=2 * 2 * height / width + 1.1) as figure:
        figure.suptitle(title, fontsize=10)
        above, below = figure.subplots(2, 4)
        for axes, modality, slice_ in zip(above, MODALITIES, image, strict=True):
            mri(axes, slice_)
            axes.set_title(NAMES[modality])
        for code, (axes, name) in enumerate(zip(below, CLASSES, strict=False), 1):
            axes.imshow((labels == code).T, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(f"mask of {name}")
            axes.set_axis_off()
        mri(below[-1], image[MODALITIES.index("flair")])
        masks(below[-1], labels)
        below[-1].set_title("masks over FLAIR")
        class_keys(figure)
    return figure


def walk(images: np.ndarray, labels: np.ndarray, slices: Sequence[int], title: str = "") -> list["Image"]:
    """A film through a patient, from the feet up: T1c, and FLAIR under the masks; `pictures.gif` makes it a file.

    Args:
        images: (n, 4, X, Y) slices, as a store holds them; labels: (n, X, Y).
        slices: (n,) what the slices are called: their numbers along Z.
    """
    panels = {"T1c": images[:, MODALITIES.index("t1c")], "FLAIR": images[:, MODALITIES.index("flair")]}
    limits = {name: grey_levels(volume) for name, volume in panels.items()}  # one brightness for the whole film
    width, height = labels.shape[1:]
    frames = []
    with canvas(width=4.4, height=2.05 * height / width + 0.9) as figure:
        class_keys(figure)
        both = figure.subplots(1, 2)
        for at, number in enumerate(slices):
            figure.suptitle(f"{title}, slice {number}", x=0.02, ha="left", fontsize=9)
            for axes, (name, volume) in zip(both, panels.items(), strict=True):
                axes.clear()
                mri(axes, volume[at], limits=limits[name])
                axes.set_title(name)
            masks(both[1], labels[at])
            both[1].set_title("masks over FLAIR")
            frames.append(as_image(figure, FILM))
    return frames


def class_balance(store: Store) -> "Figure":
    """How rare each class is: its share of all voxels that a network sees, and of all slices."""
    voxels = np.stack([store.index[name.lower()] for name in CLASSES])  # (classes, slices)
    shares = {
        "voxels": 100 * voxels.sum(axis=1) / store.targets.size,
        "slices that show it": 100 * (voxels > 0).mean(axis=1),
    }
    with canvas(width=8, height=2.2) as figure:
        for axes, (name, share) in zip(figure.subplots(1, 2), shares.items(), strict=True):
            bars = axes.barh(CLASSES, share, color=COLOURS[: len(CLASSES)])
            axes.bar_label(bars, [f"{value:.2g} %" for value in share], padding=3)
            axes.set(xlabel=f"share of {name} (%)", xlim=(0, 1.2 * max(share.max(), 0.1)))
            axes.invert_yaxis()
            axes.grid(visible=False, axis="y")
    return figure


def volumes(store: Store) -> "Figure":
    """How large the tumour of each case is, and what it is made of; the smallest first.

    A bar is the whole tumour (WT); NCR and ET, which stand at its foot, are its core (TC).
    """
    parts = ("NCR", "ET", "ED")
    table = case_volumes(store)
    order = sorted(table, key=lambda case: sum(table[case].values()))
    with canvas(width=8, height=3.6) as figure:
        axes = figure.subplots()
        foot = np.zeros(len(order))
        for name in parts:
            height = np.array([table[case][name] for case in order])
            axes.bar(range(len(order)), height, bottom=foot, color=COLOURS[CLASSES.index(name)], label=name)
            foot += height
        axes.set(ylabel="volume (ml)", xlabel=f"{len(order)} cases, by size", xlim=(-0.7, len(order) - 0.3))
        if len(order) <= NAMED:
            axes.set_xticks(range(len(order)), order, rotation=40, ha="right", rotation_mode="anchor", fontsize=7)
        else:
            axes.set_xticks([])
        axes.grid(visible=False, axis="x")
        axes.legend(reverse=True)
    return figure


def case_volumes(store: Store) -> dict[str, dict[str, float]]:
    """Case -> class -> ml, of the true masks."""
    table = {}
    for info in store.info:
        mine = store.index["case"] == info["case"]
        ml = float(np.prod(info["spacing"])) / 1000
        table[info["case"]] = {name: ml * int(store.index[name.lower()][mine].sum()) for name in CLASSES}
    return table
