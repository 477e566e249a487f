"""The speed benchmarks: they run, their tables have all rows, and the predecessor computes what it should."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import (
    inference,
    larger_than_memory,
    pipeline,
    predecessor,
    segmentation_references,
    time_to_score,
    timing,
    training,
)
from datasets.brats import find_cases, read_case
from datasets.images import CLASSES, PARTS
from models.quick_conv import QuickConv2d
from tests.conftest import make_case, write_case
from utils import device, metrics

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    """Two small heads on whole 240 x 240 slices."""
    for number in range(2):
        images, labels = make_case(number, (120, 140, 6))
        around = ((60, 60), (50, 50), (0, 0))
        write_case(tmp_path / "brats", f"Case_{number}", np.pad(images, ((0, 0), *around)), np.pad(labels, around))
    return tmp_path / "brats"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Eight images of noise a class and part."""
    rng = np.random.default_rng(0)
    for part in PARTS:
        for label in CLASSES:
            folder = tmp_path / "images" / part / label
            folder.mkdir(parents=True)
            for number in range(8):
                Image.fromarray(rng.integers(0, 255, (150, 140), np.uint8)).save(folder / f"{label}_{number}.jpg")
    return tmp_path / "images"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """All cases in this process, in float32 whatever the CPU has."""
    monkeypatch.setattr(timing, "_process", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(device, "best_precision", lambda _: "fp32")


def rows(text: str) -> list[list[str]]:
    """The cells of all tables of a text."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


@pytest.mark.usefixtures("quick")
def test_training_has_a_row_a_case(patients: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training.main(training.Options(("alexnet", "classic_unet"), patients, images, n_filters=8, batch_size=2,
                                   seconds=0.0, turns=1, device="cpu"))  # fmt: skip
    text = capsys.readouterr().out
    found = {cells[0]: cells[1:] for cells in rows(text)}
    assert {
        "store of a patient, 160 x 192", "store of a patient, 240 x 240", "store of 64 images",
        "start of unet_training.py to the end of its first step",
        "predecessor, fp32", "torchvision's pipeline, fp32", "torchvision's alexnet, our pipeline, fp32", "ours, fp32",
        "limit, fp32", "predecessor, 240 x 240, fp32", "MONAI's pipeline, 160 x 192, fp32", "ours, 240 x 240, fp32",
        "ours, 160 x 192, fp32", "limit, 160 x 192, fp32", "our classic_unet", "MONAI BasicUNet", "MONAI AttentionUnet",
        "MONAI SegResNet", "nnU-Net's PlainConvUNet",
    } <= set(found)  # fmt: skip
    assert found["ours, 160 x 192, fp32"][4] == "344,227" and found["predecessor, fp32"][1] == "1.00 (1.00 to 1.00)"
    assert float(found["ours, 160 x 192, fp32"][5].split()[0]) > 0 and found["ours, 240 x 240, fp32"][5] == ""
    assert text.count("Roofline: ") == 2


@pytest.mark.usefixtures("quick")
def test_inference_has_a_row_a_way(patients: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inference.main(inference.Options(patients, ("classic_unet",), 2, turns=1, device="cpu"))
    found = rows(capsys.readouterr().out)
    assert [cells[0] for cells in found[2:]] == ["ours: slices of the crop", "MONAI's sliding window, overlap 0.25"]
    assert found[2][3] == "1.00 (1.00 to 1.00)" and all(float(cells[1].split()[0]) >= 0 for cells in found[2:])


def test_both_ways_of_inference_label_the_same_voxels(patients: Path) -> None:
    class FirstThree(nn.Module):
        """A network that looks at single pixels: windows make no difference to it."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :3]

    patient = read_case(find_cases(patients)[0])
    setting = pipeline.Setting("classic_unet", patients, patients, CPU, 8, 2, 0)
    one, other = (way(setting, FirstThree(), patient) for way in (inference.ours, inference.monai))
    assert one.shape == other.shape == (240, 240, 6) and len(np.unique(one)) == 4
    assert (one == other).mean() > 0.9999  # the crop is kept in 16 bits


def test_the_predecessors_metrics_on_a_case_by_hand() -> None:
    logits = torch.tensor([3.0, 2.0, 1.0, -1.0, -2.0, -3.0]).reshape(1, 1, 2, 3)
    masks = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0]).reshape(1, 1, 2, 3)
    found = {name: predecessor.metric(name, logits, masks, 0) for name in predecessor.METRICS}
    assert found == pytest.approx({"dice": 2 / 3, "iou": 1 / 2, "accuracy": 2 / 3, "fpr": 1 / 3, "fnr": 1 / 3,
                                   "precision": 2 / 3, "recall": 2 / 3})  # fmt: skip


def test_the_predecessors_metrics_are_those_of_the_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 4, (2, 3, 20, 30), generator=generator)
    predicted, true = (torch.stack([codes[side] == code for code in (1, 2, 3)], dim=1).float() for side in (0, 1))
    expected = metrics.ratios(metrics.count(codes[0], codes[1]))
    assert set(expected) == set(predecessor.METRICS)
    for name, values in expected.items():
        found = [predecessor.metric(name, predicted - 0.5, true, channel) for channel in range(3)]
        assert found == pytest.approx(values.tolist(), rel=1e-5)


def test_the_predecessor_has_pytorchs_own_convolutions() -> None:
    setting = pipeline.Setting("attention_unet", Path(), Path(), CPU, 1, 4, 0)
    ours, plain = pipeline.build(setting), predecessor.plain(pipeline.build(setting))
    assert any(isinstance(module, QuickConv2d) for module in ours.modules())
    assert not any(isinstance(module, QuickConv2d) for module in plain.modules())
    plain.load_state_dict(ours.state_dict())
    images = torch.randn(1, 4, 32, 32)
    torch.testing.assert_close(plain(images), ours(images))


