"""From a case to the slices that a network sees: normalised, cropped to a window on the brain, in a store.

Every BraTS brain measured fits into 160 x 192 voxels of 1 mm around its own bounding box: a crop has 53 % of the pixels
of the whole 240 x 240 slice and loses nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from datasets import brats, store
from datasets.parallel import ahead

WINDOW = (160, 192)  # voxels along x and y
PIXEL = 1.0  # mm along x and y, in BraTS; the networks know no other size
NEGLIGIBLE = 1e-3  # mm
LIMIT = 6.0  # standard deviations: brighter voxels are clipped, so that one vessel cannot dominate a slice


class WindowTooSmall(ValueError):
    """A brain does not fit into the window; `needed` is the next size that holds it."""

    def __init__(self, case: str, window: Sequence[int], needed: tuple[int, int]) -> None:
        super().__init__(f"the brain of {case} does not fit into {window[0]} x {window[1]} voxels")
        self.needed = needed


def zscore(images: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Each modality with mean 0 and standard deviation 1 over the brain, background 0.

    Args:
        images: (4, X, Y, Z) float32; brain: (X, Y, Z) bool.
    """
    out = np.zeros_like(images)
    for modality, values in zip(out, images, strict=True):
        inside = values[brain]
        mean, deviation = inside.mean(dtype=np.float64), inside.std(dtype=np.float64)
        if not deviation > 0:
            raise ValueError("a modality is constant inside the brain")
        modality[brain] = np.clip((inside - mean) / deviation, -LIMIT, LIMIT)
    return out


