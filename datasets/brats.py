"""One BraTS case, whatever its layout, as arrays.

    for source in find_cases(Path("datasets/segmentation")):
        case = read_case(source)                 # case.images (4, X, Y, Z), case.labels (X, Y, Z)

A case is one visit of one glioma patient: four co-registered, skull-stripped MRI volumes and the tumour
labels. Which files make up a case, and in which layouts, is in `brats_files.py`.

What a label value means follows from the naming of the files, never from the values seen: the enhancing
tumour is 4 until BraTS 2021 and 3 in 2023; from 2024 on, 4 is the resection cavity.

BraTS: Menze 2015 (10.1109/TMI.2014.2377694), Bakas 2017 (10.1038/sdata.2017.117), Bakas 2018 (arXiv
1811.02629), Baid 2021 (arXiv 2107.02314). Decathlon: Antonelli 2022 (10.1038/s41467-022-30695-9).
"""

import functools
import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from datasets.brats_files import MODALITIES, Source, find_cases, listing

__all__ = ["CLASSES", "LABELS", "MODALITIES", "REGIONS", "BadLabels", "Case", "Source",
           "as_image", "background", "find_cases", "read_case", "regions"]

CLASSES = ("NCR", "ED", "ET")  # label codes 1, 2, 3; 0 is background
REGIONS = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}  # whole tumour, tumour core, enhancing tumour
LABELS = {  # convention -> value in the file -> label code
    "2021": {1: 1, 2: 2, 4: 3},
    "2023": {1: 1, 2: 2, 3: 3},
    "msd": {1: 2, 2: 1, 3: 3},
}
MSD_ORDER = ("flair", "t1", "t1c", "t2")  # along the fourth axis of the image
HDF5_PLANE = (240, 240)
AFFINE = np.array([[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=float)  # that of every BraTS case
GZIP = b"\x1f\x8b"
UNREADABLE = (OSError, EOFError, KeyError, MemoryError, TypeError, ValueError, OverflowError, RuntimeError, zlib.error,
              ImageFileError, HeaderDataError, WrapStructError)  # from nibabel, gzip and h5py on damaged files


class BadLabels(ValueError):
    """A label file holds values that its convention does not know."""


@dataclass
class Case:
    """One case in the project's form. Axes run right to left, front to back, feet to head (LPS, as BraTS
    stores them); planes of equal z lie together in memory, since slices are what is taken from it.

    images  (4, X, Y, Z) float32, in the order of MODALITIES, intensities as in the files
    labels  (X, Y, Z) uint8: 0 background, 1 NCR, 2 ED, 3 ET; None if the case has none
    affine  (4, 4): from voxel indices of these arrays to millimetres (RAS+, as in NIfTI)
    header  of the T1 file, whose grid and orientation may be others; None for HDF5 slices
    """

    case: str
    patient: str
    images: np.ndarray
    labels: np.ndarray | None
    affine: np.ndarray
    header: nib.Nifti1Header | None = None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Size of a voxel along each axis, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z

    @functools.cached_property
    def brain(self) -> np.ndarray:
        """(X, Y, Z) bool: voxels unlike the background in any modality; computed at the first use."""
        return functools.reduce(np.logical_or, (volume != background(volume) for volume in self.images))


def background(volume: np.ndarray) -> float:
    """The commonest value on the six faces of a (X, Y, Z) volume: 0 in BraTS as published, another constant
    where somebody normalised the volume, background and all."""
    faces = [np.moveaxis(volume, axis, 0)[end].ravel() for axis in range(3) for end in (0, -1)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    return float(values[counts.argmax()])


def regions(labels: np.ndarray) -> dict[str, np.ndarray]:
    """The nested regions that BraTS scores, WT, TC and ET: boolean masks of the shape of `labels` (codes)."""
    return {name: np.isin(labels, codes) for name, codes in REGIONS.items()}


def as_image(case: Case, codes: np.ndarray, convention: str = "2021") -> nib.Nifti1Image:
    """Label codes (X, Y, Z) of a case as the case's own label file would hold them: on the grid and with the affine
    of its T1 file, in the values of a convention (a key of LABELS)."""
    values = np.zeros(len(CLASSES) + 1, dtype=np.uint8)
    values[list(LABELS[convention].values())] = list(LABELS[convention])
    if case.header is None:
        image = nib.Nifti1Image(values[codes], case.affine)
        image.header.set_xyzt_units("mm")
        return image
    affine = case.header.get_best_affine()
    from_lps = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("LPS"), nib.io_orientation(affine))
    image = nib.Nifti1Image(nib.apply_orientation(values[codes], from_lps), affine, case.header)
    image.set_data_dtype(np.uint8)
    image.header["cal_min"] = image.header["cal_max"] = 0  # the T1's display range
    return image


def read_case(source: Source, labels: str | None = None, modalities: Sequence[str] = MODALITIES,
              need_labels: bool = True) -> Case:
    """Read one case.

    labels       what the values of the label file mean (a key of LABELS), if not what its name says
    modalities   what the four channels of HDF5 images are; NIfTI files say it themselves
    need_labels  False: a case may come without labels (if there are some, they are read)

    Raises ValueError or FileNotFoundError, in one sentence that names the file, for whatever is missing,
    damaged, on another grid than the rest of the case, not finite, constant, or outside the label convention.
    """
    if labels is not None and labels not in LABELS:
        raise ValueError(f"--labels {labels}: unknown; choose one of {listing(LABELS)}")
    if sorted(modalities) != sorted(MODALITIES):
        raise ValueError(f"--modalities {' '.join(modalities)}: give {listing(MODALITIES)}, each once, "
                         "in the order of the file's channels")
    if labels is not None and source.layout == "hdf5":
        raise ValueError(f"--labels: not for {source.pattern}, with a mask channel per class; leave it out")
    if tuple(modalities) != MODALITIES and source.layout != "hdf5":
        raise ValueError(f"--modalities: not for {source.pattern}, whose names tell them; leave it out")
    source.check(need_labels)
    if source.layout == "hdf5":
        return _read_hdf5(source, modalities, need_labels)
    return _read_nifti(source, labels or str(source.convention))


def _read_nifti(source: Source, convention: str) -> Case:
    volumes = {part: (path, values, header) for part, path, values, header in _nifti_volumes(source)}
    first, values, header = volumes["t1"]
    affine = header.get_best_affine()
    for path, other, other_header in volumes.values():
        if other.shape != values.shape:
            raise ValueError(f"{path}: shape {other.shape}, but {first.name} has {values.shape}; resample "
                             "the files of a case to one grid")
        if not np.allclose(other_header.get_best_affine(), affine, rtol=0, atol=1e-3):
            raise ValueError(f"{path}: the affine differs from that of {first.name}; resample the files of a "
                             "case to one grid")
    to_lps = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt("LPS"))
    lps = {part: nib.apply_orientation(stored, to_lps) for part, (_, stored, _) in volumes.items()}
    images = np.stack([lps[part] for part in MODALITIES], out=_empty_images(lps["t1"].shape))
    for part, image in zip(MODALITIES, images, strict=True):
        _check_intensities(f"{volumes[part][0]}: {part}", image)
    codes = _to_codes(volumes["seg"][0], lps["seg"], convention) if "seg" in lps else None
    affine = affine @ nib.orientations.inv_ornt_aff(to_lps, values.shape)
    return Case(source.case, source.patient, images, codes, affine, header)


def _nifti_volumes(source: Source) -> Iterator[tuple[str, Path, np.ndarray, nib.Nifti1Header]]:
    """(part, path, (X, Y, Z) values, header) as stored: the modalities, then the labels, if there are any."""
    if source.layout == "msd":
        path = source.files["image"]
        values, header = _load_nifti(path, ndim=4)
        if values.shape[3] != len(MSD_ORDER):
            raise ValueError(f"{path}: {values.shape[3]} channels instead of the four of Task01_BrainTumour "
                             f"({listing(MSD_ORDER)}); give the folder of that task")
        for channel, part in enumerate(MSD_ORDER):
            yield part, path, values[..., channel], header
    else:
        for part in MODALITIES:
            yield part, source.files[part], *_load_nifti(source.files[part], ndim=3)
    if "seg" in source.files:
        yield "seg", source.files["seg"], *_load_nifti(source.files["seg"], ndim=3)


def _load_nifti(path: Path, ndim: int) -> tuple[np.ndarray, nib.Nifti1Header]:
    """Values (float32) and header of a NIfTI file. Decompressing it in one go takes half the time of reading
    it through nibabel, and verifies the checksum."""
    with _in_one_sentence(path):
        data = path.read_bytes()
        if data.startswith(GZIP):
            data = gzip.decompress(data)
        image = nib.Nifti1Image.from_bytes(data)
        shape, affine = image.shape, image.header.get_best_affine()
        values = np.asarray(image.dataobj, dtype=np.float32) if len(shape) == ndim else None
    if values is None:
        raise ValueError(f"{path}: {ndim}-D expected here, but the shape is {shape}; convert the file")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
        raise ValueError(f"{path}: the affine of the header is singular; repair its sform or qform")
    return values, image.header


def _to_codes(path: Path, values: np.ndarray, convention: str) -> np.ndarray:
    """Label values as stored -> codes 0 to 3 (uint8); whatever the convention does not name is refused."""
    unknown = 255
    table = np.full(256, unknown, dtype=np.uint8)
    table[[0, *LABELS[convention]]] = [0, *LABELS[convention].values()]
    with np.errstate(invalid="ignore"):  # NaN, negative: found below, as they differ from what they became
        whole = values.astype(np.uint8)
    codes = table[whole]
    wrong = (codes == unknown) | (whole != values)
    if not wrong.any():
        return codes
    found = [f"{value:g}" for value in np.unique(values[wrong])]
    if convention == "2023" and "4" in found:
        raise BadLabels(f"{path}: label 4 is the resection cavity from 2024 on, which is none of "
                        f"{listing(CLASSES)}; leave the case out, or give --labels 2021 if 4 is ET here")
    raise BadLabels(f"{path}: label {listing(found)} is not among 0, {listing(LABELS[convention])}, the "
                    f"labels of convention {convention}; repair the file, or choose --labels from "
                    f"{listing(LABELS)}")


def _read_hdf5(source: Source, modalities: Sequence[str], need_labels: bool) -> Case:
    images = _empty_images((*HDF5_PLANE, len(source.files)))
    codes: np.ndarray | None = np.empty_like(images[0], dtype=np.uint8)
    order = [list(modalities).index(modality) for modality in MODALITIES]
    for z, path in enumerate(source.files.values()):
        with _in_one_sentence(path), h5py.File(path, "r") as file:
            image, mask = (file[name][...] if name in file else None for name in ("image", "mask"))
        images[..., z] = _checked(path, "image", image, len(MODALITIES))[..., order].transpose(2, 0, 1)
        if mask is None and not need_labels:
            codes = None
        if codes is not None:
            codes[..., z] = _mask_to_codes(path, mask)
    for modality, image in zip(MODALITIES, images, strict=True):
        _check_intensities(f"{source.pattern}: {modality}", image)
    affine = AFFINE.copy()
    affine[2, 3] = int(next(iter(source.files)))  # mm: the first slice may not be slice 0
    return Case(source.case, source.patient, images, codes, affine)


def _mask_to_codes(path: Path, mask: np.ndarray | None) -> np.ndarray:
    """(240, 240, 3) of 0 and 1 for NCR, ED and ET -> (240, 240) codes."""
    mask = _checked(path, "mask", mask, len(CLASSES))
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"{path}: the mask holds values other than 0 and 1; download the file again")
    mask = mask.astype(np.uint8)
    if (mask.sum(axis=2) > 1).any():
        raise ValueError(f"{path}: {listing(CLASSES)} overlap in the mask; repair it, a voxel has one class")
    return mask @ np.array([1, 2, 3], dtype=np.uint8)


