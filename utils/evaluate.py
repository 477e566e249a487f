"""Honest evaluation of segmentation: integer counts over slices, and Dice and HD95 per patient in 3-D."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from utils import metrics
from utils.device import autocast, channels_last
from utils.distributed import gathered, rank, size, total
from utils.postprocess import believed

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Scan:
    """One case to be scored: its slices as batches of images and label maps, in the order of `slices`."""

    case: str
    patient: str
    batches: Iterable[Batch]
    slices: np.ndarray  # (n,) position of each slice along Z
    spacing: tuple[float, float, float]  # mm


@torch.inference_mode()
def predict(model: nn.Module, images: torch.Tensor, precision: str = "fp32") -> torch.Tensor:
    """Images (B, C, H, W) to float32 logits, whatever the shape that the model gives them."""
    with autocast(images.device, precision):
        return model(channels_last(images)).float()


def validate(
    model: nn.Module, batches: Iterable[Batch], criterion: nn.Module, classes: Sequence[str], precision: str = "fp32"
) -> dict[str, float]:
    """The seven metrics of each class and their mean from counts over all slices, and the loss, as one flat row.

    Of several processes each is given its part of each batch, and gets the row of all of them.
    """
    model.eval()
    counts, losses, samples = [], [], []
    for images, labels in batches:
        logits = predict(model, images, precision)
        counts.append(metrics.count(metrics.to_labels(logits), labels, len(classes)))
        loss = criterion(logits, labels)  # its mean over the processes is that of the whole batch
        samples.append(total(torch.full_like(loss, len(images))))
        losses.append(loss * samples[-1] / size())
    loss = total(torch.stack(losses).sum()) / torch.stack(samples).sum()
    return {"val_loss": float(loss)} | metrics.row(total(torch.stack(counts).sum(dim=0)), classes)


def count_all(model: nn.Module, batches: Iterable[Batch], classes: int, precision: str = "fp32") -> torch.Tensor:
    """The counts (classes, 4) over all slices."""
    model.eval()
    found = [
        metrics.count(metrics.to_labels(predict(model, images, precision)), labels, classes)
        for images, labels in batches
    ]
    return total(torch.stack(found).sum(dim=0).cpu())


def segment(
    model: nn.Module, scan: Scan, precision: str = "fp32", min_volume: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true label volumes (H, W, Z) of one scan; slices that it lacks are background.

    Args:
        min_volume: what is believed of a tumour (mm^3), see `utils.postprocess`; 0 is all.
    """
    model.eval()
    found = [
        (metrics.to_labels(predict(model, images, precision)).cpu(), labels.cpu()) for images, labels in scan.batches
    ]
    depth = int(scan.slices.max()) + 1

    def stack(parts: list[torch.Tensor]) -> np.ndarray:
        flat = torch.cat(parts).numpy()  # (n, H, W)
        volume = np.zeros((*flat.shape[1:], depth), np.uint8)
        volume[..., scan.slices] = np.moveaxis(flat, 0, -1)
        return volume

    predicted, true = stack([predicted for predicted, _ in found]), stack([true for _, true in found])
    return believed(predicted, scan.spacing, min_volume), true


def score(
    model: nn.Module,
    scans: Sequence[Scan],
    classes: Sequence[str],
    regions: Mapping[str, Sequence[int]],
    precision: str = "fp32",
    min_volume: float = 0.0,
) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """Score each scan in 3-D.

    Args:
        regions: name -> label codes, such as WT: (1, 2, 3).
        min_volume: what is believed of a tumour (mm^3), see `utils.postprocess`; 0 is all.

    Returns:
        A row a scan (case, patient, Dice and HD95 in mm of each region), and the counts (classes, 4) over all scans.
        Several processes share the scans, whole ones each, and all get all rows.
    """
    rows: list[dict[str, Any]] = []
    counts = torch.zeros(len(classes), 4, dtype=torch.int64)
    for scan in tqdm(scans[rank() :: size()], desc="evaluating", unit="case", dynamic_ncols=True, disable=rank() > 0):
        predicted, true = segment(model, scan, precision, min_volume)
        shown, truth = (torch.from_numpy(volume[..., scan.slices]) for volume in (predicted, true))
        counts += metrics.count(shown, truth, len(classes))  # over the slices that show brain
        scores = metrics.region_scores(predicted, true, scan.spacing, regions)
        rows.append({"case": scan.case, "patient": scan.patient, **scores})
    return gathered(rows), total(counts)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """Mean over patients of each score, with the ends of its 95 % interval (bootstrap over patients).

    See `metrics.by_patient` for several cases of one patient.
    """
    patients = [row["patient"] for row in rows]
    return {
        name: metrics.mean_interval(metrics.by_patient(patients, [row[name] for row in rows]))
        for name in rows[0] if name not in ("case", "patient")
    }  # fmt: skip
