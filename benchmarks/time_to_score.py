"""How soon training reaches a validation score: ours beside the plain loop of `predecessor.py`.

    python benchmarks/time_to_score.py --classification FOLDER --segmentation FOLDER

Both train the same network on the same samples for the same number of epochs (of the recipes, VisionTransformer's shows
half of an image's patches at each step, the plain loop all) and are watched on the same others: the classifiers on 15 %
of Training by group (accuracy), the U-Nets on a quarter of the patients (mean Dice of NCR, ED and ET from counts;
trained on slices with tumour). The seconds are those of training alone, each in a process of its own and once: what is
read from files in every step by the one has been decoded into a store before by the other.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.training import BATCH_SIZES, SLICES, Name
from training.options import CNNOptions, UNetOptions, ViTOptions
from utils import cli

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from benchmarks.pipeline import Setting

    Job = tuple[Setting, CNNOptions | ViTOptions | UNetOptions]


@dataclass(frozen=True)
class Options:
    models: tuple[Name, ...] = ("custom_cnn", "classic_unet")
    segmentation: Path = UNetOptions.data
    """Folder with BraTS cases."""
    classification: Path = CNNOptions.data
    """Folder with Training/ and Testing/ and their class folders."""
    patients: int = 12
    """Of the BraTS cases, the first so many."""
    epochs: int = 6
    n_filters: int = 8
    device: Literal["auto", "cpu", "cuda"] = "auto"


class Epoch(NamedTuple):
    seconds: float  # of training, since its start
    score: float


def prepared(job: "Job") -> tuple[Any, Any, Any, "np.ndarray", "np.ndarray"]:
    """Task, store, split, and the rows to train and to watch on."""
    import numpy as np

    from benchmarks.pipeline import open_store
    from datasets.splits import tumour_voxels
    from training import classification, segmentation

    setting, options = job
    task: Any = segmentation if setting.segmentation else classification
    store, _ = open_store(setting)
    split = task.make_split(options, store)
    train, watched = (split.rows(store, part) for part in ("train", "val"))
    if setting.segmentation:
        tumour = np.flatnonzero(tumour_voxels(store))
        train = np.intersect1d(train, tumour)
    return task, store, split, train, watched


def ours(job: "Job") -> list[Epoch]:
    """The training script's own training; its history."""
    from itertools import accumulate

    import torch

    from training import stages
    from utils.device import keep_freed_memory
    from utils.files import read_csv

    setting, options = job
    task, store, split, _, _ = prepared(job)
    keep_freed_memory()
    model = stages.build_model(options).to(setting.device).to(memory_format=torch.channels_last)
    task.train(options, model, store, split, setting.device)
    rows = read_csv(options.folder / "history.csv")
    seconds = accumulate(float(row["seconds"]) for row in rows)
    column = "dice_mean" if setting.segmentation else "accuracy"
    return [Epoch(passed, float(row[column])) for passed, row in zip(seconds, rows, strict=True)]


def predecessor(job: "Job") -> list[Epoch]:
    """The plain loop, watched after each epoch."""
    import time
    from itertools import islice

    from benchmarks import predecessor as plain

    setting, options = job
    *_, train, watched = prepared(job)
    loop = (plain.segmentation if setting.segmentation else plain.classification)(setting, train)
    passed, found = 0.0, []
    for _ in range(options.epochs):
        start = time.perf_counter()
        loop.train(islice(loop.batches, -(-len(train) // setting.batch_size)))
        passed += time.perf_counter() - start
        found.append(Epoch(passed, score(setting, loop.model, watched)))
        loop.model.train()
    return found


def score(setting: "Setting", model: "nn.Module", rows: "np.ndarray") -> float:
    """Of the predecessor's network, on the images as it sees them."""
    from torch.utils.data import DataLoader

    from benchmarks import predecessor as plain
    from utils import classification, evaluate, metrics

    if setting.segmentation:
        loader = DataLoader(plain.slices(setting, rows), setting.batch_size)
        batches = ((images.to(setting.device), metrics.to_labels(masks - 0.5).to(setting.device))
                   for images, masks in loader)  # fmt: skip
        return float(metrics.ratios(evaluate.count_all(model, batches, 3))["dice"].mean())
    loader = DataLoader(plain.images(setting, rows, augmented=False), setting.batch_size)
    logits, labels = classification.logits_of(model, ((images.to(setting.device), labels) for images, labels in loader))
    return float((logits.argmax(axis=1) == labels).mean())


def report(model: str, before: list[Epoch], now: list[Epoch]) -> str:
    """The two courses, and when ours has the predecessor's best."""
    from utils.markdown import table

    name = "Dice" if model.endswith("unet") else "accuracy"
    rows = [[str(number), f"{old.seconds:.0f}", f"{old.score:.3f}", f"{new.seconds:.0f}", f"{new.score:.3f}"]
            for number, (old, new) in enumerate(zip(before, now, strict=True), 1)]  # fmt: skip
    text = table([["epoch", "predecessor: seconds", name, "ours: seconds", name], *rows])
    best = max(before, key=lambda epoch: epoch.score)
    if best.score < 5e-4:
        return f"{text}\n\nThe predecessor has found nothing yet."
    there = next((epoch for epoch in now if epoch.score >= best.score), None)
    reached = f"{name} {best.score:.3f} took the predecessor {best.seconds:.0f} s"
    if there is None:
        return f"{text}\n\n{reached}; ours did not reach it."
    return f"{text}\n\n{reached}, ours {there.seconds:.0f} s: {best.seconds / there.seconds:.1f} times sooner."


def recipe(name: Name, options: Options, scratch: Path) -> CNNOptions | ViTOptions | UNetOptions:
    """Our training script's options; writes the slices that the U-Nets are trained on."""
    from benchmarks import startup

    shared: dict[str, Any] = {"model": name, "cache": scratch / "cache", "epochs": options.epochs,
                              "name": str(scratch / name)}  # fmt: skip
    if name in BATCH_SIZES:
        kind = ViTOptions if name == "vit" else CNNOptions
        return kind(data=startup.images_folder(options.classification), batch_size=BATCH_SIZES[name], **shared)
    if not (slices := scratch / "slices").exists():
        startup.write_slices(options.segmentation, slices, options.patients)
    return UNetOptions(n_filters=options.n_filters, data=slices, val=0.25, test=0.1, tumour_free=0.0,
                       batch_size=2 * SLICES, **shared)  # fmt: skip


def main(options: Options) -> None:
    from benchmarks.pipeline import Setting
    from benchmarks.timing import alone, machine
    from utils.device import choose

    device = choose(options.device)
    print(machine(device))
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            mine = recipe(name, options, Path(folder))
            setting = Setting(name, mine.data, mine.cache, device, mine.batch_size, options.n_filters,
                              CNNOptions.image_size)  # fmt: skip
            before, now = (alone(way, (setting, mine)) for way in (predecessor, ours))
            title = f"**{name}, {options.epochs} epochs, batch {mine.batch_size}**"
            print("", title, report(name, before, now), sep="\n\n", flush=True)


if __name__ == "__main__":
    cli.run(main, __doc__, kind=Options)
