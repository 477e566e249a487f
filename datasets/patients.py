"""Which patient an image of the Brain Tumor MRI Dataset shows, and its class where the folder's is wrong.

The set comes without patients. Most of its tumour images are slices of the set of Cheng et al. 2015
(doi:10.1371/journal.pone.0140381; Figshare 1512427: 3064 slices of 233 patients), which names them. Each of the 5023
tumour images was compared with each of those slices, as it is and mirrored, by correlation at 64x64 pixels: 4750 have
a slice at more than 0.999 (the lowest at 0.99965), the other 273 none at more than 0.885. The table lists the 4750.
All 233 patients occur. Four images in the folder pituitary are slices of meningiomas; the table has their true class:
Te-piTr_0002, Tr-pi_0043, Tr-pi_0515, Tr-pi_0520. Nothing is known of the patients of notumor, which is not of that set.

Names such as MR051644, MR051644B and MR051644C count as three patients here, as their publishers count them.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.images import CLASSES, SUFFIXES, Image, root

TABLE = Path(__file__).with_name("brain_tumor_mri_patients.csv")
COLUMNS = ("file", "patient", "label")
OWN = "patients.csv"  # the same for another data set, in its folder


class Known(NamedTuple):
    """What the table knows of an image."""

    patient: str  # "" where unknown
    label: str  # the corrected class


def load(path: Path = TABLE) -> dict[str, Known]:
    """A table, by the file without its ending, such as Training/glioma/Tr-gl_0010.

    Raises:
        FileNotFoundError: no such table.
        ValueError: not UTF-8, a column is missing, a file stands there twice, or a label is no class.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no table {path}: take it from the project again")
    table: dict[str, Known] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a mark before the first column
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or (), [row for row in reader if any(row.values())]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: save it as CSV in UTF-8 ({error})") from error
    if missing := set(COLUMNS) - set(columns):
        first = ",".join(COLUMNS)
        raise ValueError(f"{path} has no column {min(missing)}: its first line must be {first}, with commas")
    for row in rows:
        if missing := {column for column in COLUMNS if row[column] is None}:
            raise ValueError(f"{path} lacks {min(missing)} in a row: its columns must be {', '.join(COLUMNS)}")
        name, patient, label = (row[column].strip() for column in COLUMNS)
        name = _without_ending(name)
        if name in table:
            raise ValueError(f"{path} has {name} twice: remove one of the rows")
        if label not in CLASSES:
            raise ValueError(f"{path} calls {name} {label!r}: a label must be {', '.join(CLASSES)}")
        table[name] = Known(patient, label)
    return table


def look_up(images: Sequence[Image], folder: Path) -> tuple[Path, list[Known]]:
    """The table for the images of a folder, and what it knows of each; "" and the folder's class where that is nothing.

    The table is patients.csv in the folder or beside Training/ and Testing/, where files are told apart by their whole
    path from there (Training/glioma/1.png), or the project's own, by the bare names of the Brain Tumor MRI Dataset,
    wherever these files lie.

    Raises:
        ValueError: a row of patients.csv names none of the images: patients would stand on both sides of a split.
    """
    own = next((path for path in (root(folder) / OWN, folder / OWN) if path.is_file()), None)
    if own:
        path, table = own, load(own)
        names = [_without_ending(image.name) for image in images]
        if strangers := table.keys() - set(names):
            raise ValueError(
                f"{path} names {min(strangers)}, but there is no such image: write files as {images[0].name}, and "
                "remove the rows of those that are gone"
            )
    else:
        path, table = TABLE, {Path(name).name: known for name, known in load().items()}
        names = [image.path.stem for image in images]
    found = [table.get(name, Known("", image.label)) for name, image in zip(names, images, strict=True)]
    # a folder of another name than the set's four classes is left what it is
    return path, [known if image.label in CLASSES else Known(known.patient, image.label)
                  for known, image in zip(found, images, strict=True)]  # fmt: skip


def _without_ending(name: str) -> str:
    path = Path(name.replace("\\", "/"))  # as Windows writes it
    return (path.with_suffix("") if path.suffix.lower() in SUFFIXES else path).as_posix()
