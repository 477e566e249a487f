"""The stages of a run that all tasks share: data, split, model, training, and honest results.

What differs is the task's own: `training.segmentation` and `training.classification` are such tasks.
"""

import shutil
import subprocess
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Protocol, get_args, get_type_hints

import numpy as np
import torch
from torch import nn

import models
from datasets import splits
from datasets.splits import Split
from datasets.store import Store
from training.options import ROOT, Options
from training.seen import INIT, files_of, names, seen_by, start_of, unseen
from utils import checkpoint, cli, distributed
from utils.device import best_precision, keep_freed_memory
from utils.files import read_csv, replacing, write_text
from utils.predict import one_task
from utils.signals import Interrupted
from utils.train import Recipe

RESULTS = "results.md"
BY_NAME = "(by name: other releases may have the same patients under other names)"
# options that may change when a run goes on
FREE = ("resume", "save_every", "data", "cache", "device", "name")
FREE_TO_EVALUATE = ("precision", *(name for name in FREE if name != "data"))
EVALUATED = ("evaluate", "model", "data", "cache", "labels", "modalities", "device", "precision", "batch_size", "name")
COMMIT = "commit.txt"


class Task(Protocol):
    """What a task must know."""

    def open_data(self, options: Any, preprocessing: Mapping[str, Any] | None = None) -> Store:
        """The store of the data that the options name; of a phantom where there is none.

        preprocessing: that of published weights, instead of the options'.
        """

    def make_split(self, options: Any, store: Store) -> Split:
        """Who is trained, watched and tested on."""

    def train(self, options: Any, model: nn.Module, store: Store, split: Split, device: torch.device) -> nn.Module:
        """Fit a model on the training part; the averaged model of the last epoch."""

    def measure(self, options: Any, model: nn.Module, store: Store, rows: np.ndarray, header: Mapping[str, Any]) -> Any:
        """Predict and score rows of the store."""

    def report(
        self, options: Any, title: str, model: nn.Module, store: Store, rows: np.ndarray, header: Mapping[str, Any],
        measured: Any,
    ) -> tuple[str, dict[str, Any]]:  # fmt: skip
        """Write tables and figures of what was measured; the text for people, the numbers for the header."""

    def curves(self, history: list[dict[str, str]]) -> Any:
        """The figure of a training."""

    def about(self, options: Any, model: nn.Module, store: Store, split: Split) -> dict[str, Any]:
        """What the header of the weights says beside what all weights say."""


def start(options: Options, task: Task) -> None:
    """What the scripts do: train, or score given weights."""
    (evaluate if options.evaluate else run)(options, task)


def run(options: Options, task: Task) -> None:
    """Train and evaluate, or go on with what stands in the run's folder. Of several processes the first writes."""
    folder = options.folder
    with distributed.joined(options.device) as device:
        first = distributed.rank() == 0
        if options.resume and not checkpoint.exists(folder / "last.pt"):
            raise ValueError(f"there is nothing to resume in {folder}: leave --resume out to start it")
        with checkpoint.locked(folder) if first else nullcontext():
            options = settled(options, device)
            model = build_model(options)
            store = task.open_data(options)
            split = open_split(options, task, store, folder / "split.json")
            for part in ("val", "test"):
                refuse_too_few(split.rows(store, part))
            refuse_overlap(options, split, store)
            if first:
                begins = not (folder / cli.SAVED).exists()
                cli.keep(options, folder, FREE)  # all that the user gave is good: from here on the folder is a run
                write_text(folder / "split.json", split.text)
                if begins:
                    write_text(folder / COMMIT, commit())
                keep_start(options)
            if (folder / RESULTS).exists():
                say(f"{folder} is finished (remove it to train again):\n\n{(folder / RESULTS).read_text()}")
                return
            distributed.wait_for_all()
            keep_freed_memory()
            model = model.to(device).to(memory_format=torch.channels_last)
            model = task.train(options, model, store, split, device)
            try:
                finish(options, task, model, store, split)
            except Interrupted as stop:
                raise Interrupted(f"{stop}: trained, but not tested yet") from None