def minmax(images: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Each slice of each modality scaled to 0..1, as many public notebooks do: for comparison only."""
    low = images.min(axis=(1, 2), keepdims=True)
    high = images.max(axis=(1, 2), keepdims=True)
    return (images - low) / np.maximum(high - low, 1e-8)


NORMALISE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"zscore": zscore, "minmax": minmax}


def window_start(brain: np.ndarray, window: Sequence[int], case: str = "") -> tuple[int, int]:
    """The first voxel (x, y) of a window centred on the brain's bounding box; may be negative.

    Raises:
        WindowTooSmall: the bounding box is larger than the window.
    """
    start, needed = [], []
    for axis, size in enumerate(window):
        inside = np.flatnonzero(brain.any(axis=(1 - axis, 2)))
        low, high = int(inside[0]), int(inside[-1]) + 1
        start.append((low + high - size) // 2)
        needed.append(size if high - low <= size else -(-(high - low) // 16) * 16)
    if tuple(needed) != tuple(window):
        raise WindowTooSmall(case, window, (needed[0], needed[1]))
    return start[0], start[1]


def crop(array: np.ndarray, start: Sequence[int], window: Sequence[int]) -> np.ndarray:
    """The window (..., window[0], window[1], Z) of an array (..., X, Y, Z), zero where it leaves the array."""
    out = np.zeros((*array.shape[:-3], *window, array.shape[-1]), array.dtype)
    inner, outer = _overlap(start, window, array.shape[-3:-1])
    out[..., inner[0], inner[1], :] = array[..., outer[0], outer[1], :]
    return out


def uncrop(window: np.ndarray, start: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """The inverse of `crop`: an array (..., X, Y, Z) of `shape` (X, Y), zero outside the window."""
    out = np.zeros((*window.shape[:-3], *shape, window.shape[-1]), window.dtype)
    inner, outer = _overlap(start, window.shape[-3:-1], shape)
    out[..., outer[0], outer[1], :] = window[..., inner[0], inner[1], :]
    return out


def _overlap(start: Sequence[int], window: Sequence[int], shape: Sequence[int]) -> tuple[list[slice], list[slice]]:
    """Where window and array overlap: as slices of the window, and as slices of the array."""
    inner, outer = [], []
    for first, size, length in zip(start, window, shape, strict=True):
        low, high = max(first, 0), min(first + size, length)
        inner.append(slice(low - first, high - first))
        outer.append(slice(low, high))
    return inner, outer


class Slices(NamedTuple):
    """The slices of a case that show brain, as a network sees them."""

    images: np.ndarray  # (n, 4, *window) float16
    kept: np.ndarray  # (n,) position of each along Z
    start: tuple[int, int]  # first voxel (x, y) of the window


def network_slices(
    case: brats.Case, window: Sequence[int] = WINDOW, normalise: str = "zscore", inside: np.ndarray | None = None
) -> Slices:
    """Normalise the images of a case, and crop them to a window on its brain.

    Args:
        inside: (X, Y, Z) bool, what the window and the slices must hold; by default the brain.

    Raises:
        WindowTooSmall: it does not fit.
    """
    brain = case.brain
    inside = brain if inside is None else inside
    start = window_start(inside, window, case.case)
    kept = np.flatnonzero(inside.any(axis=(0, 1)))
    try:
        normalised = NORMALISE[normalise](case.images, brain)
    except ValueError as error:
        raise ValueError(f"{case.case}: {error}; is one of its files a mask? Replace or remove the case") from error
    images = np.moveaxis(crop(normalised, start, window)[..., kept], -1, 0)
    return Slices(np.ascontiguousarray(images, dtype=np.float16), kept, start)


def case_block(case: brats.Case, window: Sequence[int] = WINDOW, normalise: str = "zscore") -> store.Block:
    """The slices of one case that show brain: images (n, 4, *window) float16, labels (n, *window) uint8.

    Raises:
        WindowTooSmall: the brain (or the tumour outside it) does not fit.
        ValueError: the pixels are not of 1 mm.
    """
    assert case.labels is not None
    if max(abs(size - PIXEL) for size in case.spacing[:2]) > NEGLIGIBLE:
        size = " x ".join(f"{size:g}" for size in case.spacing[:2])
        raise ValueError(f"{case.case} has pixels of {size} mm: resample its files to {PIXEL:g} mm, as BraTS's are")
    images, kept, start = network_slices(case, window, normalise, case.brain | (case.labels > 0))
    labels = crop(case.labels, start, window)[..., kept]
    counts = [(labels == code).sum(axis=(0, 1)) for code in (1, 2, 3)]
    rows = [
        {"case": case.case, "patient": case.patient, "slice": int(z), "ncr": ncr, "ed": ed, "et": et}
        for z, ncr, ed, et in zip(kept, *counts, strict=True)
    ]
    info = {
        "case": case.case, "patient": case.patient, "spacing": [float(size) for size in case.spacing], "start": start,
    }  # fmt: skip
    return store.Block(images, np.ascontiguousarray(np.moveaxis(labels, -1, 0)), rows, info)


def open_slices(
    folder: Path,
    cache: Path,
    window: tuple[int, int] = WINDOW,
    labels: str | None = None,
    modalities: Sequence[str] = brats.MODALITIES,
    normalise: str = "zscore",
) -> store.Store:
    """The store of all cases under `folder`, built if need be; a brain that does not fit enlarges the window.

    Raises:
        ValueError, FileNotFoundError: bad input, see `brats.find_cases` and `brats.read_case`.
    """
    sources = [source for source in brats.find_cases(folder) if not _unlabelled(source)]
    for source in sources:
        source.check()  # what the names alone show, before minutes of decoding
    paths = [path for source in sources for path in source.paths()]

    def produce(size: tuple[int, int]) -> Iterator[store.Block]:
        def read(source: brats.Source) -> store.Block:
            return case_block(brats.read_case(source, labels, modalities), size, normalise)

        yield from tqdm(
            ahead(read, sources), total=len(sources), desc=f"storing {folder.name}", unit="case", dynamic_ncols=True
        )

    options = {"window": window, "labels": labels, "modalities": list(modalities), "normalise": normalise}
    size = window  # the store is sought under the one asked for, so that nothing is decoded in vain
    while True:
        try:
            found = store.open_or_build(cache, folder.resolve().name, paths, options, partial(produce, size))
            return replace(found, options=found.options | {"window": list(found.images.shape[2:])})
        except WindowTooSmall as error:
            size = error.needed
            print(f"{error}: taking {size[0]} x {size[1]}", flush=True)


def _unlabelled(source: brats.Source) -> bool:
    """A test image of the Decathlon, which comes without labels."""
    image = source.files.get("image")
    return image is not None and image.parent.name == "imagesTs" and "seg" not in source.files
