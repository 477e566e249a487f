"""A folder of labelled images: which files there are, and how one is read.

    for image in find_images(Path("datasets/classification")):
        pixels = read_gray(image.path)                      # (H, W) uint8

The layout is that of the Brain Tumor MRI Dataset: Training/ and Testing/, each with a folder a class. A tree without
these two, classes at its top, is one part named "".
"""

import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from datasets import dicom

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")  # class codes 0, 1, 2, 3
PARTS = ("Training", "Testing")
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".dcm"}
PREPROCESSED = "preprocessed"  # a folder of this name holds copies: it is passed over
SMALLEST = 16  # pixels: below, nothing can be seen
UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error,
              Pillow.DecompressionBombError)  # from Pillow on damaged files  # fmt: skip


@dataclass(frozen=True)
class Image:
    """One file of the data set."""

    path: Path
    name: str  # below the data set's folder, such as Training/glioma/Tr-gl_0010.jpg
    part: str  # Training, Testing, or "" where the tree is not divided
    label: str  # name of its class


def find_images(folder: Path, classes: Sequence[str] | None = CLASSES) -> list[Image]:
    """All images below a folder, sorted by name; the data set may lie one folder deeper, as an archive unpacks.

    Args:
        classes: the folders that may be there, and must each hold an image in each part; None takes any.

    Raises:
        FileNotFoundError: no folder, or no image in it.
        ValueError: a folder is no class, or a class has no image in a part, or some in a folder within its own.
    """
    top = root(folder)
    parts = [part for part in PARTS if (top / part).is_dir()]
    images = []
    for part in parts or [""]:
        for label in _folders(top / part):
            if classes is not None and label not in classes:
                found = ", ".join(_folders(top / part))
                raise ValueError(
                    f"{top / part / label} is no class: the folders there are {found}, and must be {', '.join(classes)}"
                )
            files = sorted(path for path in (top / part / label).iterdir()
                           if path.name[0] != "." and is_image(path))  # fmt: skip
            if deeper := _images_below(top / part / label):
                raise ValueError(f"{deeper} lies in a folder within its class: images lie in that of the class itself")
            images += [Image(path, path.relative_to(top).as_posix(), part, label) for path in files]
            if not files and classes is not None:
                raise ValueError(f"{top / part / label} holds no image: fetch the data set again, or fill the folder")
    if not images:
        raise FileNotFoundError(f"no image in {folder}: give it a folder a class, in Training/ and Testing/ or not")
    for part in parts or [""]:
        there = {image.label for image in images if image.part == part}
        if classes is not None and (missing := set(classes) - there):
            raise ValueError(f"{top / part} lacks the class {min(missing)}: add it, or fetch the set again")
    return images


def is_image(path: Path) -> bool:
    """By the ending of its name. A DICOM file has any, or none, and says so inside; so does DICOMDIR, which is none."""
    return path.suffix.lower() in SUFFIXES or (path.name != "DICOMDIR" and dicom.is_dicom(path))


def root(folder: Path) -> Path:
    """The folder that holds Training/ or Testing/: the given one, or one inside it.

    Raises:
        FileNotFoundError: no folder.
        ValueError: several inside it do.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: see README for how to get the data set")
    if _is_root(folder):
        return folder
    inside = [folder / name for name in _folders(folder) if _is_root(folder / name)]
    if len(inside) > 1:
        raise ValueError(f"{inside[0]} and {inside[1]} are two data sets: name the folder of one")
    return inside[0] if inside else folder


def _images_below(folder: Path) -> Path | None:
    """An image in a folder within this one, if there is one."""
    return next((path for name in _folders(folder) for path in sorted((folder / name).rglob("*"))
                 if path.is_file() and path.name[0] != "." and is_image(path)), None)  # fmt: skip


def _is_root(folder: Path) -> bool:
    return any((folder / part).is_dir() for part in PARTS)


def _folders(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and path.name != PREPROCESSED and path.name[0] != "."
    )


def read_gray(path: Path) -> np.ndarray:
    """The pixels of an image of any mode, or of a DICOM slice, as (H, W) uint8.

    Colours become their luminance, transparent pixels black, more than 8 bits are scaled to what the image uses;
    photographs are turned as their camera says.

    Raises:
        ValueError: not an image, damaged, cut off, of several pages, too small to show anything, or blank.
    """
    pixels = _to_gray(dicom.read_slice(path)) if dicom.is_dicom(path) else _read_picture(path)
    if min(pixels.shape) < SMALLEST:
        raise ValueError(f"{path} has only {pixels.shape[1]} x {pixels.shape[0]} pixels: replace or remove it")
    if pixels.min() == pixels.max():
        raise ValueError(f"{path} shows nothing, all its pixels are equal: replace or remove it")
    return pixels


def _read_picture(path: Path) -> np.ndarray:
    try:
        with Pillow.open(path) as image:
            image.draft("L", None)  # a JPEG then decodes its luminance alone
            deep = ";16" in str(image.tile) and len(image.getbands()) > 1  # colours of 16 bits: Pillow keeps 8 of them
            image.load()
            pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
            with suppress(*UNREADABLE):  # damaged EXIF does not say how the camera was held
                ImageOps.exif_transpose(image, in_place=True)
            pixels = _to_gray(_deep_gray(path) if deep else image)
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as an image: replace or remove it ({error})") from error
    if pages > 1:
        raise ValueError(f"{path} holds {pages} pages: save each as an image of its own")
    return pixels


def _deep_gray(path: Path) -> Pillow.Image:
    """Colours of 16 bits as their luminance, transparent pixels black, an image of mode F."""
    import cv2

    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("colours of 16 bits in a form that is not known")
    blue, green, red, *alpha = np.moveaxis(pixels.astype(np.float32), -1, 0)
    gray = 0.299 * red + 0.587 * green + 0.114 * blue
    return Pillow.fromarray(gray * alpha[0] / 65535 if alpha else gray)


def _to_gray(image: Pillow.Image) -> np.ndarray:
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits
        deep = np.asarray(image, np.float64)
        low, high = deep.min(), deep.max()  # NaN if there is one
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("NaN or infinite pixels")
        return ((deep - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Pillow.alpha_composite(Pillow.new("RGBA", image.size, "black"), image)
    return np.asarray(image.convert("L"))
