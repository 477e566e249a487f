"""The training loop of all models: `fit`.

Randomness is a function of (seed, epoch, step) and the learning rate one of the step, so a checkpoint needs no state of
either, and a resumed run is the uninterrupted one: bit for bit on the CPU.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from utils import checkpoint, distributed
from utils.device import autocast, channels_last
from utils.journal import Journal
from utils.optimizers import optimizers
from utils.signals import Interrupted, StopRequest

READ_EVERY = 10  # steps between two looks at the losses on the device


class Data(Protocol):
    """What `fit` asks of its batches; `datasets.batches.Batches` is one."""

    batch_size: int
    seed: int

    def __len__(self) -> int:
        """Steps an epoch."""

    def steps(self, epoch: int) -> list[np.ndarray]:
        """The rows of the data set that each step of an epoch takes."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of an epoch from step `start` on, on the device: images (B, C, H, W) and their targets."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. The learning rate warms up linearly, then follows a half cosine to 0."""

    epochs: int
    lr: float = 1e-3
    weight_decay: float = 1e-2
    warmup: float = 0.05  # share of all steps
    clip: float = 1.0  # largest norm of the gradient
    accumulate: int = 1  # parts that a batch is cut into, to save memory
    ema: float = 0.99  # decay of the averaged weights, a step
    optimizer: str = "adamw"  # or muon, for the matrices inside
    precision: str = "fp32"  # or bf16
    save_every: float = 10.0  # minutes

    def factor(self, progress: float) -> float:
        """The learning rate's factor at a share of all steps."""
        if progress < self.warmup:
            return progress / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


class AveragedWeights:
    """An exponential moving average of a model's weights (Polyak averaging); `model` is the averaged copy."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        averaged, current = self.model.state_dict().values(), model.state_dict().values()
        pairs = list(zip(averaged, current, strict=True))
        self.floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self.integers = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the model: once a step, counted from 0 (quicker at first, to leave the start)."""
        averaged, current = zip(*self.floats, strict=True)
        torch._foreach_lerp_(averaged, current, 1 - min(self.decay, (1 + step) / (10 + step)))
        for mine, theirs in self.integers:
            mine.copy_(theirs)


