"""Whether gates look at the tumour: ratios against counting pixels, and the script from cases to table and figure."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from benchmarks import attention_on_tumours as looking
from utils import explain

MEASURES = ("enrichment", "truth", "tumour", "rest", "std", "closed", "open", "score", "score_std")


def scene(seed: int, height: int = 32, width: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Four slices (4, 4, H, W) with a box of brain, and labels (4, H, W) with a box of tumour, partly outside of it."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.zeros(4, 4, height, width), torch.zeros(4, height, width, dtype=torch.uint8)
    images[:, 1:, 3:27, 5:41] = torch.randn(4, 3, 24, 36, generator=generator)
    for number in range(4):
        labels[number, 2 : 9 + number, 7 + number : 20] = 1 + number % 3
    return images, labels


def test_measures_are_those_of_counting_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [scene(0), scene(1)]
    scores = {id(images): [4 * torch.randn(4, 1, 32 // cell, 48 // cell, generator=generator) for cell in (16, 8, 4, 2)]
              for images, _ in batches}  # fmt: skip
    asked = iter(scores.values())
    monkeypatch.setattr(explain, "attention_scores", lambda model, images: next(asked))
    found = [looking.measures(*sums) for sums in looking.sums(torch.nn.Identity(), batches)]

    brain = np.concatenate([(images != 0).any(1).numpy() for images, _ in batches])
    tumour = np.concatenate([labels.numpy() > 0 for _, labels in batches]) & brain
    assert not tumour[:, :3].any() and tumour.any()
    for level, cell in enumerate((16, 8, 4, 2)):
        score = np.concatenate([one[level][:, 0].numpy() for one in scores.values()]).repeat(cell, 1).repeat(cell, 2)
        opened = 1 / (1 + np.exp(-score.astype(float)))
        share = tumour.reshape(8, 32 // cell, cell, 48 // cell, cell).mean((2, 4)).repeat(cell, 1).repeat(cell, 2)
        area = tumour.sum() / brain.sum()
        expected = (
            opened[tumour].sum() / opened[brain].sum() / area, share[tumour].sum() / share[brain].sum() / area,
            opened[tumour].mean(), opened[brain & ~tumour].mean(), opened[brain].std(), (opened[brain] < 0.05).mean(),
            (opened[brain] > 0.95).mean(), score[brain].mean(), score[brain].std(),
        )  # fmt: skip
        assert [found[level][name] for name in MEASURES] == pytest.approx(list(expected), rel=1e-4)


def test_a_gate_that_does_not_care_has_one_and_one_that_knows_has_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = scene(0)
    tumour = looking.brain_and_tumour(images, labels)[:, 1:]
    scores = [torch.full_like(tumour, 3), 60 * tumour - 30]
    monkeypatch.setattr(explain, "attention_scores", lambda model, images: scores)
    blank, knows = (looking.measures(*sums) for sums in looking.sums(torch.nn.Identity(), [(images, labels)]))
    assert blank["enrichment"] == pytest.approx(1) and blank["std"] == pytest.approx(0, abs=1e-3)
    assert knows["enrichment"] == pytest.approx(knows["truth"]) and knows["truth"] > 5


def test_from_cases_to_table_and_figure(cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = models.build("attention_unet", n_filters=2)
    seen = [f"Case_{number:03d}" for number in range(4)]
    header = {"preprocessing": {"window": [48, 48], "normalise": "zscore"}, "seen": seen}
    models.save(model, tmp_path / "weights.safetensors", **header)
    options = looking.Options(
        data=cases, cache=tmp_path, weights=(str(tmp_path / "weights.safetensors"),), table=tmp_path / "table.csv",
        figure=tmp_path / "gates.png",
    )  # fmt: skip
    looking.main(options)
    rows = list(csv.DictReader(options.table.open()))
    assert [(row["case"], row["gate"]) for row in rows] == [
        (case, f"1/{cell}") for case in ("Case_004", "Case_005") for cell in (16, 8, 4, 2)
    ]
    mean = np.mean([float(row["enrichment"]) for row in rows if row["gate"] == "1/2"])
    assert f"| 1/2 | 2 | {mean:.2f} (" in capsys.readouterr().out
    assert options.figure.read_bytes().startswith(b"\x89PNG")

    models.save(model, tmp_path / "all.safetensors", **header | {"seen": [*seen, "Case_004", "Case_005"]})
    with pytest.raises(ValueError, match=r"all\.safetensors has seen all patients"):
        looking.main(replace(options, weights=(str(tmp_path / "all.safetensors"),)))
