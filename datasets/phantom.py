"""A simulated multimodal glioma data set, so that everything runs with no download.

    python datasets/phantom.py                                        # 20 patients as Kaggle's HDF5 slices
    python datasets/phantom.py FOLDER --patients 5 --layout nifti     # 5 as BraTS-style NIfTI cases

Anatomy is a table of ellipsoids in deformed coordinates with a folded cortex, a tumour is noise added to a
distance, and intensities follow from T1, T2 and proton density by the signal equations of the sequences. It is
a brain to try programs on, not to learn medicine from: a result on it says nothing about patients.

Volumes are (240, 240, 155) voxels of 1 mm, from right to left, anterior to posterior, inferior to superior, as
in BraTS. Shapes are computed in a box around the brain, in mm from its centre along the same axes.
"""

import gzip
import io
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from scipy import ndimage

VERSION = 2  # raise it when the arrays change: data sets of another version are written anew
SHAPE = (240, 240, 155)
BOX = (slice(44, 196), slice(29, 221), slice(0, 152))  # where in SHAPE the brain lies
COARSE = (76, 96, 76)  # the box at 2 mm, where shapes are computed
AFFINE = np.array([[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=float)
NCR, ED, ET = 1, 2, 4
Layout = Literal["hdf5", "nifti"]
Maps = dict[str, np.ndarray]


class Tissue(NamedTuple):
    """Relaxation times T1 and T2 in ms at 3 T, and proton density relative to water."""

    t1: float
    t2: float
    pd: float


# White and grey matter: Wansapura 1999, JMRI 9:531. CSF: subarachnoid values of PMC10696635 (2023). Blood: Stanisz
# 2005, MRM 54:507. Edema, tumour and hyperintense white matter: near what Badve 2017, AJNR 38:492 reports of
# gliomas and the white matter around them; necrosis, mostly fluid, lies between these and CSF.
TISSUES = {
    "wm": Tissue(832, 79.6, 0.70),
    "gm": Tissue(1331, 110, 0.80),
    "csf": Tissue(4300, 1890, 1.00),
    "blood": Tissue(1932, 275, 0.85),
    "wmh": Tissue(1150, 125, 0.80),
    "ed": Tissue(1450, 175, 0.86),
    "et": Tissue(1500, 130, 0.85),
    "ncr": Tissue(2300, 220, 0.92),
}
SEQUENCES = {"t1": (550, 12), "t1ce": (550, 12), "t2": (4500, 95), "flair": (9000, 120)}  # TR and TE in ms
RELAXIVITY = 4.0  # of gadolinium, per mM and s: agents have 3.0 to 5.0, Szomolanyi 2019, Invest Radiol 54:559

ELLIPSOIDS: dict[str, list[tuple[tuple[float, ...], tuple[float, ...]]]] = {  # centre and radii in mm, mirrored
    "cerebrum": [((0, -1, 2), (66, 84, 63)), ((0, 0, 12), (67, 80, 50))],
    "temporal": [((42, 0, -24), (23, 38, 22)), ((36, -20, -30), (20, 24, 19))],
    "cerebellum": [((20, 46, -46), (32, 31, 23)), ((0, 48, -44), (12, 26, 20))],
    "brainstem": [((0, 18, -34), (18, 14, 18)), ((0, 24, -56), (12, 11, 26)), ((0, 10, -14), (17, 12, 16))],
    "callosum": [((0, 2, 6), (30, 38, 20))],  # with all below it: here the hemispheres are joined
    "deep": [((17, -22, 10), (6, 11, 10)), ((27, -4, 3), (7, 19, 11)), ((11, 10, 6), (9, 15, 9))],
    "sylvian": [((61, -20, 0), (9, 1.6, 9)), ((47, -15, 1), (9, 1.8, 10)), ((38, -6, 2), (2.2, 18, 9))],
    "horns": [((9, -22, 10), (5, 15, 7)), ((23, 44, 5), (4, 15, 5)), ((32, 8, -16), (3, 18, 4))],
    "ventricles": [((10, 2, 18), (6, 24, 6)), ((20, 28, 11), (7, 12, 9)), ((0, 4, 2), (2.2, 14, 11)),
                   ((0, 33, -42), (8, 6, 10))],
}  # fmt: skip


class Lesion(NamedTuple):
    """A glioma: its centre in mm, the radius of its core, how far the edema reaches beyond the core and how thick
    the enhancing rim is, all in mm, and the gadolinium in the rim in mM: 0 if it does not enhance."""

    centre: np.ndarray
    core: float
    edema: float
    rim: float
    gadolinium: float


def column(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Three values that broadcast over points (3, x, y, z)."""
    return np.asarray(values, dtype=np.float32).reshape(3, 1, 1, 1)


def double(field: np.ndarray) -> np.ndarray:
    """The field at twice the resolution along each axis, by quadratic B-spline subdivision (Chaikin 1974)."""
    for axis in range(field.ndim):
        field = ndimage.correlate1d(np.repeat(field, 2, axis), (0.25, 0.5, 0.25), axis, mode="nearest")
    return field


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], doublings: int) -> np.ndarray:
    """Noise of deviation 1 that is smooth over 2 ** doublings voxels: float32 of the shape."""
    sizes = [[-(-n // 2**k) for n in shape] for k in range(doublings, -1, -1)]
    field = rng.standard_normal(sizes[0], dtype=np.float32)
    for size in sizes[1:]:
        field = double(field)[tuple(map(slice, size))]
    return field / field.std()


def distance(points: np.ndarray, *names: str) -> np.ndarray:
    """Approximate signed distance in mm, negative inside, from points (3, ...) to a union of ELLIPSOIDS."""
    points = np.stack([np.abs(points[0]), points[1], points[2]])
    nearest = np.full(points.shape[1:], np.inf, dtype=np.float32)
    for centre, radii in (ellipsoid for name in names for ellipsoid in ELLIPSOIDS[name]):
        scaled = np.stack([(points[i] - centre[i]) / radii[i] for i in range(3)])
        radius = np.sqrt((scaled**2).sum(axis=0))  # 1 on the surface
        slope = np.sqrt(sum((scaled[i] / radii[i]) ** 2 for i in range(3)))
        nearest = np.minimum(nearest, radius * (radius - 1) / np.maximum(slope, 1e-3))
    return nearest


def hull(points: np.ndarray) -> np.ndarray:
    """Approximate signed distance in mm from points (3, ...) to the outer surface of the cerebrum."""
    return np.minimum(np.maximum(distance(points, "cerebrum"), -22 - points[2]), distance(points, "temporal"))


def inside(signed_distance: np.ndarray, width: float = 1.0) -> np.ndarray:
    """How much of a voxel lies within a surface: a ramp `width` mm wide, which at 1 mm is partial volume."""
    return np.clip(0.5 - signed_distance / width, 0, 1)


def draw_lesion(rng: np.random.Generator, number: int) -> Lesion:
    """A random glioma in the depth of either hemisphere; that of every sixth patient does not enhance."""
    core = rng.uniform(7.5, 26)
    centre = np.zeros(3)
    while hull(centre) > -10 - 0.4 * core or distance(centre, "ventricles", "horns") < 3:
        centre = rng.uniform((12, -52, -30), (48, 52, 42))
    centre[0] *= rng.choice((-1, 1))
    edema, rim, gadolinium = rng.uniform((4, 2.5, 0.15), (18, 6, 0.5)).tolist()
    return Lesion(centre, core, edema, rim, gadolinium if number % 6 else 0.0)


def deform(rng: np.random.Generator, lesion: Lesion) -> tuple[np.ndarray, np.ndarray]:
    """Where each coarse voxel of this patient lies in the table of ellipsoids, without and with the tumour's mass
    effect: two float32 arrays (3, 76, 96, 76) in mm."""
    grid = np.stack(np.meshgrid(*(2 * np.arange(n, dtype=np.float32) + 1 - n for n in COARSE), indexing="ij"))
    grid += np.stack([2.5 * smooth_noise(rng, COARSE, 4) + smooth_noise(rng, COARSE, 2) for _ in grid])
    grid /= column(rng.uniform(0.94, 1.02, 3))
    grid[0] /= 1 + 0.0012 * grid[1]  # narrower in front
    away, reach = grid - column(lesion.centre), lesion.core + 8
    push = 0.45 * lesion.core / reach * np.exp(0.5 - 0.5 * (away**2).sum(axis=0) / reach**2)
    return grid, grid - push * away


def fold(rng: np.random.Generator, points: np.ndarray) -> np.ndarray:
    """Approximate distance in mm from points (3, 76, 96, 76) to the nearest sheet on which a sulcus can lie: the
    zeros of band-limited noise, drawn out from the middle of each hemisphere to meet its surface at right angles."""
    middle = np.stack([30 * np.sign(points[0]), 0 * points[0], 0 * points[0] + 4])
    radius = np.sqrt((((points - middle) / column((40, 80, 60))) ** 2).sum(axis=0))
    drawn = middle + 0.8 * (points - middle) / (radius + 0.1) ** 0.8
    noise = smooth_noise(rng, COARSE, 2)
    noise -= ndimage.gaussian_filter(noise, 4)
    index = [(p + n - 1) / 2 for p, n in zip(drawn, COARSE, strict=True)]
    folds = ndimage.map_coordinates(noise, index, order=1, mode="reflect")
    return folds / (np.sqrt(sum(g**2 for g in np.gradient(folds, 2.0))) + 0.03)


def make_anatomy(rng: np.random.Generator, lesion: Lesion) -> tuple[np.ndarray, Maps, np.ndarray]:
    """A patient's head: the brain, bool (152, 192, 152) in BOX; how much of each voxel of the brain is which tissue,
    float32 (voxels of the brain,); the labels of these voxels, uint8."""
    before, points = deform(rng, lesion)
    coarse = {name: distance(points, name) for name in ELLIPSOIDS}
    coarse |= {"x": points[0], "y": points[1], "z": points[2], "sheet": fold(rng, points)}
    coarse["depth"] = -hull(before)  # the skull does not give way
    stretch = column(np.exp(rng.normal(0, 0.15, 3)))
    coarse["lesion"] = np.sqrt((((before - column(lesion.centre)) * stretch) ** 2).sum(axis=0))
    fine = {name: double(field) for name, field in coarse.items()}  # (152, 192, 152)

    hindbrain = np.minimum(fine["cerebellum"], fine["brainstem"])
    notch = (np.abs(fine["sheet"]) < 1.3) & (fine["depth"] < 2.5) & (hindbrain > 0)
    rough = 0.7 * smooth_noise(rng, hindbrain.shape, 1)
    brain = (np.minimum(-fine["depth"], hindbrain) + rough < 0) & ~notch
    brain[[0, 1, -2, -1]] = brain[:, [0, 1, 2, 3, -4, -3, -2, -1]] = brain[:, :, [0, -1]] = False
    parts, _ = ndimage.label(brain)
    brain = parts == np.bincount(parts[brain]).argmax()

    def noise(doublings: int) -> np.ndarray:
        return smooth_noise(rng, brain.shape, doublings)[brain]

    d = {name: field[brain] for name, field in fine.items()}
    tissues = healthy_tissues(d, noise, atrophy=rng.uniform(0, 1))
    return brain, tissues, grow(lesion, tissues, d, noise)


def paint(tissues: Maps, name: str, fraction: np.ndarray) -> None:
    """Put a tissue in the place of this fraction of what is there."""
    for other in tissues:
        tissues[other] = tissues[other] * (1 - fraction)
    tissues[name] = tissues.get(name, 0) + fraction


def healthy_tissues(d: Maps, noise: Callable[[int], np.ndarray], atrophy: float) -> Maps:
    """How much of each voxel is which tissue before the tumour, from the distances d in mm, all (voxels,)."""
    fissure = np.hypot(d["x"], np.maximum(0, -d["callosum"]))
    below_sulcus = np.maximum(0, np.minimum(d["depth"], fissure) - 13 - 4 * noise(4))
    sulcus = np.hypot(d["sheet"], below_sulcus)
    pia = np.minimum.reduce([d["depth"] - 0.6, fissure - 0.7, d["sylvian"], sulcus - 0.4 - 0.6 * atrophy])
    tissues = {"csf": inside(pia), "gm": inside(pia - 3) - inside(pia), "wm": 1 - inside(pia - 3)}
    paint(tissues, "gm", 0.7 * inside(d["deep"]))

    stem = inside(d["brainstem"])
    cerebellum = inside(d["cerebellum"]) * (1 - stem)
    shells = np.sqrt(0.5 * d["x"] ** 2 + (d["y"] - 15) ** 2 + 1.6 * (d["z"] + 40) ** 2) + 2 * noise(3)
    folia = np.sin(2 * np.pi / 6 * shells)
    paint(tissues, "wm", 0.85 * stem)
    paint(tissues, "gm", cerebellum)
    paint(tissues, "wm", cerebellum * inside(d["cerebellum"] + 6, 4) * (0.6 + 0.3 * folia))
    paint(tissues, "csf", cerebellum * inside(-d["cerebellum"] - 9, 4) * np.maximum(folia - 0.6, 0))

    vessel = np.hypot(sulcus, 4 * noise(3)) - 0.7
    sinus = np.hypot(d["x"], d["depth"] - 1.5) - 2 + 0.03 * np.maximum(0, -20 - d["y"])
    paint(tissues, "blood", inside(np.minimum(vessel, sinus)) * (1 - stem) * (1 - cerebellum))
    ventricles = np.minimum(d["ventricles"], d["horns"]) + 1 - 2.5 * atrophy
    paint(tissues, "csf", inside(ventricles))
    spots = np.minimum(6 * (2.9 - noise(2)), ventricles - 2 - 1.5 * noise(4))  # and caps of the ventricles
    paint(tissues, "wmh", tissues["wm"] * inside(spots, 3) * (d["depth"] > 5) * (1 - stem) * (1 - cerebellum))
    return tissues


def grow(lesion: Lesion, tissues: Maps, d: Maps, noise: Callable[[int], np.ndarray]) -> np.ndarray:
    """Paint the tumour into the tissues, given the distances d in mm; its labels, uint8 (voxels,)."""
    beyond_falx = np.minimum(1.5 - d["x"] * np.sign(lesion.centre[0]), d["callosum"])
    wall = np.maximum(beyond_falx, 1 - np.minimum(d["ventricles"], d["horns"]))
    lobes, fringe = 0.2 * noise(4) + 0.05 * noise(2), noise(3)
    core = d["lesion"] + lesion.core * (lobes + 0.15 * fringe - 1)
    core = np.maximum.reduce([core, wall, 2 - d["depth"]])
    necrosis = core + lesion.rim * (1 + 0.4 * noise(3) + 0.2 * noise(2)) * (lesion.gadolinium > 0)
    edema = d["lesion"] + (lesion.core + lesion.edema) * (0.5 * lobes - 0.1 * fringe + 0.1 * noise(3) - 1)
    edema += 8 * (1 - tissues["wm"] - tissues["wmh"])  # it spreads along white matter
    edema = np.minimum(np.maximum(edema, wall), core)
    for name, surface, width in (("ed", edema, 2.5), ("et", core, 1.5), ("ncr", necrosis, 1.5)):
        paint(tissues, name, inside(surface, width))
    return np.select([necrosis < 0, core < 0, edema < 0], [NCR, ET, ED], 0).astype(np.uint8)


def spin_echo(tissue: Tissue, tr: float, te: float) -> float:
    """The signal of a spin echo relative to fully relaxed water: times in ms."""
    return tissue.pd * (1 - np.exp(-tr / tissue.t1)) * np.exp(-te / tissue.t2)


def inversion_recovery(tissue: Tissue, tr: float, te: float, ti: float) -> float:
    """The magnitude of a spin echo that begins ti after an inversion: times in ms."""
    recovered = 1 - 2 * np.exp(-ti / tissue.t1) + np.exp(-tr / tissue.t1)
    return abs(tissue.pd * recovered * np.exp(-te / tissue.t2))


def null_time(t1: float, tr: float) -> float:
    """The inversion time in ms at which a tissue of this T1 gives no signal: so CSF is dark in FLAIR."""
    return t1 * (np.log(2) - np.log1p(np.exp(-tr / t1)))


def enhance(tissue: Tissue, gadolinium: float) -> Tissue:
    """The tissue with gadolinium in mM, which raises the rate 1/T1 by RELAXIVITY times its concentration."""
    return tissue._replace(t1=1000 / (1000 / tissue.t1 + RELAXIVITY * gadolinium))


def signal(tissue: Tissue, modality: str, gadolinium: float = 0.0, stretch: float = 1.0) -> float:
    """The signal of a tissue in one of the SEQUENCES with its times stretched; gadolinium counts in T1c only."""
    tr, te = (stretch * time for time in SEQUENCES[modality])
    if modality == "flair":
        return inversion_recovery(tissue, tr, te, null_time(TISSUES["csf"].t1, tr))
    return spin_echo(enhance(tissue, gadolinium) if modality == "t1ce" else tissue, tr, te)


def scan(rng: np.random.Generator, brain: np.ndarray, tissues: Maps, gadolinium: float) -> np.ndarray:
    """T1, T1c, T2 and FLAIR with bias field and Rician noise: whole numbers, float32 (4, voxels of the brain)."""
    table, dose = dict(TISSUES), {"et": gadolinium, "blood": 0.5}
    for name in ("ed", "et", "ncr"):  # no two tumours are alike
        t1, t2 = rng.normal(1, 0.06, 2).tolist()
        table[name] = Tissue(table[name].t1 * t1, table[name].t2 * t2, table[name].pd)
    images = np.zeros((4, np.count_nonzero(brain)), dtype=np.float32)
    texture = 1 + 0.025 * smooth_noise(rng, brain.shape, 2)[brain]
    for image, modality in zip(images, SEQUENCES, strict=True):
        stretch = rng.uniform(0.9, 1.1)
        for name, fraction in tissues.items():
            image += fraction * signal(table[name], modality, dose.get(name, 0.0), stretch)
        image *= texture * np.exp(0.1 * smooth_noise(rng, brain.shape, 6)[brain])
        image *= np.exp(rng.uniform(np.log(200), np.log(900))) / np.median(image)
        noise = rng.uniform(0.02, 0.05) * np.median(image) * rng.standard_normal((2, image.size))
        image[:] = np.hypot(image + noise[0], noise[1])
    return np.clip(np.rint(images), 1, 32767)


def make_patient(seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Patient `number` of data set `seed`: images T1, T1c, T2, FLAIR, whole numbers as float32 (4, 240, 240, 155), 0
    outside of the brain; labels 0 background, 1 NCR, 2 ED, 4 ET, uint8 (240, 240, 155)."""
    rng = np.random.default_rng((seed, number))
    lesion = draw_lesion(rng, number)
    brain, tissues, tumour = make_anatomy(rng, lesion)
    images, labels = np.zeros((4, *SHAPE), dtype=np.float32), np.zeros(SHAPE, dtype=np.uint8)
    images[(slice(None), *BOX)][:, brain] = scan(rng, brain, tissues, lesion.gadolinium)
    labels[BOX][brain] = tumour
    return images, labels


def write_hdf5(folder: Path, number: int, images: np.ndarray, labels: np.ndarray) -> None:
    """Write volume_{number}_slice_{m}.h5 as on Kaggle: image float32 (240, 240, 4) and mask uint8 (240, 240, 3) of
    NCR, ED and ET."""
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    masks = np.stack([labels == value for value in (NCR, ED, ET)]).astype(np.uint8)
    for m in range(labels.shape[2]):
        content = io.BytesIO()  # HDF5 itself would crash on a full disk instead of raising OSError
        with h5py.File(content, "w") as file:
            for name, stack in (("image", images), ("mask", masks)):
                data = np.ascontiguousarray(np.moveaxis(stack[..., m], 0, -1))  # (240, 240, channels)
                file.create_dataset(name, data=data, chunks=data.shape, shuffle=True, compression="lzf")
        (folder / f"volume_{number}_slice_{m}.h5").write_bytes(content.getbuffer())


def write_nifti(folder: Path, case: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Write {case}/{case}_{t1,t1ce,t2,flair,seg}.nii.gz as in BraTS: int16 and for seg uint8, (240, 240, 155)."""
    import nibabel as nib

    (folder / case).mkdir(parents=True, exist_ok=True)
    volumes = dict(zip(SEQUENCES, images.astype(np.int16), strict=True)) | {"seg": labels.astype(np.uint8)}
    for name, volume in volumes.items():
        content = gzip.compress(nib.Nifti1Image(volume, AFFINE).to_bytes(), compresslevel=1, mtime=0)
        (folder / case / f"{case}_{name}.nii.gz").write_bytes(content)


def write_patient(folder: Path, seed: int, layout: Layout, number: int) -> None:
    """Make one patient and write it in this layout."""
    if layout == "hdf5":
        write_hdf5(folder, number, *make_patient(seed, number))
    else:
        write_nifti(folder, f"Phantom_{number:03d}", *make_patient(seed, number))


def write_phantom(
    folder: Path, patients: int = 20, seed: int = 0, layout: Layout = "hdf5", workers: int | None = None
) -> Path:
    """Write the data set into a folder, unless it is there already, and return the folder.

    It appears whole or not at all: it is written beside the folder and renamed at the end. A phantom of other
    arguments or of another VERSION is replaced. `workers` processes share the work, by default one a core.

    Raises:
        ValueError: the arguments make no data set, or the folder holds something else.
        OSError: the folder cannot be written; nothing of the new data set is left then.
    """
    from tqdm import tqdm

    if patients < 1 or seed < 0 or layout not in get_args(Layout):
        raise ValueError(f"no phantom has {patients} patients, seed {seed} and layout {layout}")
    parameters = {"version": VERSION, "patients": patients, "seed": seed, "layout": layout}
    target = Path(folder).resolve()
    made = target / "phantom.json"
    if made.is_file():
        if json.loads(made.read_text()) == parameters:
            return folder
    elif target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{folder} holds something else than a phantom: choose another folder")

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    part, old = (target.with_name(f".{target.name}-{uuid.uuid4().hex}.{end}") for end in ("part", "old"))
    try:
        part.mkdir(parents=True)
        with ProcessPoolExecutor(min(patients, workers or cores or 1), get_context("spawn")) as pool:
            done = pool.map(partial(write_patient, part, seed, layout), range(1, patients + 1))
            list(tqdm(done, desc=f"phantom, {layout}", unit="patient", total=patients))
        (part / made.name).write_text(json.dumps(parameters))
        if target.exists():
            target.rename(old)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    import tyro

    def phantom(
        folder: tyro.conf.Positional[Path] = Path(__file__).parent / "phantom",
        patients: int = 20,
        seed: int = 0,
        layout: Layout = "hdf5",
    ) -> Path:
        """Write the simulated glioma data set into a folder, unless it is there already."""
        return write_phantom(folder, patients, seed, layout)

    try:
        print(tyro.cli(phantom, args=arguments))
    except (ValueError, OSError) as error:
        print(f"phantom: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
