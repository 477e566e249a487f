"""The tumours of the image phantom: where each kind lies, and how it takes the place of the tissues there.

The glioma is that of `phantom_anatomy.py`. Points and lengths are in mm, as there.
"""

from collections.abc import Callable

import numpy as np

from datasets.phantom_anatomy import Lesion, Maps, draw_lesion, inside, paint
from datasets.phantom_head import SELLA, dura


def draw_glioma(rng: np.random.Generator) -> Lesion:
    """As in the segmentation phantom; one of six does not enhance."""
    return draw_lesion(rng, int(rng.integers(6)))


def draw_meningioma(rng: np.random.Generator) -> Lesion:
    """Anywhere on the dura that lines the skull, but near the sella; two of five have edema."""
    core = rng.uniform(8, 24)
    while True:
        point = rng.uniform((-72, -86, -40), (72, 84, 72))[:, None]
        on_dura = abs(dura(point)[0] + 0.4 * core) < 1 and dura(1.4 * point)[0] > 0  # not on the tentorium
        if on_dura and abs(point[0, 0]) > 8 and np.hypot(*(point[:2, 0] - SELLA[:2])) > 35:
            break
    edema = rng.uniform(4, 14) * (rng.random() < 0.4)
    return Lesion(point[:, 0], core, edema, 0.0, rng.uniform(0.2, 0.5))


def draw_adenoma(rng: np.random.Generator) -> Lesion:
    """In the midline, the larger the higher."""
    core = rng.uniform(5.5, 16)
    centre = np.array(SELLA) + rng.normal(0, (1.5, 1, 0)) + np.array((0, 0, 0.6 * (core - 5)))
    return Lesion(centre, core, 0.0, 0.0, rng.uniform(0.12, 0.35))


def grow_meningioma(lesion: Lesion, tissues: Maps, d: Maps, noise: Callable[[int], np.ndarray]) -> None:
    """Paint a tumour that sits on the dura: one even tissue, a cleft of CSF around it, a tail along the dura."""
    falx = np.minimum(1 - d["x"] * np.sign(lesion.centre[0]), d["callosum"])
    core = np.maximum(d["lesion"] + lesion.core * (0.13 * noise(4) + 0.05 * noise(3) - 1), falx)
    edema = d["lesion"] - lesion.core - lesion.edema * (1 + 0.4 * noise(4)) + 8 * (1 - tissues["wm"] - tissues["wmh"])
    paint(tissues, "ed", inside(np.maximum(edema, falx), 2.5) * (lesion.edema > 0))
    paint(tissues, "csf", 0.8 * inside(core - 1.2))
    paint(tissues, "meningioma", inside(core))
    tail = np.maximum(d["lesion"] - lesion.core - 9, -1.8 - d["dura"])
    paint(tissues, "meningioma", inside(tail))


def grow_adenoma(lesion: Lesion, tissues: Maps, d: Maps, noise: Callable[[int], np.ndarray]) -> None:
    """Paint a round tumour in place of the pituitary gland; it widens the sella and rises towards the chiasm."""
    core = d["lesion"] + lesion.core * (0.10 * noise(4) + 0.04 * noise(3) - 1)
    floor = np.sqrt(((d["x"]) / 8) ** 2 + ((d["y"] - SELLA[1]) / 7) ** 2 + ((d["z"] - SELLA[2]) / 6) ** 2) * 7 - 7
    core = np.minimum(core, floor)
    paint(tissues, "csf", 0.6 * inside(core - 1.0) * inside(-24 - d["z"]))
    paint(tissues, "adenoma", inside(core) * inside(-d["carotid"]))
