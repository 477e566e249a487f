"""The training loop: exact resume after any end, averages and schedules against hand-made ones, a stop on NaN."""

import csv
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from utils import checkpoint
from utils.signals import Interrupted, StopRequest
from utils.train import AveragedWeights, Recipe, Run, fit


class Numbers:
    """Batches that are a function of (epoch, step), like the real ones: targets are a linear map of the images."""

    batch_size = 4
    seed = 7

    def __init__(self, steps: int = 5, bad: int | None = None) -> None:
        self.count, self.bad = steps, bad

    def __len__(self) -> int:
        return self.count

    def steps(self, epoch: int) -> list[np.ndarray]:
        return np.split(np.arange(self.count * self.batch_size) + 100 * epoch, self.count)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for step in range(start, self.count):
            images = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(100 * epoch + step))
            targets = images.sum(dim=1, keepdim=True)
            yield images, targets * (float("nan") if (epoch, step) == (1, self.bad) else 1.0)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.2), nn.Conv2d(8, 1, 1))


class DyingLoss(nn.Module):
    """Mean squared error that takes its time (seconds), and sends its own process a signal at its n-th call."""

    def __init__(self, call: int, number: signal.Signals, pause: float = 0.0) -> None:
        super().__init__()
        self.call, self.number, self.pause, self.calls = call, number, pause, 0

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        time.sleep(self.pause)
        if self.calls == self.call:
            os.kill(os.getpid(), self.number)
        return nn.functional.mse_loss(logits, targets)


RECIPE = Recipe(epochs=4, lr=1e-2, ema=0.9, save_every=0)  # a checkpoint at every step


def weights(model: nn.Module) -> list[torch.Tensor]:
    return list(model.state_dict().values())


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def train_and_die(folder: Path, call: int, save_every: float) -> None:
    recipe = Recipe(epochs=4, lr=1e-2, ema=0.9, save_every=save_every)
    fit(network(), Numbers(), DyingLoss(call, signal.SIGKILL), recipe, folder)


@pytest.mark.parametrize("save_every", [0.0, 10.0])
def test_killed_at_a_random_step_and_resumed_is_as_if_nothing_happened(tmp_path: Path, save_every: float) -> None:
    call = random.SystemRandom().randint(1, 4 * 5)
    process = multiprocessing.get_context("spawn").Process(target=train_and_die, args=(tmp_path, call, save_every))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"killed at call {call}"
    resumed = fit(network(), Numbers(), nn.MSELoss(), RECIPE, tmp_path)
    whole = fit(network(), Numbers(), nn.MSELoss(), RECIPE, tmp_path / "whole")
    assert same(resumed, whole), f"killed at call {call}"
    losses = [[line.split(",")[1] for line in (folder / "history.csv").read_text().splitlines()]
              for folder in (tmp_path, tmp_path / "whole")]  # fmt: skip
    assert losses[0] == losses[1] and len(losses[0]) == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_at_the_next_step(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    recipe = Recipe(epochs=4, lr=1e-2, ema=0.9)  # no checkpoint but that of the signal
    with pytest.raises(Interrupted, match=rf"{number.name}: saved at epoch 2, step 3 of 5"):
        fit(network(), Numbers(), DyingLoss(8, number), recipe, tmp_path)
    assert signal.getsignal(number) is before
    resumed = fit(network(), Numbers(), nn.MSELoss(), recipe, tmp_path)
    assert same(resumed, fit(network(), Numbers(), nn.MSELoss(), recipe, tmp_path / "whole"))


def test_the_time_of_an_epoch_counts_what_was_spent_before_a_stop(tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, lr=1e-2, ema=0.9)
    with pytest.raises(Interrupted, match="saved at epoch 1, step 4 of 5"):
        fit(network(), Numbers(), DyingLoss(4, signal.SIGUSR1, pause=0.05), recipe, tmp_path)
    state = checkpoint.load(tmp_path / "last.pt")
    assert state is not None and state["spent"] > 4 * 0.05 and 0 <= state["waited"] < state["spent"]
    fit(network(), Numbers(), nn.MSELoss(), recipe, tmp_path)
    first, second = csv.DictReader((tmp_path / "history.csv").open())
    assert float(first["seconds"]) >= round(state["spent"], 1) and 0 <= float(first["waiting"]) <= 1
    assert float(second["seconds"]) < float(first["seconds"])  # counted anew


def test_a_signal_ends_a_long_validation_and_saves(tmp_path: Path) -> None:
    recipe = Recipe(epochs=4, lr=1e-2, ema=0.9)

    def long(averaged: nn.Module) -> dict[str, float]:
        signal.raise_signal(signal.SIGUSR1)
        raise AssertionError("went on")

    with pytest.raises(Interrupted, match="SIGUSR1: saved at epoch 1, before its validation"):
        fit(network(), Numbers(), nn.MSELoss(), recipe, tmp_path, long)
    resumed = fit(network(), Numbers(), nn.MSELoss(), recipe, tmp_path, lambda averaged: {"dice_mean": 0.5})
    assert same(resumed, fit(network(), Numbers(), nn.MSELoss(), recipe, tmp_path / "whole"))
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [row["dice_mean"] for row in rows] == ["0.5"] * 4


def test_a_second_ctrl_c_stops_at_once() -> None:
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        assert stop.received == "SIGINT"
        signal.raise_signal(signal.SIGINT)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"epoch 2, step 3, on rows \[108 109 110 111\]"):
        fit(network(), Numbers(bad=2), nn.MSELoss(), RECIPE, tmp_path, names=lambda rows: f"rows {rows}")
    saved = checkpoint.load(tmp_path / "last.pt")
    assert saved is not None and (saved["epoch"], saved["step"]) == (1, 2)
    assert all(torch.isfinite(value).all() for value in saved["model"].values())


