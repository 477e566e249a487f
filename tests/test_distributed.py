"""Two processes train as one does: the same loss, the same gradients, one set of files."""

import csv
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.multiprocessing
from monai.losses import DiceLoss
from torch import nn

import models
from tests.conftest import free_port
from tests.test_images import tree
from training import stages
from utils import distributed, losses
from utils.distributed import Place, place
from utils.signals import Interrupted
from utils.train import Recipe, Run

PROJECT = Path(__file__).parents[1]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
COUNT_THREADS = str(PROJECT / "tests" / "count_threads.py")


def test_who_am_i() -> None:
    assert place({}) == Place(0, 1, 0)
    assert place({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == Place(3, 4, 1)
    assert place({"WORLD_SIZE": "4"}) == Place(0, 1, 0)  # a cluster's own script set it
    step = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"}
    assert place(step) == Place(1, 2, 0)
    assert place({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}) == Place(0, 1, 0)  # no srun


@pytest.mark.parametrize(
    ("device", "error", "leaves"),
    [("cuda", None, True), ("cuda", Interrupted("saved"), True), ("cuda", ValueError("bad"), False),
     ("cpu", ValueError("bad"), True), ("cuda", RuntimeError("out of memory"), False)],
)  # fmt: skip
def test_only_on_gpus_a_process_that_fails_does_not_wait_for_the_others(
    monkeypatch: pytest.MonkeyPatch, device: str, error: BaseException | None, leaves: bool
) -> None:
    calls = []
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "here")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "choose", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *args, **kwargs: calls.append("join"))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: calls.append("leave"))
    with nullcontext() if error is None else pytest.raises(type(error), match=str(error)), distributed.joined(device):
        if error is not None:
            raise error
    assert calls == (["join", "leave"] if leaves else ["join"])


def test_every_process_must_have_something_to_predict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 8)
    for count in (0, 8, 9):
        stages.refuse_too_few(np.arange(count))
    with pytest.raises(ValueError, match="5 samples cannot be dealt to 8 processes"):
        stages.refuse_too_few(np.arange(5))


def test_dice_is_that_of_monai() -> None:
    logits = torch.randn(3, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    masks = (torch.rand(3, 3, 9, 7, generator=torch.Generator().manual_seed(1)) > 0.7).float()
    torch.testing.assert_close(losses.dice(logits, masks), DiceLoss(sigmoid=True, batch=True)(logits, masks))
    masks[:, 1] = 0
    torch.testing.assert_close(losses.dice(logits, masks), DiceLoss(sigmoid=True, batch=True)(logits, masks))


def sample() -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A network, 5 images, their label maps and their classes."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 1))
    images = torch.randn(5, 4, 8, 8)
    return network, images, torch.randint(0, 4, (5, 8, 8)), torch.randint(0, 3, (5,))


def both_losses(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    logits = network(images)
    return losses.DiceBCE()(logits, labels) + losses.CrossEntropy(0.1)(logits.mean(dim=(2, 3)), classes)


def a_step(images: torch.Tensor, _: torch.Tensor, classes: torch.Tensor, accumulate: int) -> list[torch.Tensor]:
    """The loss of a step in so many parts, and the gradients that it goes along."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    run, found = Run(model, Recipe(epochs=1, accumulate=accumulate, clip=math.inf), steps=1), list[torch.Tensor]()
    run.optimizers[0].register_step_pre_hook(lambda *_: found.extend(w.grad for w in model.parameters()))
    run.learn(images, classes, losses.CrossEntropy())
    return [run.losses[0], *found]


def one_of_two(rank: int, folder: str) -> None:
    """What each process does: its part of the batch (2 and 3 images), and what it learns of the others."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": Path(folder, "port").read_text()}  # fmt: skip
    with distributed.joined("cpu"):
        network, *batch = sample()
        mine = slice(0, 2) if rank == 0 else slice(2, 5)
        shared = distributed.shared(network)
        loss = both_losses(shared, *(part[mine] for part in batch))
        loss.backward()
        mean = distributed.total(loss.detach()) / 2
        norm = nn.BatchNorm1d(3)
        norm(torch.full((4, 3), float(rank)))
        distributed.align(norm)
        found = {
            "mean": norm.running_mean, "batches": norm.num_batches_tracked,
            "loss": mean, "gradients": [weight.grad for weight in network.parameters()],
            "in parts": a_step(*(part[mine] for part in sample()[1:]), accumulate=2),
            "order": torch.tensor(distributed.gathered(list(range(7))[rank::2])),
            "anywhere": torch.tensor([distributed.anywhere(rank == 1), distributed.anywhere(False)]),
        }  # fmt: skip
        torch.save(found, Path(folder, f"{rank}.pt"))


def test_losses_and_gradients_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    (tmp_path / "port").write_text(str(free_port()))
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    network, *batch = sample()
    loss = both_losses(network, *batch)
    loss.backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["loss"], loss.detach())
        for gradient, weight in zip(found["gradients"], network.parameters(), strict=True):
            torch.testing.assert_close(gradient, weight.grad)
        torch.testing.assert_close(found["in parts"], a_step(*batch, accumulate=1))
        assert found["mean"].tolist() == [0.0] * 3 and found["batches"] == 1  # those of the first process
        assert found["order"].tolist() == list(range(7)) and found["anywhere"].tolist() == [True, False]


