"""From image files to what a classifier sees: cropped to the head, gray, 128 x 128, in a store, each with its group.

Groups, not images, are dealt to training, validation and test. Two images are of one group if they show one patient,
as far as that is known, or are near-duplicates, mirrored ones included (`datasets.duplicates`).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from datasets import patients, store
from datasets.duplicates import groups, near_pairs, thumbnails
from datasets.images import CLASSES, PARTS, Image, find_images, read_gray
from datasets.parallel import ahead
from datasets.preprocessing import CROP, SIDE, crop_to_head, resize

BLOCK = 256  # images


class Read(NamedTuple):
    """One image on its way into the store."""

    name: str
    part: int
    known: patients.Known
    pixels: np.ndarray  # (image_size, image_size) uint8
    thumbnail: np.ndarray


def open_images(folder: Path, cache: Path, image_size: int = 128) -> store.Store:
    """The store of all images below a folder, built if need be.

    images (N, 1, image_size, image_size) uint8, targets (N,) class codes; columns of the index: `case` (the file),
    `patient` (its group), `part` (0 Training, 1 Testing, 2 neither), `class`. Who a patient is comes from a table, see
    `datasets.patients.look_up`. Damaged files are named and left out.

    Raises:
        ValueError, FileNotFoundError: see `datasets.images.find_images`; or a class has no image that can be read.
    """
    images = find_images(folder)
    table, known = patients.look_up(images, folder)

    def read(job: tuple[Image, patients.Known]) -> Read | str:
        image, about = job
        try:
            pixels = read_gray(image.path)
        except ValueError as error:
            if getattr(error.__cause__, "errno", None):  # the disk or a permission, not the image: it may pass
                raise
            return f"left out: {error}"
        part = PARTS.index(image.part) if image.part in PARTS else len(PARTS)
        return Read(image.name, part, about, resize(crop_to_head(pixels), image_size), thumbnails([pixels])[0])

    def produce() -> Iterator[store.Block]:
        jobs = list(zip(images, known, strict=True))
        bar = tqdm(ahead(read, jobs), total=len(jobs), desc=f"storing {folder.name}", unit="image", dynamic_ncols=True)
        yield from blocks(bar)
        print(f"{sum(about.patient != '' for about in known)} of {len(images)} images have a patient in {table.name}")
        changed = [f"{image.name} is {about.label}" for image, about in jobs if about.label != image.label]
        if changed:
            print(f"{len(changed)} labels corrected, see {table.name}: {', '.join(changed)}")

    options = {"image_size": image_size, "side": SIDE, "classes": list(CLASSES), "crop": CROP}
    paths = [*(image.path for image in images), table]
    return store.open_or_build(cache, folder.resolve().name, paths, options, produce)


def blocks(found: Iterable[Read | str]) -> Iterator[store.Block]:
    """Images as blocks of a store, and what is wrong with the others as a line on the screen.

    Raises:
        ValueError: a class has no image in some part.
    """
    rows: list[dict[str, Any]] = []
    kept: list[tuple[str, str, np.ndarray]] = []  # name, patient, thumbnail
    items = iter(found)
    while chunk := list(islice(items, BLOCK)):
        for problem in (item for item in chunk if isinstance(item, str)):
            tqdm.write(problem)
        if good := [item for item in chunk if isinstance(item, Read)]:
            codes = [CLASSES.index(item.known.label) for item in good]
            block = [{"case": item.name, "patient": "", "part": item.part, "class": code}
                     for item, code in zip(good, codes, strict=True)]  # fmt: skip
            rows += block
            kept += [(item.name, item.known.patient, item.thumbnail) for item in good]
            yield store.Block(np.stack([item.pixels for item in good])[:, None], np.array(codes), block, {})
    for part in {row["part"] for row in rows} or {len(PARTS)}:
        if missing := set(range(len(CLASSES))) - {row["class"] for row in rows if row["part"] == part}:
            where = "/".join([*PARTS[part : part + 1], CLASSES[min(missing)]])
            raise ValueError(f"no image in {where} can be read: fetch the data set again, or replace them")
    names, known, thumbs = zip(*kept, strict=True)
    for row, group in zip(rows, group_names(names, known, np.stack(thumbs)), strict=True):
        row["patient"] = group  # known only now; the index is written after the last block


def group_names(names: Sequence[str], known: Sequence[str], thumbs: np.ndarray) -> list[str]:
    """The group of each image, called after its patient or its first file.

    A letter behind one of Cheng's numbers (MR051644, MR051644B) may be a second visit of the person: it is dropped.

    Args:
        names: of the files; known: the patient of each, "" where unknown; thumbs: as from `thumbnails`.
    """
    known = [re.sub(r"^(MR\d+)[A-Z]$", r"\1", patient) for patient in known]
    which = groups(len(names), near_pairs(thumbs), known)
    called: dict[int, str] = {}
    for group, patient in zip(which.tolist(), known, strict=True):
        if patient:
            called.setdefault(group, patient)
    for group, name in zip(which.tolist(), names, strict=True):
        called.setdefault(group, f"like {name}")
    return [called[group] for group in which.tolist()]