def no_data(options: Options) -> bool:
    """Nobody named a folder, and the default one is empty: a phantom takes its place."""
    folder, default = options.data, next(field.default for field in fields(options) if field.name == "data")
    return folder == default and not (folder.is_dir() and any(path.name[0] != "." for path in folder.iterdir()))


def say(text: str) -> None:
    """Print, once."""
    if distributed.rank() == 0:
        print(text, flush=True)


def open_split(options: Options, task: Task, store: Store, path: Path) -> Split:
    """The split of this run: that of its first start, if there was one."""
    if path.exists():
        split = Split.load(path)
        if split.data != store.fingerprint:
            raise ValueError(f"{options.data} has changed since {path} was made: choose another --name")
        return split
    return replace(task.make_split(options, store), data=store.fingerprint)


def build_model(options: Options) -> nn.Module:
    """The model that the options name, new or with given weights."""
    torch.manual_seed(options.seed)
    model = models.build(options.model, **options.architecture)
    if options.init:
        models.load_into(model, start_of(options))
    return model


def keep_start(options: Options) -> None:
    """Copy the weights to start from into the run."""
    if options.init and not (options.folder / INIT).exists():
        with replacing(options.folder / INIT) as temporary:
            shutil.copyfile(models.find(options.init), temporary)


def chosen_precision(options: Options, device: torch.device) -> str:
    """What the options ask for: "fp32" or "bf16"; raises ValueError where a GPU does not have it."""
    if options.precision == "bf16" and device.type == "cuda" and best_precision(device) != "bf16":
        raise ValueError("this GPU does not compute in bf16: take --precision fp32, and a --name of its own")
    return best_precision(device) if options.precision == "auto" else options.precision


def recipe_of(options: Options, device: torch.device) -> Recipe:
    """What the options say about the training itself."""
    return Recipe(
        options.epochs, options.lr, options.weight_decay, accumulate=options.accumulate, ema=options.ema,
        precision=chosen_precision(options, device), save_every=options.save_every,
        optimizer=getattr(options, "optimizer", Recipe.optimizer),
    )  # fmt: skip


def settled(options: Options, device: torch.device) -> Options:
    """The same with a precision instead of "auto": the first process chooses, and the run keeps it wherever it goes."""
    if options.precision == "auto" and (saved := options.folder / cli.SAVED).exists():
        options = replace(options, precision=cli.load(type(options), saved).precision)
    return replace(options, precision=distributed.gathered([chosen_precision(options, device)])[0])


def seen(options: Options, store: Store, split: Split) -> list[str]:
    """What the weights of this run, and those it started from, were trained or watched on."""
    rows = np.concatenate([split.rows(store, part) for part in ("train", "val")])
    before = models.noted(models.read_header(start_of(options))) if options.init else ()
    return sorted({*names(store, split.unit, rows), *before})


def refuse_overlap(options: Options, split: Split, store: Store) -> None:
    """Raises ValueError where the weights to start from have seen what this split tests on; says so of the watched."""
    if not options.init:
        return
    header, tested = models.read_header(start_of(options)), split.rows(store, "test")
    # the official test set has images of the same patients anyway, and says so
    rows = files_of(list(models.recorded(header)), store) if split.unit == "file" else seen_by(header, store)
    if (common := tested[rows[tested]]).size:
        name = splits.members(store, split.unit)[common[0]]
        raise ValueError(
            f"{options.init} was trained on {name}, which this split tests on: the score would be no measure of skill; "
            "take other weights, or another --seed or --fold"
        )
    if len(left := unseen(options, split, store, "val")) < (watched := len(split.rows(store, "val"))):
        say(f"{options.init} has seen {watched - len(left)} of the {watched} samples to watch: their scores flatter")


def refuse_too_few(rows: np.ndarray) -> None:
    """Raises ValueError where there is less to predict than there are processes."""
    if 0 < len(rows) < distributed.size():
        raise ValueError(f"{len(rows)} samples cannot be dealt to {distributed.size()} processes: start fewer")


