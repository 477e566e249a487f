"""The stages of a segmentation run: data, split, training, and honest results."""

import csv
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import models
from datasets import splits
from datasets.augment import Augmentation
from datasets.batches import Batches
from datasets.brats import CLASSES, MODALITIES, REGIONS
from datasets.phantom import write_phantom
from datasets.slices import open_slices
from datasets.splits import Split
from datasets.store import Store
from training.options import ROOT, UNetOptions
from utils import checkpoint, cli, plots, results
from utils.device import best_precision, choose, keep_freed_memory
from utils.evaluate import Scan, count_all, score, segment, validate
from utils.files import write_text
from utils.losses import LOSSES
from utils.postprocess import MIN_VOLUME
from utils.train import Recipe, fit

RESULTS = "results.md"
FREE = ("resume", "save_every", "data", "cache", "device", "name")  # options that may change when a run goes on


def run(options: UNetOptions) -> None:
    """Train and evaluate, or go on with what stands in the run's folder."""
    folder = options.folder
    device = choose(options.device)
    if options.resume and not checkpoint.exists(folder / "last.pt"):
        raise ValueError(f"there is nothing to resume in {folder}: leave --resume out to start it")
    store = open_data(options)
    with checkpoint.locked(folder):
        split = open_split(options, store, folder / "split.json")
        model = build_model(options)
        refuse_overlap(options, split)
        cli.keep(options, folder, FREE)  # all that the user gave is good: from here on the folder is a run
        split.save(folder / "split.json")
        if (folder / RESULTS).exists():
            print(f"{folder} is finished (remove it to train again):\n\n{(folder / RESULTS).read_text()}")
            return
        model = train(options, model, store, split, device)
        finish(options, folder, model, store, split, device)


def open_data(options: UNetOptions, **preprocessing: object) -> Store:
    """The store of the data that the options name; of the phantom where there is none."""
    folder = options.data
    if folder == UNetOptions.data and not (folder.is_dir() and any(folder.iterdir())):
        print(f"No data in {folder}: using the built-in phantom. Real data: put BraTS cases there (see README).")
        folder = write_phantom(ROOT / "datasets" / "phantom")
    choices: dict = {"window": options.window, "labels": options.labels, "modalities": options.modalities}
    return open_slices(folder, options.cache, **(choices | preprocessing))


def open_split(options: UNetOptions, store: Store, path: Path) -> Split:
    """The split of this run: that of its first start, if there was one."""
    if path.exists():
        split = Split.load(path)
        if split.data != store.fingerprint:
            raise ValueError(f"{options.data} has changed since {path} was made: choose another --name")
        return split
    if options.split == "slice":
        split = splits.by_slice(store, options.val, options.test, options.seed)
    elif options.fold is not None:
        split = splits.by_fold(splits.tumour_sizes(store), options.fold, options.folds, options.val, options.seed)
    else:
        split = splits.by_patient(splits.tumour_sizes(store), options.val, options.test, options.seed)
    return replace(split, data=store.fingerprint)


def build_model(options: UNetOptions) -> nn.Module:
    """The model that the options name, new or with given weights."""
    torch.manual_seed(options.seed)
    model = models.build(options.model, n_filters=options.n_filters)
    if options.init:
        models.load_into(model, options.init)
    return model


def seen_by(header: Mapping[str, Any]) -> set[str]:
    """The patients that published weights, and the weights that they started from, were trained or watched on."""
    return {*header["split"]["train"], *header["split"]["val"], *header.get("seen_before", [])}


def refuse_overlap(options: UNetOptions, split: Split) -> None:
    """Raises ValueError where the weights to start from have seen patients that this split tests on."""
    if options.init and (common := seen_by(models.read_header(options.init)) & set(split.test)):
        raise ValueError(
            f"{options.init} was trained on {min(common)}, whom this split tests on: the score would be no measure of "
            "skill; take other weights, or another --seed or --fold"
        )


def train(options: UNetOptions, model: nn.Module, store: Store, split: Split, device: torch.device) -> nn.Module:
    """Fit a model on the training part; the averaged model of the last epoch."""
    keep_freed_memory()
    folder = options.folder
    model = model.to(device).to(memory_format=torch.channels_last)
    rows = split.rows(store, "train")
    empty = (store.index["ncr"] + store.index["ed"] + store.index["et"])[rows] == 0
    data = Batches(
        store, rows, options.batch_size, device, options.seed, empty, options.tumour_free, Augmentation(), resident=True
    )
    mixed = np.random.default_rng(0).permutation(split.rows(store, "val"))  # so that each batch shows some tumour
    watched = Batches(store, mixed, options.batch_size, device)
    precision = best_precision(device) if options.precision == "auto" else options.precision
    criterion = LOSSES[options.loss]()
    recipe = Recipe(
        options.epochs, options.lr, options.weight_decay, accumulate=options.accumulate, ema=options.ema,
        precision=precision, save_every=options.save_every,
    )  # fmt: skip
    print(
        f"{folder.name}: {len(split.train)} {split.unit}s to train on, {len(split.val)} to watch, {len(split.test)} "
        f"to test; {data.samples} slices an epoch, {device}, {precision}", flush=True,
    )  # fmt: skip

    def names(rows: np.ndarray) -> str:
        return ", ".join(f"{store.index['case'][row]} slice {store.index['slice'][row]}" for row in rows)

    return fit(
        model, data, criterion, recipe, folder, names=names,
        validate=(lambda averaged: validate(averaged, watched, criterion, CLASSES, precision)) if split.val else None,
    )  # fmt: skip


