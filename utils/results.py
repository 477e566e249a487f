"""What a segmentation run leaves behind for people: tables as Markdown, CSV files and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from utils import metrics
from utils.evaluate import summary
from utils.files import write_csv
from utils.markdown import table


def region_table(rows: Sequence[Mapping[str, Any]], regions: Sequence[str]) -> str:
    """Mean over patients and 95 % interval of Dice and HD95 of each region, as a Markdown table."""
    found = summary(rows)
    patients = len({row["patient"] for row in rows})
    lines = [[f"{patients} patients", "Dice", "HD95 (mm)"]]
    for region in regions:
        dice, hd95 = found[f"dice_{region}"], found[f"hd95_{region}"]
        lines.append([region, "{:.3f} ({:.3f} to {:.3f})".format(*dice), "{:.1f} ({:.1f} to {:.1f})".format(*hd95)])
    return table(lines)


def write(
    folder: Path, title: str, rows: Sequence[dict[str, Any]], counts: torch.Tensor, classes: Sequence[str],
    regions: Sequence[str],
) -> str:  # fmt: skip
    """Write metrics.csv (seven metrics x classes and mean, from counts over all slices) and patients.csv (where cases
    were scored in 3-D); returns both as Markdown tables."""
    flat = metrics.row(counts, classes)
    names = [*classes, "mean"]
    content = [{"metric": m, **{name: flat[f"{m}_{name}"] for name in names}} for m in metrics.ratios(counts)]
    write_csv(folder / "metrics.csv", content)
    lines = [[row["metric"], *(f"{row[name]:.4f}" for name in names)] for row in content]
    parts = [title, table([["", *names], *lines])]
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


def best_median_worst(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The rows to look at, by the Dice of the whole tumour: fewer than three where there are fewer."""
    ranked = sorted(rows, key=lambda row: row["dice_WT"])
    chosen = {"best": ranked[-1], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[0]}
    names = ("best", "median", "worst") if len(ranked) > 2 else ("best", "worst")[: len(ranked)]
    return {name: chosen[name] for name in names}
