"""What a segmentation run leaves behind for people: tables as Markdown, CSV files and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from utils import metrics
from utils.evaluate import summary
from utils.journal import write_csv


def metric_table(counts: torch.Tensor, classes: Sequence[str]) -> str:
    """The seven metrics x classes and mean, from counts over all slices, as a Markdown table."""
    flat = metrics.row(counts, classes)
    names = [*classes, "mean"]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for metric in metrics.ratios(counts):
        lines.append(f"| {metric} | " + " | ".join(f"{flat[f'{metric}_{name}']:.4f}" for name in names) + " |")
    return "\n".join(lines)


def region_table(rows: Sequence[Mapping[str, Any]], regions: Sequence[str]) -> str:
    """Mean over patients and 95 % interval of Dice and HD95 of each region, as a Markdown table."""
    found = summary(rows)
    patients = len({row["patient"] for row in rows})
    lines = [f"| {patients} patients | Dice | HD95 (mm) |", "|---|---|---|"]
    for region in regions:
        dice, hd95 = found[f"dice_{region}"], found[f"hd95_{region}"]
        lines.append(
            f"| {region} | {dice[0]:.3f} ({dice[1]:.3f} to {dice[2]:.3f}) "
            f"| {hd95[0]:.1f} ({hd95[1]:.1f} to {hd95[2]:.1f}) |"
        )
    return "\n".join(lines)


def write(
    folder: Path, title: str, rows: Sequence[dict[str, Any]], counts: torch.Tensor, classes: Sequence[str],
    regions: Sequence[str],
) -> str:  # fmt: skip
    """Write metrics.csv and patients.csv (where cases were scored in 3-D); returns both as Markdown tables."""
    flat = metrics.row(counts, classes)
    names = [*classes, "mean"]
    table = [{"metric": m, **{name: flat[f"{m}_{name}"] for name in names}} for m in metrics.ratios(counts)]
    write_csv(folder / "metrics.csv", table)
    parts = [title, metric_table(counts, classes)]
    if rows:
        write_csv(folder / "patients.csv", rows)
        parts.append(region_table(rows, regions))
    return "\n\n".join(parts) + "\n"


def headline(
    rows: Sequence[Mapping[str, Any]], counts: torch.Tensor, classes: Sequence[str]
) -> dict[str, dict[str, float]]:
    """The numbers for the header of published weights: Dice of the classes over all slices, means over patients."""
    slices = {name: value for name, value in metrics.row(counts, classes).items() if name.startswith("dice_")}
    patients = {name: found[0] for name, found in summary(rows).items()} if rows else {}
    return {"slices": slices, "patients": patients}


def best_median_worst(rows: Sequence[Mapping[str, Any]], score: str = "dice_WT") -> dict[str, Mapping[str, Any]]:
    """The rows to look at: fewer than three where there are fewer."""
    ranked = sorted(rows, key=lambda row: row[score])
    chosen = {"best": ranked[-1], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[0]}
    return dict(list(chosen.items())[: len(ranked)])