def test_the_loss_falls_and_the_best_is_kept(tmp_path: Path) -> None:
    scores = iter([0.1, 0.5, 0.3, 0.2])
    model = fit(network(), Numbers(), nn.MSELoss(), RECIPE, tmp_path, lambda averaged: {"dice_mean": next(scores)})
    last, best = checkpoint.load(tmp_path / "last.pt"), checkpoint.load(tmp_path / "best.pt")
    assert last is not None and best is not None
    losses = [row["loss"] for row in last["history"]]
    assert losses[-1] < 0.7 * losses[0]
    assert best["row"]["epoch"] == 2 and last["best"] == 0.5
    assert not model.training and all(torch.equal(model.state_dict()[k], v) for k, v in last["average"].items())
    assert any(path.name.startswith("events.out") for path in tmp_path.iterdir())


def test_another_model_recipe_or_amount_of_data_is_refused(tmp_path: Path) -> None:
    fit(network(), Numbers(), nn.MSELoss(), RECIPE, tmp_path)
    with pytest.raises(ValueError, match=r"lr 0\.01, not 0\.02"):
        fit(network(), Numbers(), nn.MSELoss(), Recipe(epochs=4, lr=2e-2, ema=0.9), tmp_path)
    with pytest.raises(ValueError, match="5 steps an epoch, the data 6"):
        fit(network(), Numbers(6), nn.MSELoss(), RECIPE, tmp_path)
    with pytest.raises(ValueError, match="another model"):
        fit(nn.Sequential(nn.Conv2d(2, 1, 1)), Numbers(), nn.MSELoss(), RECIPE, tmp_path)
    older = torch.load(tmp_path / "last.pt", weights_only=True)
    del older["recipe"]["clip"]
    torch.save(older, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="of an older version, without clip"):
        fit(network(), Numbers(), nn.MSELoss(), RECIPE, tmp_path)


