"""What the tests share: small cases on disk, and the real data where they are."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core: set before torch is imported, and for scripts
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import nibabel as nib
import numpy as np
import pytest
import torch

AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The jobs first: they take the longest, and wait more than they compute."""
    items.sort(key=lambda item: "slurm" not in item.keywords)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real MRI data: that of BRAIN_MRI_DATA, else the one beside the project."""
    folder = Path(os.environ.get("BRAIN_MRI_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}: name its folder in BRAIN_MRI_DATA")
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads would wait for each other longer than these small networks take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_case(seed: int, shape: tuple[int, int, int] = (40, 48, 12)) -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid of a brain with a ball of a tumour: images (4, X, Y, Z) int16, BraTS labels (X, Y, Z)."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"))
    centre = np.array(shape)[:, None, None, None] / 2
    brain = (((grid - centre) / (np.array(shape)[:, None, None, None] * 0.45)) ** 2).sum(0) < 1
    middle = centre[:, 0, 0, 0] + rng.uniform(-3, 3, 3) * (1, 1, 0.3)
    distance = np.sqrt(((grid - middle[:, None, None, None]) ** 2).sum(0))
    radius = rng.uniform(5, 8)
    labels = np.zeros(shape, np.uint8)
    for value, share in ((2, 1.0), (4, 0.7), (1, 0.4)):
        labels[brain & (distance < radius * share)] = value
    images = np.stack([200 + 40 * m + 60.0 * labels * (1 + m) for m in range(4)]) + rng.normal(0, 15, (4, *shape))
    return np.where(brain, images.clip(1), 0).astype(np.int16), labels


def write_case(folder: Path, name: str, images: np.ndarray, labels: np.ndarray) -> Path:
    """Write a case under its BraTS 2021 names; returns its folder."""
    target = folder / name
    target.mkdir(parents=True)
    for part, volume in zip(("t1", "t1ce", "t2", "flair", "seg"), (*images, labels), strict=True):
        nib.save(nib.Nifti1Image(volume, AFFINE), target / f"{name}_{part}.nii.gz")
    return target


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of six small NIfTI cases."""
    folder = tmp_path_factory.mktemp("data") / "small"
    for number in range(6):
        write_case(folder, f"Case_{number:03d}", *make_case(number))
    return folder


def left(folder: Path) -> list[str]:
    """What stands in a folder; locks of files do not count."""
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]
