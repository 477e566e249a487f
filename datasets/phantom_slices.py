"""Simulated images for classification, so that everything runs with no download.

    python datasets/phantom_slices.py                          # 600 images of 120 patients
    python datasets/phantom_slices.py FOLDER --patients 40

Slices of a head after contrast agent in three planes: with a glioma in the white matter, a meningioma on the dura, an
adenoma in the sella, or no tumour. They lie in folders like those of the Brain Tumor MRI Dataset; `patients.csv` says
who is on which. Where each tissue is comes from `phantom_anatomy.py` (the brain), `phantom_head.py` and
`phantom_tumours.py`, how bright it is from `mri_signal.py`. It is made to try programs on, not to learn medicine from:
a result on it says nothing about patients.
"""

import csv
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import numpy as np

if not __package__:  # started as a script, wherever
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.images import CLASSES
from datasets.mri_signal import TISSUES, Tissue, signal
from datasets.parallel import cores
from datasets.phantom_anatomy import (
    ELLIPSOIDS,
    Maps,
    distance,
    fold,
    folds,
    grow,
    healthy_tissues,
    hull,
    inside,
    paint,
    push,
)
from datasets.phantom_folder import building
from datasets.phantom_head import HEAD, Head, Noise, add_base, add_outside, dura, skin
from datasets.phantom_tumours import draw_adenoma, draw_glioma, draw_meningioma, grow_adenoma, grow_meningioma

VERSION = 2  # raise it when the images change: data sets of another version are written anew
FOLDER = Path(__file__).with_name("phantom_slices")
SIDE = 256  # pixels
SLICES = 5  # a patient
PLANES = {  # where the next row, the next column and the next slice lie, as radiologists look at them
    "axial": ((0, 1, 0), (1, 0, 0), (0, 0, 1)),
    "coronal": ((0, 0, -1), (1, 0, 0), (0, 1, 0)),
    "sagittal": ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
}
# Fat, marrow and muscle: Gold 2004, AJR 183:343, at 3 T. Bone has no signal at these echo times, nor has air. The
# tumours are near grey matter before the agent; edema and necrosis are wetter than those of the other phantom, so that
# they are dark in this one sequence.
HEAD_TISSUES = TISSUES | {
    "ed": Tissue(1700, 175, 0.86),
    "ncr": Tissue(2900, 400, 0.95),
    "fat": Tissue(371, 133, 0.90),
    "marrow": Tissue(365, 133, 0.75),
    "muscle": Tissue(1420, 31.7, 0.80),
    "mucosa": Tissue(1500, 80, 0.85),
    "bone": Tissue(1000, 0.5, 0.20),
    "air": Tissue(1000, 0.5, 0.00),
    "dura": Tissue(1300, 50, 0.75),
    "gland": Tissue(1300, 90, 0.80),
    "meningioma": Tissue(1400, 90, 0.82),
    "adenoma": Tissue(1500, 100, 0.84),
}
DOSES = {"blood": 0.3, "mucosa": 0.3, "dura": 0.25, "gland": 0.35, "muscle": 0.05}  # gadolinium in mM


def draw_head(seed: int, number: int) -> Head:
    """Patient `number` of data set `seed`; the class is that of the number modulo 4."""
    rng = np.random.default_rng((seed, number))
    label = CLASSES[number % 4]
    kind = str(rng.choice([name for name in CLASSES if name != "notumor"])) if label == "notumor" else label
    lesion = {"glioma": draw_glioma, "meningioma": draw_meningioma, "pituitary": draw_adenoma}[kind](rng)
    if label == "notumor":
        lesion = lesion._replace(core=0.0)
    atrophy, skull, scalp, timing = rng.uniform((0, 5, 3.5, 0.9), (1, 8, 6.5, 1.15)).tolist()
    scale = rng.uniform(0.94, 1.04) * rng.uniform(0.97, 1.03, 3)
    stretch = np.exp(rng.normal(0, 0.12, 3))
    return Head(label, lesion, scale, stretch, atrophy, skull, scalp, timing, Noise(rng), folds(rng))


def slice_points(rng: np.random.Generator, head: Head, plane: str) -> tuple[np.ndarray, float]:
    """Points (3, 256, 256, 3) in mm of a slice near the lesion and its two neighbours, and their spacing in mm."""
    from scipy.spatial.transform import Rotation

    axes = Rotation.from_rotvec(rng.normal(0, 0.06, 3)).apply(np.array(PLANES[plane]))
    middle = np.array((0, -4, -26 if plane != "axial" else 0)) + rng.normal(0, 4, 3)
    aside = (head.lesion.core or 10.0) * rng.uniform(-0.6, 0.6)
    middle += axes[2] * (axes[2] @ (head.from_table(head.lesion.centre) - middle) + aside)
    spacing = rng.uniform(0.88, 1.02)
    steps = np.meshgrid(*(spacing * (np.arange(n) - (n - 1) / 2) for n in (SIDE, SIDE, 3)), indexing="ij")
    points = np.tensordot(axes.T, np.stack(steps), 1) + middle.reshape(3, 1, 1, 1)
    return points.astype(np.float32), spacing