def arguments(cases: Path, tmp_path: Path, name: str, *more: str) -> list[str]:
    return [
        str(PROJECT / "training" / "unet_training.py"), "--model", "classic_unet", "--n-filters", "4", "--data",
        str(cases), "--window", "48", "64", "--epochs", "4", "--batch-size", "9", "--val", "0.2", "--test", "0.3",
        "--cache", str(tmp_path / "cache"), "--name", str(tmp_path / name), "--device", "cpu", "--precision", "fp32",
        *more,
    ]  # fmt: skip


def history(folder: Path) -> dict[str, np.ndarray]:
    rows = list(csv.DictReader((folder / "history.csv").open()))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def test_torchrun_trains_as_one_process_does(cases: Path, tmp_path: Path) -> None:
    one = subprocess.run([sys.executable, *arguments(cases, tmp_path, "one")], env=ONE_THREAD, capture_output=True)
    command = [*TORCHRUN, COUNT_THREADS, *arguments(cases, tmp_path, "two")]
    two = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True)
    assert one.returncode == two.returncode == 0, two.stderr
    assert two.stdout.count("| WT |") == 1  # one process speaks
    assert two.stderr.count("outlive Python: []") == 2
    alone, together = history(tmp_path / "one"), history(tmp_path / "two")
    np.testing.assert_allclose(together["loss"], alone["loss"], rtol=1e-4)
    np.testing.assert_allclose(together["val_loss"], alone["val_loss"], rtol=2e-3)
    np.testing.assert_allclose(together["dice_mean"], alone["dice_mean"], atol=2e-3)
    rows = [list(csv.DictReader((tmp_path / name / "patients.csv").open())) for name in ("one", "two")]
    assert [row["case"] for row in rows[0]] == [row["case"] for row in rows[1]]
    for first, second in zip(*rows, strict=True):
        assert float(first["dice_WT"]) == pytest.approx(float(second["dice_WT"]), abs=5e-3)


@pytest.mark.parametrize("model", ["improved_unet", "attention_unet"])
def test_models_with_batch_norm_train_and_save_too(cases: Path, tmp_path: Path, model: str) -> None:
    options = arguments(cases, tmp_path, model, "--model", model, "--epochs", "1")
    done = subprocess.run([*TORCHRUN, *options], env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (saved,) = (tmp_path / model).glob("*.safetensors")
    assert models.load(saved).name == model and np.isfinite(history(tmp_path / model)["loss"]).all()


@pytest.mark.parametrize("script", ["cnn_training.py", "vit_training.py"])
def test_classifiers_train_on_two_processes_too(tmp_path: Path, script: str) -> None:
    options = [
        str(PROJECT / "training" / script), "--data", str(tree(tmp_path / "heads")), "--image-size", "80", "--epochs",
        "1", "--batch-size", "4", "--val", "0", "--cache", str(tmp_path / "cache"), "--name", str(tmp_path / "run"),
        "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run([*TORCHRUN, *options], env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "run" / "predictions.csv").open()))
    assert len({row["file"] for row in rows}) == len(rows) == 8  # each test image once, of both processes


def test_a_signal_to_all_saves_once_and_the_run_goes_on(cases: Path, tmp_path: Path) -> None:
    command = [*TORCHRUN, COUNT_THREADS, *arguments(cases, tmp_path, "run", "--epochs", "8")]
    process = subprocess.Popen(command, env=ONE_THREAD, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (tmp_path / "run" / "history.csv").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0 and "SIGTERM: saved at epoch" in said
    assert said.count("outlive Python: []") == 2
    from utils import checkpoint

    state = checkpoint.load(tmp_path / "run" / "last.pt")
    assert state is not None and 0 < state["epoch"] < 8
    whole = [*TORCHRUN, *arguments(cases, tmp_path, "whole", "--epochs", "8")]
    for again in (command, whole):
        subprocess.run(again, env=ONE_THREAD, check=True, capture_output=True)
    weights = [safetensors.torch.load_file(tmp_path / name / "ClassicUNet.safetensors") for name in ("run", "whole")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_process_that_fails_says_why_and_ends_all(cases: Path, tmp_path: Path) -> None:
    failed = subprocess.run(
        [*TORCHRUN, *arguments(cases, tmp_path, "bad", "--batch-size", "1")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert failed.returncode != 0 and "raise --batch-size" in failed.stderr
    assert "ValueError" not in failed.stderr  # a sentence; the only traceback is torchrun's own

