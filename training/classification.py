"""Classification as a task for `training.stages`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import models
from datasets import group_splits, phantom_slices
from datasets.augment import ImageAugmentation, prepare
from datasets.batches import Batches
from datasets.image_store import open_images
from datasets.images import CLASSES
from datasets.phantom_folder import any_phantom
from datasets.splits import Split
from datasets.store import Store
from training.options import ImageOptions
from training.seen import start_of, unseen
from training.stages import chosen_precision, no_data, recipe_of, say
from utils import classification, classification_plots, classification_results, distributed, plots
from utils.losses import CrossEntropy
from utils.train import fit


def open_data(options: ImageOptions, preprocessing: Mapping[str, Any] | None = None) -> Store:
    """The store of the data that the options name; of the phantom where there is none."""
    folder = options.data
    if no_data(options):
        say(f"No data in {folder}: using the built-in phantom. Real data: python datasets/download.py classification")
        folder = any_phantom(phantom_slices.FOLDER, phantom_slices.VERSION, phantom_slices.write_image_phantom)
    return open_images(folder, options.cache, (preprocessing or vars(options))["image_size"])


def make_split(options: ImageOptions, store: Store) -> Split:
    """The official test set, or a fold of the groups.

    Raises:
        ValueError: see `datasets.group_splits`; names the data.
    """
    try:
        if options.split == "official":
            return group_splits.official(store, options.val, options.seed)
        assert options.fold is not None
        return group_splits.by_fold(store, options.fold, options.folds, options.val, options.seed)
    except ValueError as error:
        raise ValueError(f"{options.data}: {error}") from error


def train(options: ImageOptions, model: nn.Module, store: Store, split: Split, device: torch.device) -> nn.Module:
    """Fit a model on the training part; the averaged model of the last epoch."""
    rows = split.rows(store, "train")
    data = Batches(
        store, rows, options.batch_size, device, options.seed, augment=ImageAugmentation().times(options.augment),
        resident=True, part=(distributed.rank(), distributed.size()),
    )  # fmt: skip
    criterion, recipe = CrossEntropy(options.label_smoothing), recipe_of(options, device)
    watched = split.rows(store, "val")
    say(
        f"{options.folder.name}: {len(rows)} images to train on, {len(watched)} to watch, "
        f"{len(split.rows(store, 'test'))} to test; {split.about}; {device}, {recipe.precision}"
    )

    def validate(averaged: nn.Module) -> dict[str, float]:
        logits, labels = predict(options, averaged, store, watched, device)
        return classification.scores(logits, labels, CLASSES)

    return fit(
        model, data, criterion, recipe, options.folder, score="accuracy",
        names=lambda rows: ", ".join(store.index["case"][rows]), validate=validate if len(watched) else None,
    )  # fmt: skip


def predict(
    options: ImageOptions, model: nn.Module, store: Store, rows: np.ndarray, device: torch.device, mirror: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) and true classes (N,) of rows of the store; several processes share the work."""
    mine = Batches(store, rows[distributed.rank() :: distributed.size()], options.batch_size, device, prepare=prepare)
    logits, labels = classification.logits_of(model, mine, chosen_precision(options, device), mirror)
    return np.stack(distributed.gathered(list(logits))), np.array(distributed.gathered(list(labels)))


def about(options: ImageOptions, model: nn.Module, store: Store, split: Split) -> dict[str, Any]:
    """Classes, test-time mirroring, and the temperature: the one given, or the one that suits the validation part.

    On images that the weights to start from have seen the model is surer than elsewhere: without others their
    temperature stays.
    """
    temperature = options.temperature
    if temperature is None and len(watched := unseen(options, split, store, "val")):
        device = next(model.parameters()).device
        temperature = classification.fit_temperature(*predict(options, model, store, watched, device, options.mirror))
    elif temperature is None and options.init and split.val:
        temperature = models.read_header(start_of(options)).get("temperature")
    return {"classes": list(CLASSES), "mirror": options.mirror, "temperature": temperature or 1.0}


def curves(history: list[dict[str, str]]) -> Any:
    """Loss, learning rate, recall of the watched images."""
    return plots.curves(history, CLASSES, "recall", "recall")


def measure(
    options: ImageOptions, model: nn.Module, store: Store, rows: np.ndarray, header: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) and true classes (N,).

    Raises:
        ValueError: the weights know other classes.
    """
    if header["classes"] != list(CLASSES):
        raise ValueError(f"these weights tell {', '.join(header['classes'])} apart, this script {', '.join(CLASSES)}")
    return predict(options, model, store, rows, next(model.parameters()).device, header["mirror"])


def report(
    options: ImageOptions, title: str, model: nn.Module, store: Store, rows: np.ndarray, header: Mapping[str, Any],
    measured: tuple[np.ndarray, np.ndarray],
) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """Write tables and figures; the tables as text, and the scores."""
    logits, labels = measured
    temperature, folder = header["temperature"], options.folder
    names, groups = store.index["case"][rows], store.index["patient"][rows]
    text, scores = classification_results.write(folder, title, logits, labels, names, groups, CLASSES, temperature)
    table = classification.confusion(labels, logits.argmax(axis=1), len(CLASSES))
    classification_plots.confusion_matrix(table, CLASSES).savefig(folder / "confusion.png")
    classification_plots.calibration(logits, labels, temperature).savefig(folder / "calibration.png")
    if shown := mistakes(store, rows, logits, labels, temperature):
        classification_plots.mistakes(shown).savefig(folder / "mistakes.png")
    return text, scores


def mistakes(
    store: Store, rows: np.ndarray, logits: np.ndarray, labels: np.ndarray, temperature: float
) -> list[dict[str, Any]]:
    """Wrong answers to rows of a store, the most confident first, for `classification_plots.mistakes`."""
    names = [Path(name).stem for name in store.index["case"][rows]]
    return [
        {"image": store.images[rows[place], 0],
         "title": f"{names[place]}: {CLASSES[labels[place]]}\ncalled {CLASSES[called]} ({sure:.0%})"}
        for place, called, sure in classification_results.most_confident_mistakes(logits, labels, temperature)
    ]  # fmt: skip