def finish(
    options: UNetOptions, folder: Path, model: nn.Module, store: Store, split: Split, device: torch.device
) -> None:
    """Read the test set, once; write weights, tables and figures."""
    title = f"{options.model}, n_filters {options.n_filters}, {options.epochs} epochs, {split.about}"
    with (folder / "history.csv").open() as file:
        history = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    plots.curves(history).savefig(folder / "curves.png")
    text, scores = report(folder, title, model, store, split.rows(store, "test"), split.leaky, device)
    models.save(
        model, folder / f"{type(model).__name__}.safetensors", preprocessing=store.options, min_volume=MIN_VOLUME,
        data=store.folder.name, split=asdict(split), metrics=scores, commit=commit(),
        seen_before=sorted(seen_by(models.read_header(options.init))) if options.init else [],
    )  # fmt: skip
    write_text(folder / RESULTS, text)  # last: it marks the run as finished


def evaluate(options: UNetOptions) -> None:
    """Score published weights on the patients of --data that they were not trained on."""
    device = choose(options.device)
    model = models.load(str(options.evaluate), device)
    if not {"preprocessing", "split"} <= set(model.header):
        raise ValueError(f"{options.evaluate} does not say how it was trained: only weights of a finished run will do")
    if (options.folder / "last.pt").exists():
        raise ValueError(f"{options.folder} is a training run: choose another --name for the evaluation")
    made = model.header["preprocessing"]
    store = open_data(options, window=tuple(made["window"]), normalise=made["normalise"])
    split, seen = Split(**model.header["split"]), seen_by(model.header)
    mine = splits.members(store, split.unit)
    rows = np.flatnonzero(~np.isin(mine, list(seen)))
    if not len(rows):
        raise ValueError(f"{options.evaluate} was trained on all patients of {options.data}: there is none to test on")
    options.folder.mkdir(parents=True, exist_ok=True)
    title = f"{options.evaluate} on patients of {options.data} that it was not trained on"
    if len(rows) == len(store):
        title += " (by name: releases of BraTS share patients under other names)"
    text, _ = report(options.folder, title, model, store, rows, split.leaky, device)
    write_text(options.folder / RESULTS, text)


def report(
    folder: Path, title: str, model: nn.Module, store: Store, rows: np.ndarray, leaky: bool, device: torch.device
) -> tuple[str, dict[str, dict[str, float]]]:
    """Score rows of the store: whole patients in 3-D, or, for a leaky split's stray slices, counts alone.

    Writes the tables as CSV and the overlay; returns the tables as text, and the headline scores.
    """
    precision = best_precision(device)
    if leaky:
        title = f"LEAKY SPLIT (slices of one patient on both sides: no measure of skill): {title}"
        scored: list[dict[str, Any]] = []
        counts = count_all(model, Batches(store, rows, 32, device), len(CLASSES), precision)
    else:
        scans = list(case_scans(store, rows, device))
        scored, counts = score(model, scans, CLASSES, REGIONS, precision, MIN_VOLUME)
        by_case = {scan.case: scan for scan in scans}
        chosen = results.best_median_worst(scored)
        pictures = [overlay_row(model, store, kind, row, by_case[row["case"]]) for kind, row in chosen.items()]
        plots.overlay(pictures).savefig(folder / "overlay.png")
    text = results.write(folder, title, scored, counts, CLASSES, list(REGIONS))
    print(text)
    return text, results.headline(scored, counts, CLASSES)


def case_scans(store: Store, rows: np.ndarray, device: torch.device) -> Iterator[Scan]:
    """The cases that the rows belong to, one after the other."""
    for info in store.info:
        mine = rows[store.index["case"][rows] == info["case"]]
        if len(mine):
            batches = Batches(store, mine, 32, device)
            yield Scan(info["case"], info["patient"], batches, store.index["slice"][mine], info["spacing"])


def overlay_row(model: nn.Module, store: Store, kind: str, row: Mapping[str, Any], scan: Scan) -> dict[str, Any]:
    """The slice of a case with the most tumour, as `plots.overlay` takes it."""
    predicted, true = segment(model, scan, min_volume=MIN_VOLUME)  # (H, W, Z)
    stored = np.flatnonzero(store.index["case"] == scan.case)
    depths = store.index["slice"][stored]
    largest = int(np.argmax((true > 0).sum(axis=(0, 1))[depths]))
    image, z = store.images[stored[largest]].astype(np.float32), depths[largest]
    return {
        "title": f"{kind}: {scan.case}, WT {row['dice_WT']:.2f}", "flair": image[MODALITIES.index("flair")],
        "t1c": image[MODALITIES.index("t1c")], "true": true[..., z], "predicted": predicted[..., z],
    }  # fmt: skip


def commit() -> str:
    """The project's version that made the weights; empty outside a git checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
