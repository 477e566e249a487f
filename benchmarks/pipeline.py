"""Our pipeline as a case of the benchmarks: around our networks and around others', and the limit of what it can be."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, count, repeat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

import models
from benchmarks.timing import Batch, Loop, Stint
from datasets.augment import Augmentation, ImageAugmentation
from datasets.batches import Batches
from datasets.image_store import open_images
from datasets.slices import WINDOW, open_slices
from datasets.store import Store
from utils.device import keep_freed_memory
from utils.losses import CrossEntropy, DiceBCE
from utils.signals import StopRequest
from utils.train import Recipe, Run, train_one_epoch

MANY = 100_000  # steps: a turn has fewer


@dataclass(frozen=True)
class Setting:
    """What a case is measured with; it travels to the case's process."""

    model: str
    data: Path
    """Kaggle-style HDF5 slices, or a folder of images."""
    cache: Path
    """Where the stores of `data` are."""
    device: torch.device
    batch_size: int
    n_filters: int
    image_size: int
    precision: str = "fp32"
    window: tuple[int, int] = WINDOW
    patch_dropout: float = 0.0
    """Of vit: the share of patches that a step does without."""
    optimizer: str = "adamw"
    compiled: str = ""
    """The mode of torch.compile; without one the network runs as it is."""

    @property
    def segmentation(self) -> bool:
        return self.model.endswith("unet")


def build(setting: Setting) -> nn.Module:
    """One of our networks."""
    torch.manual_seed(0)
    if setting.segmentation:
        return models.build(setting.model, n_filters=setting.n_filters)
    options = {"patch_dropout": setting.patch_dropout} if setting.model == "vit" else {}
    return models.build(setting.model, image_size=setting.image_size, **options)


def open_store(setting: Setting) -> tuple[Store, np.ndarray]:
    """The store, and the rows that all cases train on: whole batches, for a compiled network is one of their size."""
    if setting.segmentation:
        store = open_slices(setting.data, setting.cache, setting.window)
        rows = np.arange(len(store))
    else:
        store = open_images(setting.data, setting.cache, setting.image_size)
        rows = np.flatnonzero(store.index["part"] == 0)
    return store, rows[: len(rows) // setting.batch_size * setting.batch_size or None]


def batches(setting: Setting) -> Iterator[Batch]:
    """Ours, as the training scripts make them, at full augmentation, epoch after epoch."""
    store, rows = open_store(setting)
    augment = Augmentation() if setting.segmentation else ImageAugmentation()
    return endless(Batches(store, rows, setting.batch_size, setting.device, augment=augment, resident=True))


def endless(data: Batches) -> Iterator[Batch]:
    """Epoch after epoch."""
    return chain.from_iterable(data.epoch(epoch) for epoch in count())


def criterion(setting: Setting) -> nn.Module:
    """The loss of our recipes."""
    return DiceBCE() if setting.segmentation else CrossEntropy(0.1)


def ours(
    setting: Setting,
    network: Callable[[Setting], nn.Module] = build,
    data: Callable[[Setting], Iterator[Batch]] = batches,
) -> Loop:
    """`utils.train.train_one_epoch` on a network and batches, by default our own."""
    keep_freed_memory()
    model = network(setting).to(setting.device).to(memory_format=torch.channels_last)
    run = Run(model, Recipe(1, precision=setting.precision, optimizer=setting.optimizer), MANY)
    if setting.compiled:
        run.network = torch.compile(run.network, mode=setting.compiled)
    loss, silent = criterion(setting), SimpleNamespace(writes=False)

    def train(stint: Stint) -> None:
        train_one_epoch(run, _AsData(stint, setting.batch_size), loss, silent, StopRequest(), str)
        run.step = 0
        run.losses.zero_()

    return Loop(model, data(setting), train)


class _AsData:
    """A stint as `train_one_epoch` takes its data."""

    seed = 0

    def __init__(self, stint: Stint, batch_size: int) -> None:
        self.stint, self.batch_size = stint, batch_size

    def __len__(self) -> int:
        return MANY

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        return iter(self.stint)


def limit(setting: Setting) -> Loop:
    """The same, training on one batch that lies ready: no data work."""
    return ours(setting, data=lambda _: repeat(next(batches(setting))))
