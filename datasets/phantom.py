"""A simulated multimodal glioma data set, so that everything runs with no download.

    python datasets/phantom.py                                        # 20 patients as Kaggle's HDF5 slices
    python datasets/phantom.py FOLDER --patients 5 --layout nifti     # 5 as BraTS-style NIfTI cases

Where each tissue is comes from `phantom_anatomy.py`, how bright it is from `mri_signal.py`. It is a brain to try
programs on, not to learn medicine from: a result on it says nothing about patients.

Volumes are (240, 240, 155) voxels of 1 mm: right to left, anterior to posterior, inferior to superior, as in BraTS.
"""

import gzip
import io
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, get_args

import h5py
import nibabel as nib
import numpy as np

if not __package__:  # started as a script, wherever
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.brats import AFFINE
from datasets.mri_signal import SEQUENCES, TISSUES, Tissue, signal
from datasets.parallel import cores
from datasets.phantom_anatomy import BOX, ED, ET, NCR, SHAPE, Maps, draw_lesion, make_anatomy, smooth_noise
from datasets.phantom_folder import building

FIRST = 1000  # the numbers of a seed's patients in HDF5 begin here or later: 1 to 369 are real patients of BraTS 2020
VERSION = 4  # raise it when arrays or names change: data sets of another version are written anew
FOLDER = Path(__file__).with_name("phantom")
Layout = Literal["hdf5", "nifti"]


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
    (folder / case).mkdir(parents=True, exist_ok=True)
    volumes = dict(zip(SEQUENCES, images.astype(np.int16), strict=True)) | {"seg": labels.astype(np.uint8)}
    for name, volume in volumes.items():
        content = gzip.compress(nib.Nifti1Image(volume, AFFINE).to_bytes(), compresslevel=1, mtime=0)
        (folder / case / f"{case}_{name}.nii.gz").write_bytes(content)


def write_patient(folder: Path, seed: int, layout: Layout, number: int) -> None:
    """Make one patient and write it in this layout."""
    if layout == "hdf5":
        write_hdf5(folder, FIRST * (seed + 1) + number, *make_patient(seed, number))
    else:
        write_nifti(folder, f"Phantom_{seed}_{number:03d}", *make_patient(seed, number))


def write_phantom(folder: Path, patients: int = 20, seed: int = 0, layout: Layout = "hdf5") -> Path:
    """Write the data set into a folder, unless it is there already, and return the folder.

    It appears whole or not at all: it is written beside the folder and renamed at the end. A phantom of other
    arguments or of another VERSION is replaced. A process a core shares the work.

    Raises:
        ValueError: the arguments make no data set, or the folder holds something else.
        OSError: the folder cannot be written; nothing of the new data set is left then.
    """
    from tqdm import tqdm

    if not 1 <= patients < FIRST or seed < 0 or layout not in get_args(Layout):
        made = f"{patients} patients, seed {seed} and layout {layout}"
        raise ValueError(f"no phantom has {made}: it takes 1 to {FIRST - 1} patients, and a seed of 0 or more")
    parameters = {"version": VERSION, "patients": patients, "seed": seed, "layout": layout}
    with building(folder, parameters) as part:
        if part is not None:
            with ProcessPoolExecutor(min(patients, cores()), get_context("spawn")) as pool:
                done = pool.map(partial(write_patient, part, seed, layout), range(1, patients + 1))
                list(tqdm(done, desc=f"phantom, {layout}", unit="patient", total=patients))
    return folder


def main(folder: Path = FOLDER, /, patients: int = 20, seed: int = 0, layout: Layout = "hdf5") -> None:
    """Write the simulated glioma data set into FOLDER, unless it is there already."""
    print(write_phantom(folder, patients, seed, layout))


if __name__ == "__main__":
    from utils import cli

    cli.run(main, __doc__)
