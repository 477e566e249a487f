"""Evaluation with networks whose output is known, and the tables made of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from datasets import slices
from datasets.batches import Batches
from datasets.brats import CLASSES, REGIONS
from datasets.store import Store
from training.segmentation import case_scans
from utils import evaluate, results
from utils.losses import BCE, DiceBCE, one_hot

CPU = torch.device("cpu")


class Oracle(nn.Module):
    """Sees the truth, drawn into the images, and says it; but finds nothing where `blind` slices are."""

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.blind = blind

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = 20 * one_hot(images[:, 0].round().to(torch.uint8), 3) - 10
        return torch.full_like(logits, -10) if self.blind else logits


@pytest.fixture(scope="module")
def store(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    opened = slices.open_slices(cases, tmp_path_factory.mktemp("cache"), (48, 64))
    images = np.load(opened.folder / "images.npy", mmap_mode="c")  # copy-on-write: the file stays as it is
    images[:, 0] = opened.targets
    return replace(opened, images=images)


def test_the_truth_scores_best_and_nothing_scores_worst(store: Store) -> None:
    scans = list(case_scans(store, np.arange(len(store)), CPU))
    rows, counts = evaluate.score(Oracle(), scans, CLASSES, REGIONS)
    assert [row["case"] for row in rows] == [f"Case_{number:03d}" for number in range(6)]
    for row in rows:
        assert all(row[f"dice_{region}"] == 1 and row[f"hd95_{region}"] == 0 for region in REGIONS)
    voxels = [store.index[name].sum() for name in ("ncr", "ed", "et")]
    assert counts[:, 0].tolist() == voxels and (counts[:, 1:3] == 0).all()
    rows, counts = evaluate.score(Oracle(blind=True), scans, CLASSES, REGIONS)
    assert all(row[f"dice_{region}"] == 0 and row[f"hd95_{region}"] == 373.13 for row in rows for region in REGIONS)
    assert counts[:, 2].tolist() == voxels


def test_slices_go_back_to_where_they_came_from(store: Store) -> None:
    odd = np.flatnonzero(store.index["slice"] % 2 == 1)
    scan = next(case_scans(store, odd, CPU))
    predicted, true = evaluate.segment(Oracle(), scan)
    np.testing.assert_array_equal(predicted, true)
    assert not true[..., ::2].any() and true[..., 1::2].any()
    first = odd[store.index["case"][odd] == scan.case][0]
    np.testing.assert_array_equal(true[..., store.index["slice"][first]], store.targets[first])


def test_small_pieces_are_removed_when_asked(store: Store) -> None:
    scans = list(case_scans(store, np.arange(len(store)), CPU))[:1]
    _, counts = evaluate.score(Oracle(), scans, CLASSES, REGIONS, min_volume=1e6)
    assert counts[:, 0].sum() == 0


def test_validation_does_not_depend_on_the_batch_size(store: Store) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(4, 3, 3, padding=1)
    rows = [evaluate.validate(model, Batches(store, np.arange(len(store)), size, CPU), BCE(), CLASSES)
            for size in (1, 5, len(store))]  # fmt: skip
    for row in rows[1:]:
        assert row == pytest.approx(rows[0], rel=1e-5, nan_ok=True)
    perfect = evaluate.validate(Oracle(), Batches(store, np.arange(len(store)), 7, CPU), DiceBCE(), CLASSES)
    assert perfect["dice_mean"] == perfect["iou_mean"] == 1 and perfect["val_loss"] < 0.05


def test_count_all_agrees_with_score(store: Store) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(4, 3, 3, padding=1)
    whole = evaluate.count_all(model, Batches(store, np.arange(len(store)), 9, CPU), 3)
    _, counts = evaluate.score(model, list(case_scans(store, np.arange(len(store)), CPU)), CLASSES, REGIONS)
    assert torch.equal(whole, counts)


def test_dice_loss_by_hand() -> None:
    logits = torch.full((2, 1, 2, 2), -20.0)
    logits[0, 0, 0] = 20.0  # two pixels found
    labels = torch.zeros(2, 2, 2, dtype=torch.uint8)
    labels[0, 0, 0] = labels[1, 0, 0] = 1  # two pixels true, one of them found
    soft_dice = (2 * 1) / (2 + 2)  # over the batch
    bce = (2 * 20) / 8  # two of eight pixels wrong by 20
    assert DiceBCE()(logits, labels).item() == pytest.approx(1 - soft_dice + bce, abs=1e-4)
    assert BCE()(logits, labels).item() == pytest.approx(bce, abs=1e-4)


def test_tables_and_choice_of_patients(tmp_path: Path) -> None:
    rows = [{"case": f"c{i}", "patient": f"c{i}", "dice_WT": dice, "hd95_WT": 10 * dice}
            for i, dice in enumerate((0.9, 0.1, 0.5, 0.7))]  # fmt: skip
    counts = torch.tensor([[6, 2, 2, 90], [0, 0, 0, 100], [1, 0, 3, 96]])
    text = results.write(tmp_path, "title", rows, counts, CLASSES, ["WT"])
    assert "| WT | 0.550 (" in text and "| 5.5 (" in text and "| 4 patients |" in text
    assert "| dice | 0.7500 | 1.0000 | 0.4000 | 0.7167 |" in text
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1] == "dice,0.75,1,0.4,0.716667"
    chosen = results.best_median_worst(rows)
    assert [chosen[kind]["case"] for kind in ("best", "median", "worst")] == ["c0", "c2", "c1"]
    assert {kind: row["case"] for kind, row in results.best_median_worst(rows[:2]).items()} == {
        "best": "c0", "worst": "c1"
    }  # fmt: skip
    assert list(results.best_median_worst(rows[:1])) == ["best"]
    found = results.headline(rows, counts, CLASSES)
    assert found["patients"]["dice_WT"] == pytest.approx(0.55) and found["slices"]["dice_ET"] == pytest.approx(0.4)


def test_two_visits_are_not_two_patients() -> None:
    visits = (("a1", 0.2), ("a2", 0.6), ("b1", 1.0))
    rows = [{"case": case, "patient": case[0], "dice_WT": dice} for case, dice in visits]
    mean, low, high = evaluate.summary(rows)["dice_WT"]
    assert mean == pytest.approx(0.7) and (low, high) == (pytest.approx(0.4), pytest.approx(1.0))