def tissues_at(head: Head, points: np.ndarray, spacing: float) -> tuple[np.ndarray, Maps]:
    """What is where in a slice.

    Args:
        points: in mm (3, H, W, 3): the slice and its two neighbours, on a grid of this spacing.

    Returns:
        The pixels of the head, bool (H, W), and how much of each is which tissue, (pixels of the head,).
    """
    table = head.to_table(points)
    rough = table + 1.5 * head.wobble(points, 24, 3) + 0.8 * head.wobble(points, 8, 6)
    moved = push(rough, head.lesion)
    sheet = fold(head.folds, moved, spacing)[..., 1]
    lining = dura(table[..., 1])
    surface = skin(head, table[..., 1], lining)
    there = surface < 1
    table, rough, moved = (field[..., 1][:, there] for field in (table, rough, moved))

    numbers = count(9)  # 0 to 8 are the wobble's

    def noise(doublings: int) -> np.ndarray:
        return head.noise(moved, 2**doublings, next(numbers))

    d = {name: distance(moved, name) for name in ELLIPSOIDS}
    d |= {name: distance(moved, name, table=HEAD) for name in HEAD}
    d |= {"x": moved[0], "y": moved[1], "z": moved[2], "sheet": sheet[there], "depth": -hull(rough)}
    d |= {"dura": lining[there], "skin": surface[there]}
    d["lesion"] = np.sqrt((((table.T - head.lesion.centre) * head.stretch) ** 2).sum(axis=1))

    tissues = healthy_tissues(d, noise, head.atrophy)
    add_base(tissues, d)
    if head.label == "glioma":
        grow(head.lesion, tissues, d, noise)
    if head.label == "meningioma":
        grow_meningioma(head.lesion, tissues, d, noise)
    add_outside(head, tissues, d, noise)
    if head.label == "pituitary":
        grow_adenoma(head.lesion, tissues, d, noise)
    paint(tissues, "air", inside(-d["skin"]))
    return there, tissues


def scan(rng: np.random.Generator, head: Head, where: np.ndarray, there: np.ndarray, tissues: Maps) -> np.ndarray:
    """The T1-weighted image of a slice at points `where` (3, 256, 256), from what `tissues_at` says of it, with bias
    field, Rician noise and some window: uint8 (256, 256)."""
    image = np.zeros(there.shape, dtype=np.float32)
    doses = DOSES | dict.fromkeys(("et", "meningioma", "adenoma"), head.lesion.gadolinium)
    for name, fraction in tissues.items():
        image[there] += fraction * signal(HEAD_TISSUES[name], "t1ce", doses.get(name, 0.0), head.timing)
    image[there] *= 1 + 0.03 * head.noise(where[:, there], 3, 90)
    image *= np.exp(0.12 * head.noise.on_slice(where, 60, 91))
    image /= 1 + np.exp((-118 - where[2]) / 14)  # the coil ends at the neck
    white = np.percentile(image[there], 99) * rng.uniform(0.9, 1.25)
    noise = rng.uniform(0.008, 0.03) * white * rng.standard_normal((2, *image.shape))
    return np.clip(255 * np.hypot(image + noise[0], noise[1]) / white, 0, 255).astype(np.uint8)


def make_slices(seed: int, number: int) -> Iterator[tuple[str, np.ndarray]]:
    """The slices of a patient: plane and pixels, uint8 (256, 256). Every plane comes, some twice."""
    head = draw_head(seed, number)
    rng = np.random.default_rng((seed, number, 1))
    for k in range(SLICES):
        plane = list(PLANES)[(k + number // len(CLASSES)) % len(PLANES)]
        points, spacing = slice_points(rng, head, plane)
        image = scan(rng, head, points[..., 1], *tissues_at(head, points, spacing))
        yield plane, image[:, ::-1] if plane == "sagittal" and number // len(CLASSES) % 3 == 0 else image


def write_patient(folder: Path, seed: int, number: int) -> list[tuple[str, str, str]]:
    """Write the slices of a patient; the rows of patients.csv. Every fifth patient of a class is for testing.

    The seed is in their names: no two data sets have the same patient.
    """
    from PIL import Image

    label, patient = CLASSES[number % len(CLASSES)], f"Phantom_{seed}_{number:03d}"
    place = Path("Testing" if number // len(CLASSES) % 5 == 1 else "Training") / label
    (folder / place).mkdir(parents=True, exist_ok=True)
    rows = []
    for k, (plane, image) in enumerate(make_slices(seed, number), 1):
        file = place / f"{patient}_{k}_{plane}.jpg"
        Image.fromarray(image).save(folder / file, quality=92)
        rows.append((file.as_posix(), patient, label))
    return rows


def write_image_phantom(folder: Path, patients: int = 120, seed: int = 0) -> Path:
    """Write the data set into a folder, unless it is there already, and return the folder.

    Training/ and Testing/ with a folder a class, 5 images of 256 x 256 pixels a patient, and patients.csv with the
    columns file, patient, label. No patient is on both sides. It appears whole or not at all; a phantom of other
    arguments or of another VERSION is replaced. A process a core shares the work.

    Raises:
        ValueError: the arguments make no data set, or the folder holds something else.
        OSError: the folder cannot be written; nothing of the new data set is left then.
    """
    from tqdm import tqdm

    if patients < 2 * len(CLASSES) or seed < 0:
        least = "take 8 patients or more, and a seed of 0 or more"
        raise ValueError(f"no phantom has {patients} patients and seed {seed}: {least}")
    parameters = {"version": VERSION, "phantom": "slices", "patients": patients, "seed": seed}
    with building(folder, parameters) as part:
        if part is not None:
            with ProcessPoolExecutor(cores(), get_context("spawn")) as pool:
                done = pool.map(partial(write_patient, part, seed), range(patients), chunksize=2)
                rows = [row for some in tqdm(done, "phantom, images", patients, unit="patient") for row in some]
            with (part / "patients.csv").open("w", newline="") as file:
                csv.writer(file).writerows([("file", "patient", "label"), *sorted(rows)])
    return folder


def main(folder: Path = FOLDER, /, patients: int = 120, seed: int = 0) -> None:
    """Write simulated images for classification into FOLDER, unless they are there already."""
    print(write_image_phantom(folder, patients, seed))


if __name__ == "__main__":
    from utils import cli

    cli.run(main, __doc__)