def finish(options: Options, task: Task, model: nn.Module, store: Store, split: Split) -> None:
    """Read the test set, once; write weights, tables and figures."""
    models.round_as_saved(model)  # what is measured is what the file will hold
    folder, rows = options.folder, split.rows(store, "test")
    header = task.about(options, model, store, split) | {
        "preprocessing": store.options, "data": store.folder.name, "split": asdict(split), "commit": commits(folder),
        "seen": seen(options, store, split),
    }  # fmt: skip
    measured = task.measure(options, model, store, rows, header)
    if distributed.rank() > 0:
        return
    made = ", ".join(f"{name} {value}" for name, value in options.architecture.items())
    title = f"{options.model}, {made}, {options.epochs} epochs, {split.about}"
    if options.init:
        title += f", from {options.init}, which has not seen the {split.unit}s that it is tested on {BY_NAME}"
    text, scores = task.report(options, title, model, store, rows, header, measured)
    task.curves(read_csv(folder / "history.csv")).savefig(folder / "curves.png")
    models.save(model, folder / f"{type(model).__name__}.safetensors", metrics=scores, **header)
    print(text)
    write_text(folder / RESULTS, text)  # last: it marks the run as finished


def evaluate(options: Options, task: Task) -> None:
    """Score published weights on what they were not trained on."""
    folder = options.folder
    with distributed.joined(options.device) as device:
        model = models.load(str(options.evaluate), device)
        one_task({str(options.evaluate): model.header})  # refuses weights that say too little of themselves
        if "split" not in model.header:
            raise ValueError(f"{options.evaluate} does not say how it was trained: take weights of a finished run")
        mine = get_args(get_type_hints(type(options))["model"])
        if model.name not in mine:
            raise ValueError(f"{options.evaluate} holds {model.name}; this script scores {', '.join(mine)}")
        if (folder / "last.pt").exists():
            raise ValueError(f"{folder} is a training run: choose another --name for the evaluation")
        refuse_unread(options, model.name)
        store = task.open_data(options, model.header["preprocessing"])
        data = "a phantom" if no_data(options) else options.data
        rows = np.flatnonzero(~seen_by(model.header, store))
        if not len(rows):
            raise ValueError(f"{options.evaluate} was trained on all of {data}: there is nothing to test on")
        refuse_too_few(rows)
        if len(rows) < len(store):
            left = f"{len(store) - len(rows)} of {len(store)} samples are left out"
            say(f"{left}: {options.evaluate} has seen them, or others of these names")
        first = distributed.rank() == 0
        with checkpoint.locked(folder) if first else nullcontext():  # before measuring, which takes long
            if first and (folder / cli.SAVED).exists():
                keep_evaluation(options, store)
            measured = task.measure(options, model, store, rows, model.header)
            if not first:
                return
            keep_evaluation(options, store)
            title = f"{options.evaluate} ({model.header['split']['about']}) on what it has not seen of {data} {BY_NAME}"
            text, _ = task.report(options, title, model, store, rows, model.header, measured)
            write_text(folder / RESULTS, text)
        print(text)


def refuse_unread(options: Options, name: str) -> None:
    """Raises ValueError for options that do nothing here: the table would be taken for that of --fold 0."""
    if options.model not in (name, type(options)().model):  # type: ignore[call-arg]
        raise ValueError(f"{options.evaluate} holds {name}: leave --model out")
    default = type(options)(model=options.model)  # type: ignore[call-arg]  # the scripts' options have defaults
    changed = [name for name, value in vars(options).items() if value != getattr(default, name)]
    if unread := [f"--{name.replace('_', '-')}" for name in changed if name not in EVALUATED]:
        whole = "--evaluate scores all that its weights have not seen"
        raise ValueError(f"{', '.join(unread)}: for trainings only; {whole}: leave it out, or choose another --name")


def keep_evaluation(options: Options, store: Store) -> None:
    """Write down what is evaluated; raises ValueError where the folder has the results of other options or data."""
    path = options.folder / "data.txt"
    cli.keep(options, options.folder, FREE_TO_EVALUATE)
    if path.exists() and path.read_text() != store.fingerprint:
        raise ValueError(f"{options.folder} has the results of other data: choose another --name")
    write_text(path, store.fingerprint)


def commits(folder: Path) -> str:
    """The project's version that a run began with (older runs do not say it), and that of today if it is another."""
    began = (folder / COMMIT).read_text() if (folder / COMMIT).exists() else "unknown"
    return " to ".join(dict.fromkeys(filter(None, (began, commit()))))


def commit() -> str:
    """The project's version; empty outside a git checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