class Run:
    """Everything that a training is made of, and that a checkpoint must hold."""

    def __init__(self, model: nn.Module, recipe: Recipe, steps: int) -> None:
        self.model, self.recipe, self.steps = model, recipe, steps
        self.device = next(model.parameters()).device
        self.optimizers = optimizers(model, recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.precision)
        self.average = AveragedWeights(model, recipe.ema)
        self.network = distributed.shared(model)
        self.epoch = self.step = 0  # the step within the epoch
        self.losses = torch.zeros(steps, device=self.device)  # of this epoch, on the device: no step waits for them
        self.spent = self.waited = 0.0  # seconds of this epoch, and those of them without a batch
        self.best = -math.inf
        self.history: list[dict[str, Any]] = []

    def learn(self, images: torch.Tensor, targets: torch.Tensor, criterion: nn.Module) -> None:
        """One step of the optimizer on one batch: images (B, C, H, W), targets as the criterion wants them."""
        progress = (self.epoch * self.steps + self.step + 1) / (self.recipe.epochs * self.steps)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = self.recipe.lr * self.recipe.factor(progress)
        parts = self.recipe.accumulate
        for image, target in zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True):
            with autocast(self.device, self.recipe.precision):
                logits = self.network(channels_last(image))
            loss = criterion(logits, target) * (distributed.share(len(image), len(images)) if parts > 1 else 1)
            loss.backward()
            self.losses[self.step] += distributed.total(loss.detach()) / distributed.size()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.losses[self.step] += 0 * norm  # a gradient that is not finite counts as such a loss
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.average.update(self.epoch * self.steps + self.step)
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(), "average": self.average.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "epoch": self.epoch, "step": self.step, "losses": self.losses, "spent": self.spent, "waited": self.waited,
            "best": self.best, "history": self.history, "recipe": asdict(self.recipe),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was taken.

        Raises:
            ValueError: it belongs to another model, recipe, or amount of data.
        """
        for name, value in asdict(self.recipe).items():
            of_run = state["recipe"].get(name)
            if of_run is None:
                raise ValueError(f"the run is of an older version, without {name}: choose another --name")
            if name != "save_every" and of_run != value:
                raise ValueError(f"the run has {name} {of_run}, not {value}: give what it has, or another --name")
        if len(state["losses"]) != self.steps:
            raise ValueError(f"the run has {len(state['losses'])} steps an epoch, the data {self.steps}: they changed")
        try:
            self.model.load_state_dict(state["model"])
            self.average.model.load_state_dict(state["average"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
            self.spent, self.waited, self.history = state["spent"], state["waited"], state["history"]
            self.losses.copy_(state["losses"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError("the checkpoint is of another model or version: choose another --name") from error


def fit(
    model: nn.Module,
    data: Data,
    criterion: nn.Module,
    recipe: Recipe,
    folder: Path,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    score: str = "dice_mean",
    names: Callable[[np.ndarray], str] = str,
    prepare: Callable[[Run], None] | None = None,
) -> nn.Module:
    """Train a model, or go on with what `folder` holds; returns the averaged model of the last epoch.

    Args:
        model: on its device, in the memory format it shall have.
        data: the batches of each epoch.
        criterion: takes logits and targets, returns a scalar, the mean over the batch.
        folder: of the run.
        validate: called with the averaged model after each epoch; its numbers go into the epoch's row.
        score: the number of validation by which `best.pt` is kept.
        names: rows of the data as text, for the message of a stop.
        prepare: changes the run before it starts (another optimizer, say).

    Writes `last.pt`, `best.pt`, `history.csv` and TensorBoard's events into `folder`.

    Raises:
        Interrupted: a signal came; everything is saved, and the same call goes on.
        FloatingPointError: the loss is not finite; names epoch, step and samples.
        ValueError: `folder` holds a run of another model or data; a batch has too few samples for the recipe.
    """
    smallest = min(map(len, data.steps(0))) // distributed.size()  # of any process, which must make as many parts
    if recipe.accumulate > smallest:
        few = f"--accumulate is {recipe.accumulate}, and a batch may have {smallest} samples"
        raise ValueError(f"{few}: take less, and another --name")
    run = Run(distributed.synchronised(model, next(model.parameters()).device), recipe, len(data))
    if prepare is not None:
        prepare(run)
    if (state := checkpoint.load(folder / "last.pt")) is not None:
        run.load_state_dict(state)
    with StopRequest() as stop, Journal(folder, run.epoch) as journal:
        while run.epoch < recipe.epochs:
            train_one_epoch(run, data, criterion, journal, stop, names)
            distributed.align(run.average.model)
            row = {
                "epoch": run.epoch + 1, "loss": run.losses.mean().item(),
                "lr": run.optimizers[0].param_groups[0]["lr"], "seconds": round(run.spent, 1),
                "waiting": round(run.waited / max(run.spent, 1e-9), 4),
            }  # fmt: skip
            row |= validated(run, validate, journal, stop) if validate is not None else {}
            run.history.append(row)
            run.epoch, run.step = run.epoch + 1, 0
            run.spent = run.waited = 0.0
            run.losses.zero_()
            better = row.get(score, -math.inf) > run.best
            run.best = row[score] if better else run.best
            journal.end_epoch(run.state_dict(), better)
        if distributed.anywhere(bool(stop)):  # after the last step
            distributed.wait_for_all()
            raise Interrupted(f"{stop.received or 'stopped'}: saved at the end of epoch {run.epoch}")
    return run.average.model


def train_one_epoch(
    run: Run, data: Data, criterion: nn.Module, journal: Journal, stop: StopRequest, names: Callable[[np.ndarray], str]
) -> None:
    """The rest of the epoch that the run stands in."""
    run.model.train()
    asked = saved = time.perf_counter()
    bar = tqdm(
        data.epoch(run.epoch, run.step), desc=f"epoch {run.epoch + 1}/{run.recipe.epochs}", total=len(data),
        initial=run.step, unit="step", dynamic_ncols=True, mininterval=1.0, disable=not journal.writes,
    )  # fmt: skip
    for images, targets in bar:
        run.waited += time.perf_counter() - asked
        of_step = hash((data.seed, run.epoch, run.step))  # of whole numbers: the same in each process and run
        torch.manual_seed((of_step + distributed.rank()) & (2**63 - 1))  # for dropout
        run.learn(images, targets, criterion)
        look = run.step % READ_EVERY == 0 or run.step == run.steps
        if look:
            check_finite(run, data, names)  # waits for the device
        now = time.perf_counter()
        run.spent, asked = run.spent + now - asked, now
        if look:
            speed, loss = run.step * data.batch_size / run.spent, run.losses[: run.step].mean().item()
            waiting = run.waited / run.spent
            bar.set_postfix_str(f"loss {loss:.4f}, {speed:.1f} samples/s, waiting {waiting:.0%}", refresh=False)
        stopping = distributed.anywhere(bool(stop))
        if stopping or time.perf_counter() - saved > run.recipe.save_every * 60:
            check_finite(run, data, names)
            journal.save(run.state_dict())
            asked = saved = time.perf_counter()
        if stopping:
            distributed.wait_for_all()  # the first has saved: where one process ends, srun may end all
            bar.close()
            raise Interrupted(
                f"{stop.received or 'stopped'}: saved at epoch {run.epoch + 1}, step {run.step} of {run.steps}"
            )


def validated(
    run: Run, validate: Callable[[nn.Module], dict[str, float]], journal: Journal, stop: StopRequest
) -> dict[str, float]:
    """The numbers of validation, which may take longer than a signal leaves time for: a signal ends it, and saves.

    Not so among several processes, which work together: there the signal is noticed at the next step.
    """
    if distributed.size() > 1:
        return validate(run.average.model)
    try:
        with stop.at_once():
            return validate(run.average.model)
    except Interrupted as signal:
        journal.save(run.state_dict())
        raise Interrupted(f"{signal}: saved at epoch {run.epoch + 1}, before its validation") from None


def check_finite(run: Run, data: Data, names: Callable[[np.ndarray], str]) -> None:
    """Look at the losses of this epoch.

    Raises:
        FloatingPointError: names the first step whose loss is not finite, and its samples.
    """
    bad = torch.nonzero(~torch.isfinite(run.losses[: run.step]))
    if len(bad):
        step = int(bad[0])
        samples = names(data.steps(run.epoch)[step])
        raise FloatingPointError(
            f"the loss is not finite in epoch {run.epoch + 1}, step {step + 1}, on {samples}: "
            "look at these samples, or lower --lr in a run of another --name; the last checkpoint is from before"
        )