def test_the_cases_of_a_transformer() -> None:
    setting = pipeline.Setting("vit", Path(), Path(), CPU, 4, 8, 128)
    assert [pipeline.build(replace(setting, patch_dropout=share)).kept for share in (0.0, 0.5)] == [64, 32]
    for name, extra in (("vit", 4), ("alexnet", 0)):
        found = training.cases(replace(setting, model=name), "bf16")
        assert sum("half" in case.name for case in found) == extra
        muon = [case.make.args[0].optimizer for case in found if "Muon" in case.name]
        assert muon == ["muon"] * (extra // 2)
        assert {case.limit for case in found} - {None} == {case.name for case in found if case.name[:5] == "limit"}


def test_a_gpu_has_compiled_cases_that_run_compiled(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = pipeline.Setting("custom_cnn", images, images.parent, CPU, 4, 8, 100)
    found = training.cases(replace(setting, device=torch.device("cuda")), "bf16")
    modes = {case.name: case.make.args[0].compiled for case in found if case.make.args[0].compiled}
    assert modes == {
        "ours, compiled, bf16": "default", "limit, compiled, bf16": "default",
        "ours, CUDA graphs, bf16": "reduce-overhead", "limit, CUDA graphs, bf16": "reduce-overhead",
    }  # fmt: skip
    assert not any(case.make.args[0].compiled for case in training.cases(setting, "bf16"))

    calls = []
    monkeypatch.setattr(torch, "compile", lambda network, mode: lambda x: calls.append(mode) or network(x))
    loop = pipeline.ours(replace(setting, compiled="default"))
    loop.train(timing.Stint(loop.batches, 0.0, 3))
    assert calls == ["default"] * 3


@pytest.mark.parametrize("wrong", [{"name": "mine"}, {"model": "classic_unet"}, {"init": "AttentionUNet"}])
def test_references_refuse_options_of_our_own_trainings(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"--{next(iter(wrong))} is not an option of these methods"):
        segmentation_references.main(segmentation_references.Options(**wrong))


def counting(sleep: float) -> timing.Loop:
    """A loop that only waits."""
    import time

    def train(stint: timing.Stint) -> None:
        for _ in stint:
            time.sleep(sleep)

    return timing.Loop(nn.Linear(2, 1), repeat((torch.zeros(8, 2), torch.zeros(8))), train)


def test_cases_take_turns_in_processes_of_their_own() -> None:
    cases = [timing.Case("quick", partial(counting, 0.01)), timing.Case("slow", partial(counting, 0.2))]
    results = timing.side_by_side(cases, 2, 0.2)
    for result in results.values():
        assert len(result.turns) == 2 and result.parameters == 3
        assert all(turn.samples >= 16 and turn.seconds >= 0.2 and turn.waited < 0.5 for turn in result.turns)
        assert not result.memory < 0.05  # a process with PyTorch; NaN where the system does not say
    assert float(timing.compared(results, "quick", "slow", 2).split()[0]) > 2


@pytest.mark.usefixtures("quick")
def test_larger_than_memory_measures_both_stores_and_removes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = larger_than_memory.Options(0.05, tmp_path / "disk", n_filters=2, batch_size=2, seconds=0.0, device="cpu")
    larger_than_memory.main(options)
    found = {cells[0]: cells[1:] for cells in rows(capsys.readouterr().out)}
    assert {"training, 0.1 GB", "reading alone, 0.1 GB", "training, 0.05 GB", "reading alone, 0.05 GB"} <= set(found)
    assert all(float(cells[0]) > 0 for name, cells in found.items() if "GB" in name)
    assert list((tmp_path / "disk").iterdir()) == []


@pytest.mark.parametrize("name", ["custom_cnn", "vit"])
def test_both_ways_are_watched_until_the_end(name: training.Name, images: Path, tmp_path: Path) -> None:
    options = time_to_score.Options((name,), tmp_path, images, epochs=2, device="cpu")
    recipe = time_to_score.recipe(name, options, tmp_path / "scratch")
    setting = pipeline.Setting(name, recipe.data, recipe.cache, CPU, recipe.batch_size, 8, 128)
    *_, train, watched = time_to_score.prepared((setting, recipe))
    assert len(train) + len(watched) == 32 and len(watched) > 0
    for way in (time_to_score.predecessor, time_to_score.ours):
        first, last = way((setting, recipe))
        assert 0 <= first.seconds <= last.seconds and 0 <= last.score <= 1
        assert last.score * len(watched) == pytest.approx(round(last.score * len(watched)))


def test_who_reaches_the_score_first() -> None:
    before = [time_to_score.Epoch(10.0, 0.5), time_to_score.Epoch(20.0, 0.7), time_to_score.Epoch(30.0, 0.6)]
    now = [time_to_score.Epoch(2.0, 0.6), time_to_score.Epoch(4.0, 0.75), time_to_score.Epoch(6.0, 0.8)]
    assert time_to_score.report("custom_cnn", before, now).endswith(
        "accuracy 0.700 took the predecessor 20 s, ours 4 s: 5.0 times sooner."
    )
    assert time_to_score.report("custom_cnn", now, before).endswith("took the predecessor 6 s; ours did not reach it.")
    nothing = [epoch._replace(score=0.0) for epoch in before]
    assert time_to_score.report("classic_unet", nothing, now).endswith("The predecessor has found nothing yet.")
