"""What comes before training: writing the benchmark's data, building the stores, and the way to the first step."""

import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets import phantom, phantom_slices
from datasets.brats import find_cases, read_case
from datasets.image_store import open_images
from datasets.phantom_folder import any_phantom
from datasets.slices import WINDOW, open_slices
from datasets.store import Store
from training.options import ROOT, CNNOptions, UNetOptions
from training.stages import no_data

PATIENTS = 2
BRATS = np.array([0, 1, 2, 4], np.uint8)  # the value in the files of each label code


class Built(NamedTuple):
    """A store and its price."""

    samples: int
    seconds: float
    bytes: int


def write_slices(source: Path, target: Path, patients: int = PATIENTS) -> None:
    """The first patients of a folder (of the phantom where it is the default one and empty) as Kaggle's HDF5 slices."""
    if no_data(UNetOptions(data=source)):
        phantom.write_phantom(target, patients)
        return
    for number, case in enumerate(find_cases(source)[:patients], 1):
        volumes = read_case(case)
        assert volumes.labels is not None
        phantom.write_hdf5(target, number, volumes.images, BRATS[volumes.labels])


def images_folder(source: Path) -> Path:
    """The folder itself; the phantom where it is the default one and empty."""
    if no_data(CNNOptions(data=source)):
        return any_phantom(phantom_slices.FOLDER, phantom_slices.VERSION, phantom_slices.write_image_phantom)
    return source


def build_slices(slices: Path, cache: Path, window: tuple[int, int] = WINDOW) -> Built:
    """The store of HDF5 slices."""
    start = time.perf_counter()
    return _built(open_slices(slices, cache, window), start)


def build_images(folder: Path, cache: Path, image_size: int) -> Built:
    """The store of images."""
    start = time.perf_counter()
    return _built(open_images(folder, cache, image_size), start)


def _built(store: Store, start: float) -> Built:
    passed = time.perf_counter() - start
    return Built(len(store), passed, sum(path.stat().st_size for path in store.folder.iterdir()))


def first_step(slices: Path, cache: Path, run: Path, device: str) -> float:
    """Seconds from the start of the training script to the end of its first step, its store being there.

    The step is over when a checkpoint appears: with --save-every 0 each step is followed by one.

    Raises:
        ValueError: the script ended without a step; says what it said.
    """
    command = [sys.executable, ROOT / "training" / "unet_training.py", "--model", "classic_unet", "--n-filters", "8",
               "--data", slices, "--cache", cache, "--name", run, "--device", device, "--batch-size", "4",
               "--val", "0", "--test", "0.5", "--save-every", "0"]  # fmt: skip
    pipe, start = subprocess.PIPE, time.perf_counter()
    with subprocess.Popen(list(map(str, command)), stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
        while not (run / "last.pt").exists() and process.poll() is None:
            time.sleep(0.005)
        passed = time.perf_counter() - start
        process.terminate()
        said, _ = process.communicate()
    if not (run / "last.pt").exists():
        raise ValueError(f"training/unet_training.py ended before its first step: {said.strip()[-500:]}")
    return passed