def test_accumulated_parts_are_one_batch(tmp_path: Path) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))  # no batch norm

    whole = fit(model(), Numbers(), nn.MSELoss(), Recipe(epochs=2), tmp_path / "whole")
    parts = fit(model(), Numbers(), nn.MSELoss(), Recipe(epochs=2, accumulate=3), tmp_path / "parts")
    for one, other in zip(weights(whole), weights(parts), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_batch_too_small_for_its_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--accumulate is 9, and a batch may have 4 samples: take less"):
        fit(network(), Numbers(), nn.MSELoss(), Recipe(epochs=1, accumulate=9), tmp_path)


def test_the_learning_rate_is_torchs_warm_up_and_cosine() -> None:
    recipe, steps = Recipe(epochs=1, lr=1.0, warmup=0.1), 100
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 10, 1.0, total_iters=9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 90)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [9])
    for step in range(steps):
        assert recipe.factor((step + 1) / steps) == pytest.approx(schedule.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        schedule.step()


def test_averaged_weights_are_the_sum_by_hand() -> None:
    model = nn.BatchNorm1d(3)
    average = AveragedWeights(model, 0.75)
    expected = model.weight.detach().clone()
    for step, decay in ((0, 1 / 10), (1, 2 / 11), (2, 3 / 12), (100, 0.75), (101, 0.75)):
        with torch.no_grad():
            model.weight += step
            model.num_batches_tracked += 2
        average.update(step)
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.model.weight, expected)
    assert average.model.num_batches_tracked == 10 and not average.model.weight.requires_grad


def test_norms_and_biases_do_not_decay() -> None:
    run = Run(network(), Recipe(epochs=1, weight_decay=0.1), 1)
    groups = run.optimizers[0].param_groups
    for group in groups:
        assert all((weight.ndim > 1) == (group["weight_decay"] == 0.1) for weight in group["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(run.model.parameters()))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    assert checkpoint.load(path) is None
    for step in (1, 2):
        checkpoint.save({"step": step, "weights": torch.ones(1000)}, path)
    assert checkpoint.load(path)["step"] == 2
    os.truncate(path, path.stat().st_size // 2)
    with pytest.warns(UserWarning, match=r"last\.pt is damaged"):
        assert checkpoint.load(path)["step"] == 1
    for step in (3, 4):
        checkpoint.save({"step": step, "weights": torch.ones(1000)}, path)
    whole = bytearray(path.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 64] = bytes(64)  # a lost page of a disk: torch would read on
    path.write_bytes(whole)
    with pytest.warns(UserWarning, match=r"last\.pt is damaged"):
        assert checkpoint.load(path)["step"] == 3
    path.unlink()
    (tmp_path / "last.previous.pt").write_text("not a checkpoint")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no checkpoint"):
        checkpoint.load(path)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save({"step": 1}, path)
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    real = torch.save
    monkeypatch.setattr(torch, "save", lambda state, to: real(state, "/dev/full"))
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save({"step": 2, "weights": torch.ones(100_000)}, path)
    assert checkpoint.load(path) == {"step": 1} and list(tmp_path.iterdir()) == [path]


def test_a_failed_gpu_is_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        checkpoint.save({"step": 1}, tmp_path / "last.pt")
    assert not list(tmp_path.iterdir())


def test_a_run_that_came_to_nothing_leaves_no_folder(tmp_path: Path) -> None:
    for name in ("empty", "begun"):
        with pytest.raises(ValueError, match="no data"), checkpoint.locked(tmp_path / name):
            if name == "begun":
                (tmp_path / name / "options.json").touch()
            raise ValueError("no data")
    assert [path.name for path in tmp_path.iterdir()] == ["begun"]


def hold(folder: Path, ready: object) -> None:
    with checkpoint.locked(folder):
        ready.set()  # type: ignore[attr-defined]
        signal.pause()


def test_a_run_folder_is_held_by_one_process_and_not_by_a_dead_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready), daemon=True)
    process.start()
    assert ready.wait(600)
    with pytest.raises(ValueError, match="still going on"), checkpoint.locked(tmp_path):
        pass
    process.kill()
    process.join()
    with checkpoint.locked(tmp_path):
        pass
