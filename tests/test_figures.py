"""The README's figures: complete, small, and of the committed scores."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import models
from utils import figures


def committed(name: str) -> list[dict[str, str]]:
    """The rows of a U-Net's three folds."""
    return [row for fold in range(3) for row in csv.DictReader((figures.FOLDS / f"{name}_16_fold{fold}of3.csv").open())]


def test_the_files_are_complete_and_small(tmp_path: Path) -> None:
    figures.write(tmp_path / "images")
    files = {file.name: file for file in (tmp_path / "images").iterdir()}
    assert set(files) == {
        "phantom_modalities.png", "brats_dice.png", "unet_scores.png", "vit_training.png", "vgg16_training.png",
        "class_distribution.png", "phantom_walk.gif",
    }  # fmt: skip
    for name, file in files.items():
        assert file.stat().st_size < (1_500_000 if name.endswith(".gif") else 300_000), name
    with Image.open(files["phantom_walk.gif"]) as film:
        assert film.n_frames == len(figures.simulated().rows[:: figures.STEP]) > 20


def test_dice_is_that_of_every_patient() -> None:
    results = figures.unets()
    assert list(results) == ["ClassicUNet", "ImprovedUNet", "AttentionUNet"]
    for name, kind in (("classic_unet", "ClassicUNet"), ("attention_unet", "AttentionUNet")):
        expected = {row["case"]: float(row["dice_TC"]) for row in committed(name)}
        assert dict(zip(results[kind].rows, results[kind].column("dice_TC"), strict=True)) == expected
        assert len(expected) == 17
    drawn = [line.get_ydata().tolist() for line in figures.dice().axes[0].lines]
    assert results["ImprovedUNet"].column("dice_ET") in drawn


def test_scores_stand_over_the_parameters_of_the_models() -> None:
    (axes,) = figures.scores().axes
    for (point, *_), name in zip(axes.containers, ("classic_unet", "improved_unet", "attention_unet"), strict=True):
        net = models.build(name, n_filters=16)
        mean = np.mean([float(row[f"dice_{region}"]) for row in committed(name) for region in ("WT", "TC", "ET")])
        assert point.get_xdata()[0] == pytest.approx(sum(weight.numel() for weight in net.parameters()) / 1e6)
        assert point.get_ydata()[0] == pytest.approx(mean)
