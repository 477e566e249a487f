"""Segmentation as a task for `training.stages`."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

import models
from datasets import phantom, splits
from datasets.augment import Augmentation
from datasets.batches import Batches
from datasets.brats import CLASSES, MODALITIES, REGIONS
from datasets.phantom_folder import any_phantom
from datasets.slices import open_slices
from datasets.splits import Split
from datasets.store import Store
from training.options import UNetOptions
from training.seen import seen_by
from training.stages import chosen_precision, no_data, recipe_of, say
from utils import distributed, plots, results
from utils.evaluate import Scan, count_all, score, segment, validate
from utils.losses import LOSSES
from utils.postprocess import MIN_VOLUME
from utils.train import fit


def open_data(options: UNetOptions, preprocessing: Mapping[str, Any] | None = None) -> Store:
    """The store of the data that the options name; of the phantom where there is none."""
    folder = options.data
    if no_data(options):
        say(f"No data in {folder}: using the built-in phantom. Real data: put BraTS cases there (see README).")
        folder = any_phantom(phantom.FOLDER, phantom.VERSION, phantom.write_phantom)
    made = preprocessing or {"window": options.window, "normalise": "zscore"}
    return open_slices(
        folder, options.cache, tuple(made["window"]), options.labels, options.modalities, made["normalise"]
    )


def make_split(options: UNetOptions, store: Store) -> Split:
    """By patient, in folds or in shares of those that the weights to start from do not know; or the leaky shuffle."""
    if options.split == "slice":
        return splits.by_slice(store, options.val, options.test, options.seed)
    sizes = splits.tumour_sizes(store)
    if options.fold is not None:
        return splits.by_fold(sizes, options.fold, options.folds, options.val, options.seed)
    seen = seen_by(models.read_header(options.init), store) if options.init else np.zeros(len(store), bool)
    known = set(store.index["patient"][seen].tolist())
    return splits.by_patient(sizes, options.val, options.test, options.seed, known)


def train(options: UNetOptions, model: nn.Module, store: Store, split: Split, device: torch.device) -> nn.Module:
    """Fit a model on the training part; the averaged model of the last epoch."""
    folder = options.folder
    rows = split.rows(store, "train")
    empty = splits.tumour_voxels(store)[rows] == 0
    part = distributed.rank(), distributed.size()
    data = Batches(
        store, rows, options.batch_size, device, options.seed, rare=empty, share=options.tumour_free,
        augment=Augmentation(), resident=True, part=part,
    )  # fmt: skip
    mixed = np.random.default_rng(0).permutation(split.rows(store, "val"))  # so that each batch shows some tumour
    watched = Batches(store, mixed, options.batch_size, device, part=part)
    criterion, recipe = LOSSES[options.loss](), recipe_of(options, device)
    say(
        f"{folder.name}: {len(split.train)} {split.unit}s to train on, {len(split.val)} to watch, {len(split.test)} "
        f"to test; {data.samples} slices an epoch, {device}, {recipe.precision}"
    )

    def names(rows: np.ndarray) -> str:
        return ", ".join(f"{store.index['case'][row]} slice {store.index['slice'][row]}" for row in rows)

    def watch(averaged: nn.Module) -> dict[str, float]:
        return validate(averaged, watched, criterion, CLASSES, recipe.precision)

    return fit(model, data, criterion, recipe, folder, names=names, validate=watch if split.val else None)


def about(options: UNetOptions, model: nn.Module, store: Store, split: Split) -> dict[str, Any]:
    """The volume below which a piece of tumour is not believed."""
    return {"min_volume": MIN_VOLUME}


def curves(history: list[dict[str, str]]) -> Any:
    """Loss, learning rate, Dice of the watched patients."""
    return plots.curves(history)


def measure(
    options: UNetOptions, model: nn.Module, store: Store, rows: np.ndarray, header: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """A row of scores a case in 3-D, and counts (classes, 4), see `evaluate.score`; of a leaky split counts alone."""
    device = next(model.parameters(), torch.empty(0)).device  # the reference that thresholds has no parameters
    precision = chosen_precision(options, device)
    if header["split"]["unit"] == "slice":
        mine = rows[distributed.rank() :: distributed.size()]
        return [], count_all(model, Batches(store, mine, options.batch_size, device), len(CLASSES), precision)
    scans = list(case_scans(store, rows, device, options.batch_size))
    return score(model, scans, CLASSES, REGIONS, precision, header["min_volume"])


def report(
    options: UNetOptions, title: str, model: nn.Module, store: Store, rows: np.ndarray, header: Mapping[str, Any],
    measured: tuple[list[dict[str, Any]], torch.Tensor],
) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """Write the tables as CSV and the overlay; the tables as text, and the headline scores."""
    scored, counts = measured
    if header["split"]["unit"] == "slice":
        title = f"LEAKY SPLIT (slices of one patient on both sides: no measure of skill): {title}"
    else:
        device = next(model.parameters(), torch.empty(0)).device
        scans = {scan.case: scan for scan in case_scans(store, rows, device, options.batch_size)}
        chosen = results.best_median_worst(scored)
        how = chosen_precision(options, device), header["min_volume"]
        labels = {row["case"]: segment(model, scans[row["case"]], *how) for row in chosen.values()}
        pictures = [overlay_row(store, kind, row, *labels[row["case"]]) for kind, row in chosen.items()]
        plots.overlay(pictures).savefig(options.folder / "overlay.png")
    text = results.write(options.folder, title, scored, counts, CLASSES, list(REGIONS))
    return text, results.headline(scored, counts, CLASSES)


def case_scans(store: Store, rows: np.ndarray, device: torch.device, batch_size: int = 32) -> Iterator[Scan]:
    """The cases that the rows belong to, one after the other."""
    for info in store.info:
        mine = rows[store.index["case"][rows] == info["case"]]
        if len(mine):
            batches = Batches(store, mine, batch_size, device)
            yield Scan(info["case"], info["patient"], batches, store.index["slice"][mine], info["spacing"])


def overlay_row(
    store: Store, kind: str, row: Mapping[str, Any], predicted: np.ndarray, true: np.ndarray
) -> dict[str, Any]:
    """The slice of a case with the most tumour, as `plots.overlay` takes it; label volumes (H, W, Z)."""
    stored = np.flatnonzero(store.index["case"] == row["case"])
    depths = store.index["slice"][stored]
    largest = int(np.argmax((true > 0).sum(axis=(0, 1))[depths]))
    image, z = store.images[stored[largest]].astype(np.float32), depths[largest]
    return {
        "title": f"{kind}: {row['case']}, WT {row['dice_WT']:.2f}", "flair": image[MODALITIES.index("flair")],
        "t1c": image[MODALITIES.index("t1c")], "true": true[..., z], "predicted": predicted[..., z],
    }  # fmt: skip
