"""The head around the phantom's brain: dura, skull, scalp, face, neck and sella.

More ellipsoids in the coordinates of `phantom_anatomy.py`: mm from the centre of the brain, along right to left,
anterior to posterior, inferior to superior. Everything here is evaluated at the points of a slice, not in a volume.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from datasets.phantom_anatomy import Lesion, Maps, Table, column, distance, double, hull, inside, paint

SELLA = (0, -15, -31)
LATTICE = 40  # nodes a side of the noise, which then repeats itself
HEAD: Table = {  # centre and radii in mm, mirrored
    "face": [((0, -46, -62), (60, 51, 66)), ((0, -64, -98), (42, 41, 36)), ((58, -28, -16), (16, 32, 34))],
    "nose": [((0, -94, -50), (12, 25, 25)), ((0, -103, -64), (15, 15, 9)), ((0, -97, -90), (26, 11, 13))],
    "neck": [((0, 22, -130), (60, 60, 110)), ((0, 46, -84), (50, 36, 44)), ((48, 6, -72), (24, 34, 48)),
             ((42, 36, -54), (30, 40, 36))],
    "cistern": [((0, -13, -23), (17, 12, 7)), ((0, 0, -34), (14, 7, 12)), ((0, 12, -66), (14, 8, 14))],
    "canal": [((0, 27, -125), (10, 9, 66))],
    "cord": [((0, 27, -125), (6, 5, 66))],
    "chiasm": [((0, -16, -20), (9, 3.5, 2)), ((7, -24, -22), (2.5, 8, 2))],
    "gland": [(SELLA, (7, 5, 4)), ((0, -13, -25), (1.4, 1.4, 6))],  # and its stalk
    "cavernous": [((13, -12, -33), (5.5, 10, 7))],
    "carotid": [((13, -14, -32), (2.4, 5, 2.4)), ((11, -7, -38), (2.4, 2.4, 8)), ((0, 4, -38), (1.6, 1.6, 16))],
    "petrous": [((36, 14, -44), (24, 9, 9)), ((0, -24, -33), (26, 10, 2.5))],
    "marrow": [((0, -5, -42), (12, 6, 8)), ((0, 0, -54), (12, 5.5, 9)), ((0, 6, -66), (11, 4.5, 8))],  # clivus
    "spine": [((0, 9, -88), (8, 7, 13)), ((0, 10, -112), (10, 8, 8)), ((0, 10, -131), (10, 8, 8)),
              ((0, 64, -76), (5, 12, 4)), ((0, 58, -104), (3, 16, 6)), ((0, 58, -126), (3, 16, 6))],
    "jaw": [((0, -92, -112), (20, 6, 10)), ((48, -32, -86), (4, 14, 28)), ((38, -64, -108), (5, 30, 9))],
    "tooth": [((0, -86, -88), (22, 6, 12)), ((30, -66, -90), (6, 22, 10))],
    "palate": [((0, -66, -73), (24, 28, 2.5))],
    "tongue": [((0, -52, -92), (24, 32, 17))],
    "orbit": [((32, -62, -36), (17, 26, 15))],
    "globe": [((32, -76, -36), (12, 12, 12))],
    "rectus": [((24, -54, -36), (2, 14, 5)), ((41, -54, -36), (2, 14, 5)), ((32, -54, -28), (5, 14, 1.8)),
               ((32, -54, -44), (5, 14, 1.8)), ((28, -50, -36), (2, 14, 2))],
    "sinus": [((7, -28, -45), (9, 14, 9)), ((33, -66, -62), (12, 14, 14)), ((9, -92, -18), (9, 4, 9))],
    "nasal": [((7, -64, -54), (8, 30, 15))],
    "airway": [((0, -20, -64), (9, 8, 10)), ((0, -13, -90), (7, 4, 28)), ((0, -14, -125), (7, 6, 26))],
    "mastoid": [((54, 26, -48), (9, 10, 13))],
    "choroid": [((22, 36, 6), (2.4, 7, 3.2)), ((12, 14, 12), (2, 10, 2))],
}  # fmt: skip


class Noise:
    """Smooth noise of deviation 1: many fields, each the same at the same point in whichever slice it is asked for."""

    def __init__(self, rng: np.random.Generator) -> None:
        lattice = double(rng.standard_normal((LATTICE,) * 3, dtype=np.float32))
        self.lattice = lattice / lattice.std()

    def __call__(self, points: np.ndarray, scale: float, number: int) -> np.ndarray:
        """Field `number`, smooth over `scale` mm, at points (3, ...)."""
        shift = number * np.array((17.3, 29.7, 11.9))
        index = [2 * p / scale + s for p, s in zip(points, shift, strict=True)]
        return ndimage.map_coordinates(self.lattice, index, order=1, mode="grid-wrap")

    def on_slice(self, points: np.ndarray, scale: float, number: int) -> np.ndarray:
        """The same at the points (3, H, W) of a slice, linear between every third, which is enough and fast."""
        steps = (np.subtract.outer(np.arange(n, dtype=np.float32), np.arange(0, n, 3)) for n in points.shape[1:])
        rows, columns = (np.clip(1 - np.abs(step) / 3, 0, 1).astype(np.float32) for step in steps)
        return rows @ self(points[:, ::3, ::3], scale, number) @ columns.T


@dataclass(frozen=True)
class Head:
    """One simulated patient.

    Attributes:
        label: glioma, meningioma, notumor or pituitary.
        lesion: the tumour; where there is none, what the slices are cut around, with a core of 0 mm.
        scale: size of this head along the three axes, 1 on average.
        stretch: of the tumour along the three axes.
        atrophy: 0 to 1, wide ventricles and sulci.
        skull, scalp: thickness in mm.
        timing: TR and TE of the scanner, relative to those of the sequence.
        noise, folds: what makes the shapes irregular.
    """

    label: str
    lesion: Lesion
    scale: np.ndarray
    stretch: np.ndarray
    atrophy: float
    skull: float
    scalp: float
    timing: float
    noise: Noise
    folds: np.ndarray

    def to_table(self, points: np.ndarray) -> np.ndarray:
        """Where points (3, H, W, slices) of this head, in mm, lie in the tables, but for the mass effect."""
        points = points + 2.2 * self.wobble(points, 64, 0)
        points /= column(self.scale)
        points[0] /= 1 + 0.0012 * np.clip(points[1], -90, 90)  # narrower in front
        away = [(np.abs(points[0]) - 28) / 16, (points[1] + 58) / 24, (points[2] + 22) / 18]
        points[2] -= 6 * np.exp(-sum(a**2 for a in away))  # the roofs of the orbits bulge
        return points

    def wobble(self, points: np.ndarray, scale: float, number: int) -> np.ndarray:
        """Three fields of noise at points (3, H, W, slices): those of the middle slice, for all: (3, H, W, 1)."""
        middle = points[..., points.shape[-1] // 2]
        return np.stack([self.noise.on_slice(middle, scale, number + i) for i in range(3)])[..., None]

    def from_table(self, point: np.ndarray) -> np.ndarray:
        """The point of this head, in mm (3,), that `to_table` sends to a point of the tables."""
        found = np.array(point, dtype=float)
        for _ in range(8):
            found += point - self.to_table(found.reshape(3, 1, 1, 1)).ravel()
        return found


def merge(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """The distance to the union of two shapes, with the groove between them filled over some mm."""
    share = np.clip(0.5 + 0.5 * (b - a) / width, 0, 1)
    return b + (a - b) * share - width * share * (1 - share)


def dura(points: np.ndarray) -> np.ndarray:
    """Approximate signed distance in mm from points (3, ...) to the dura, which lines the skull: negative inside."""
    found = merge(hull(points), distance(points, "cerebellum", "brainstem"), 8)
    return merge(found, distance(points, "cistern", "canal", table=HEAD), 3) - 1.5


def skin(head: Head, points: np.ndarray, lining: np.ndarray) -> np.ndarray:
    """Approximate signed distance in mm from points (3, ...) to the skin, given that to the dura: negative inside."""
    found = merge(lining - head.skull - head.scalp, distance(points, "face", "neck", table=HEAD), 14)
    return merge(found, distance(points, "nose", table=HEAD), 12)


def add_base(tissues: Maps, d: Maps) -> None:
    """Paint what lies within the dura and enhances, and the nerves of the base."""
    for name in ("cistern", "canal"):
        paint(tissues, "csf", inside(d[name]) * inside(-d["brainstem"]))
    paint(tissues, "wm", 0.8 * inside(d["cord"]) * inside(d["z"] + 70, 8))
    paint(tissues, "wm", inside(d["chiasm"]))
    paint(tissues, "blood", 0.7 * inside(d["choroid"]) * inside(np.minimum(d["ventricles"], d["horns"])))
    falx = np.maximum.reduce([np.abs(d["x"]) - 0.5, 4 - d["callosum"], -18 - d["z"]])
    tent = np.maximum.reduce([np.abs(d["cerebellum"] - 1.2) - 0.5, -8 - d["depth"], -45 - d["z"]])
    paint(tissues, "dura", 0.8 * inside(np.minimum(falx, tent)))


def add_outside(head: Head, tissues: Maps, d: Maps, noise: Callable[[int], np.ndarray]) -> None:
    """Paint what lies outside of the dura over the CSF that fills it so far, and what lies in its border."""
    layers: Maps = {"muscle": np.ones_like(d["dura"])}
    add_flesh(head, layers, d, noise)
    add_bone(head, layers, d, noise)
    add_face(layers, d)
    outside = inside(-d["dura"])
    for name in tissues | layers:
        tissues[name] = tissues.get(name, 0) * (1 - outside) + layers.get(name, 0) * outside
    paint(tissues, "dura", 0.8 * inside(np.abs(d["dura"]) - 0.4) * inside(-d["z"] - 60, 20))
    paint(tissues, "blood", 0.8 * inside(d["cavernous"]) * outside)
    if head.label != "pituitary":
        paint(tissues, "gland", inside(d["gland"]))
    paint(tissues, "air", inside(d["carotid"]))  # blood that flows fast has no signal


def add_flesh(head: Head, layers: Maps, d: Maps, noise: Callable[[int], np.ndarray]) -> None:
    """Paint the fat under the skin, between muscles and in the tongue."""
    planes = np.abs(noise(4) + 0.4 * noise(3))
    paint(layers, "fat", 0.8 * inside(10 * planes - 1.5 - 2 * noise(5), 3) * inside(d["z"] + 20, 20))
    paint(layers, "fat", inside(np.abs(d["skin"] + 0.5 * head.scalp + 0.3) - 0.5 * head.scalp - 0.4 * noise(4)))
    paint(layers, "fat", 0.35 * inside(d["tongue"]) * (0.5 + 0.5 * np.sin(d["z"] + noise(3))))


def add_bone(head: Head, layers: Maps, d: Maps, noise: Callable[[int], np.ndarray]) -> None:
    """Paint bones and their marrow: jaws, spine, skull with its diploe, and clivus."""
    paint(layers, "bone", inside(np.minimum.reduce([d["jaw"] - 2.5, d["tooth"], d["palate"]])))
    paint(layers, "marrow", inside(d["jaw"]))
    paint(layers, "bone", inside(d["spine"] - 1.5))
    paint(layers, "marrow", 0.8 * inside(d["spine"]))
    thin = 0.4 + 0.6 * np.maximum(inside(-d["z"] - 14, 20), inside(-d["y"], 30))  # over the orbits
    thick = head.skull * (1 + 0.12 * noise(4)) * thin
    paint(layers, "bone", inside(np.maximum(d["dura"] - thick, -80 - d["z"])))
    paint(layers, "bone", inside(d["petrous"]))
    diploe = np.abs(d["dura"] - 0.5 * thick) - 0.22 * thick
    paint(layers, "marrow", 0.6 * inside(diploe) * inside(-d["z"] - 35, 30) * np.clip(1 + 0.4 * noise(3), 0, 1))
    paint(layers, "bone", inside(d["marrow"] - 1.5))
    paint(layers, "marrow", 0.7 * inside(d["marrow"]))


def add_face(layers: Maps, d: Maps) -> None:
    """Paint the orbits, and what is filled with air and lined with mucosa, which enhances."""
    paint(layers, "fat", inside(d["orbit"]))
    paint(layers, "muscle", inside(d["rectus"]))
    paint(layers, "csf", inside(d["globe"]))
    for name, lining in (("sinus", 0.8), ("airway", 1.5), ("mastoid", 0.0)):
        paint(layers, "mucosa", inside(d[name] - lining))
        paint(layers, "air", inside(d[name]))
    paint(layers, "mucosa", inside(d["nasal"]))
    turbinates = np.abs(np.abs(d["x"]) - 7 - 1.5 * np.sin(d["z"] / 4)) - 2.5
    paint(layers, "air", inside(d["nasal"]) * inside(-turbinates) * inside(1.2 - np.abs(d["x"])))