def _checked(path: Path, name: str, values: np.ndarray | None, channels: int) -> np.ndarray:
    """The values of an HDF5 data set, if it is there, of the right shape, and finite."""
    shape = (*HDF5_PLANE, channels)
    if values is None:
        raise ValueError(f"{path}: no data set '{name}' of shape {shape} in it; download the file again")
    if np.shape(values) != shape:
        raise ValueError(f"{path}: '{name}' has shape {np.shape(values)}; give the slices of shape {shape} "
                         "as published on Kaggle")
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: '{name}' holds NaN or infinite values; download the file again")
    return values


def _check_intensities(where: str, volume: np.ndarray) -> None:
    low, high = volume.min(), volume.max()  # NaN if there is one
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{where} holds NaN or infinite voxels; repair the file or take the case away")
    if low == high:
        raise ValueError(f"{where} is {low:g} everywhere; replace the file or take the case away")


def _empty_images(shape: tuple[int, ...]) -> np.ndarray:
    """(4, X, Y, Z) float32, x fastest in memory, as in NIfTI files."""
    return np.empty((len(MODALITIES), *shape[::-1]), dtype=np.float32).transpose(0, 3, 2, 1)


@contextmanager
def _in_one_sentence(path: Path) -> Iterator[None]:
    """Say in one sentence what the libraries raise about a file that is gone, damaged or of another kind."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: the file has gone; look for the cases again") from None
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: cannot be read ({reason}); download or export it again") from None
