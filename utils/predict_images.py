"""Predict: a classifier, or several, on images.

The answers go to the terminal and to `predictions.csv`; with `explain` each image also becomes a picture
`<image>_explained.png` of where the network looked.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from datasets.augment import prepare
from datasets.images import PREPROCESSED, SUFFIXES, is_image, read_gray
from datasets.parallel import ahead
from datasets.preprocessing import SIDE, crop_to_head, resize
from models import Model
from models.cnn import CNN
from models.vit import VisionTransformer
from utils import classification, explain, explain_plots
from utils.device import best_precision
from utils.files import replacing, spare, writable, write_csv

EXPLAINED = "_explained.png"
SCANS = (".nii", ".nii.gz", ".h5", ".hdf5")  # what a U-Net takes


@dataclass(frozen=True)
class Classifier:
    """Models of one or several trainings, asked together.

    Of an image and its mirror image the mean is that of the logits, as in training, which is what the temperature
    was fitted to; of several models it is that of the probabilities, since each has a temperature of its own.

    Raises:
        ValueError: the models know different classes.
    """

    models: Sequence[Model]
    device: torch.device
    batch_size: int = 16
    tta: bool = False

    def __post_init__(self) -> None:
        known = {tuple(model.header["classes"]) for model in self.models}
        if len(known) > 1:
            listed = " and ".join(", ".join(classes) for classes in sorted(known))
            raise ValueError(f"--weights tell different classes apart: {listed}")

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the probabilities."""
        return self.models[0].header["classes"]

    def probabilities(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """(N, C) calibrated probabilities of N gray images (H, W) uint8 of any sizes."""
        found = []
        for model in self.models:
            batch, header = self.prepared(model, images), model.header
            mirror = header["mirror"] or self.tta
            unknown = torch.zeros(len(batch), dtype=torch.long)
            logits, _ = classification.logits_of(model, [(batch, unknown)], best_precision(self.device), mirror)
            found.append(classification.softmax(logits, header["temperature"]))
        return np.mean(found, axis=0)

    def answer(self, name: str, probabilities: np.ndarray) -> dict[str, Any]:
        """A row for people: what was asked, the most probable class, and the probability (C,) of each."""
        row = {"file": name, "prediction": self.classes[int(probabilities.argmax())]}
        return row | dict(zip(self.classes, probabilities.tolist(), strict=True))

    def looked_at(self, images: Sequence[np.ndarray], codes: np.ndarray) -> np.ndarray:
        """Where the models looked, (N, SIDE, SIDE) in [0, 1] over the heads that `crop_to_head` crops.

        Grad-CAM for the classes `codes` (N,) in a CNN, attention rollout in a VisionTransformer, integrated gradients
        in a model of one's own; the mean of several.
        """
        total = np.zeros((len(images), SIDE, SIDE))
        wanted = torch.from_numpy(codes).to(self.device)
        for model in self.models:
            batch = self.prepared(model, images)
            if isinstance(model, VisionTransformer):
                maps = explain.rollout(model, batch)
            elif isinstance(model, CNN):
                maps = explain.grad_cam(model, batch, wanted)
            else:
                maps = explain.largest_one(explain.integrated_gradients(model, batch, wanted).clamp(min=0))
            size = total.shape[1:]
            total += torch.nn.functional.interpolate(maps[:, None], size, mode="bilinear")[:, 0].cpu().numpy()
        return total / len(self.models)

    def prepared(self, model: Model, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Cropped, resized and scaled as in training: (N, 3, image_size, image_size) on the device."""
        made = model.header["preprocessing"]
        heads = [resize(crop_to_head(image, made["side"]), made["image_size"]) for image in images]
        return prepare(torch.from_numpy(np.stack(heads))[:, None].to(self.device))


def run(
    paths: Sequence[Path], classifier: Classifier, out: Path, explained: bool = False, together: bool = False
) -> tuple[int, list[str]]:
    """Classify all images in `paths`, print the answers and write them into `out`.

    Args:
        explained: also a picture an image of where the models looked.
        together: also the mean of all, as a last row.

    Returns:
        how many were classified, and a sentence for each image that could not be.

    Raises:
        ValueError, FileNotFoundError: there is no image at all, two pictures would have one name, or `out` cannot be
            written.
        OSError: no space left; no file is half-written.
    """
    files, failed = find(paths)
    targets = _pictures(files, out) if explained else {}
    writable(out)
    rows: list[dict[str, Any]] = []

    def read(path: Path) -> tuple[Path, np.ndarray] | str:
        try:
            return path, read_gray(path)
        except ValueError as error:
            return str(error)

    bar = tqdm(ahead(read, files), total=len(files), desc="classifying", unit="image", dynamic_ncols=True)
    try:
        for batch in _batches(bar, classifier.batch_size):
            failed += [item for item in batch if isinstance(item, str)]
            good = [item for item in batch if not isinstance(item, str)]
            if not good:
                continue
            found = classifier.probabilities([pixels for _, pixels in good])
            rows += [classifier.answer(str(path), row) for (path, _), row in zip(good, found, strict=True)]
            if explained:
                _explain(classifier, [pixels for _, pixels in good], found, [targets[path] for path, _ in good])
    finally:  # what was found until Ctrl-C is kept, too
        count = len(rows)
        if rows and together:
            mean = np.mean([[row[name] for name in classifier.classes] for row in rows], axis=0)
            rows.append(classifier.answer(f"the {count} together", mean))
        if rows:
            write_csv(spare(out / "predictions.csv", files), rows)
            print(table(rows))
    return count, failed


def find(paths: Sequence[Path]) -> tuple[dict[Path, str], list[str]]:
    """The images that are named or that folders hold -> a name for each, below the folder that was given.

    And a sentence for each path that is none: a folder without images, or a scan for a U-Net.

    Raises:
        FileNotFoundError: there is no image at all.
    """
    found: dict[Path, str] = {}
    failed: list[str] = []
    for path in paths:
        folder = path.is_dir()
        below = sorted(_files(path, failed)) if folder else [path]
        inside = [file for file in below if _is_wanted(file)] if folder else below
        scans = [file for file in below if file.name.endswith(SCANS)]
        if not inside or (scans and not folder):
            hint = "; scans want the weights of a U-Net, these are a classifier's" if scans else ""
            failed.append(f"{path}: no image here; expected files like {', '.join(sorted(SUFFIXES))}{hint}")
            continue
        for file in inside:
            found[file] = file.relative_to(path).as_posix() if folder else file.name
    if not found:
        raise FileNotFoundError(failed[0])
    return found, failed


def _pictures(files: Mapping[Path, str], out: Path) -> dict[Path, Path]:
    """Where the picture of each image goes; raises ValueError where two have one name."""
    names = {name: file for file, name in files.items()}
    if twins := [(file, names[name]) for file, name in files.items() if names[name] != file]:
        raise ValueError(f"{twins[0][0]} and {twins[0][1]} have one name: give the folder that holds both")
    return {path: spare(out / f"{name}{EXPLAINED}", files) for path, name in files.items()}


def _files(folder: Path, failed: list[str]) -> Iterator[Path]:
    """What lies in and below a folder, behind links too; hidden folders and the copies made here are passed over.

    A folder that cannot be read adds a sentence to `failed`.
    """
    def left_out(error: OSError) -> None:
        failed.append(f"{error.filename}: cannot be read, see to its rights ({error.strerror})")

    visited = set()
    for parent, folders, names in os.walk(folder, onerror=left_out, followlinks=True):
        if (real := os.path.realpath(parent)) in visited:  # a link to a folder above would be followed for ever
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if name[0] != "." and name != PREPROCESSED]
        yield from (Path(parent, name) for name in names)


def _is_wanted(file: Path) -> bool:
    """An image; hidden files and the pictures that were made here are passed over."""
    return file.name[0] != "." and not file.name.endswith(EXPLAINED) and file.is_file() and is_image(file)


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def _explain(
    classifier: Classifier, images: Sequence[np.ndarray], probabilities: np.ndarray, targets: Sequence[Path]
) -> None:
    """Draw each image's head and where the models looked."""
    codes = probabilities.argmax(axis=1)
    maps = classifier.looked_at(images, codes)
    for image, heat, code, row, target in zip(images, maps, codes, probabilities, targets, strict=True):
        title = f"{target.name.removesuffix(EXPLAINED)}: {classifier.classes[code]} ({row[code]:.0%})"
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            figure = explain_plots.heat([{"title": title, "image": crop_to_head(image), "map": heat}])
            figure.savefig(temporary, format="png")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in columns: file, class, probability of each class."""
    classes = [name for name in rows[0] if name not in ("file", "prediction")]
    cells = [["file", "class", *classes]]
    cells += [[row["file"], row["prediction"], *(f"{row[name]:.3f}" for name in classes)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)
