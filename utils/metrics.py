"""What a segmentation is worth: integer counts over pixels, and the BraTS measures of one patient.

Counts first, ratios last. `count` adds up over batches, so that no number depends on the batch size; `ratios`
is taken once, over the whole set. `region_scores` is the field's own measure: 3-D, one patient, overlapping
regions, millimetres; `mean_interval` sums it up over patients.

A label map holds one code a pixel: 0 background, 1 NCR, 2 ED, 3 ET.

Definitions: Taha and Hanbury 2015, 10.1186/s12880-015-0068-x. Regions, and the rule for empty ones: the BraTS
challenge, Menze 2015, 10.1109/TMI.2014.2377694, and Bakas 2018, arXiv 1811.02629.
"""

import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

WORST_HD95 = 373.13  # mm, for a region that only one side has: the diagonal of 240 x 240 x 155 voxels of 1 mm


def to_labels(logits: Tensor) -> Tensor:
    """Label map of a batch: the class with the largest logit if that is > 0, else background.

    Args:
        logits: (B, C, H, W), or any number of spatial axes; channel c is the class with code c + 1.

    Returns:
        (B, H, W) uint8, on the same device. Of equal logits the first channel wins; a NaN gives background.
    """
    largest, channel = logits.max(dim=1)
    return (channel.to(torch.uint8) + 1) * (largest > 0)


def count(predicted: Tensor, true: Tensor, classes: int = 3) -> Tensor:
    """Pixels of each class that are right and wrong: add the results of all batches, then take `ratios`.

    Args:
        predicted: label map of any shape, integer codes.
        true: the same shape, on the same device.
        classes: how many; their codes are 1 ... classes.

    Returns:
        (classes, 4) int64: true positives, false positives, false negatives, true negatives. It stays on the
        device until someone reads it: nothing here waits for a GPU.

    Raises:
        ValueError: the shapes differ.
    """
    if predicted.shape != true.shape:
        raise ValueError(f"predicted is {tuple(predicted.shape)}, true is {tuple(true.shape)}")
    rows = []
    for code in range(1, classes + 1):
        p, t = predicted == code, true == code
        tp = (p & t).count_nonzero()
        fp, fn = p.count_nonzero() - tp, t.count_nonzero() - tp
        rows.append(torch.stack([tp, fp, fn, p.numel() - tp - fp - fn]))
    return torch.stack(rows)


def ratios(counts: Tensor) -> dict[str, Tensor]:
    """Dice, IoU, accuracy, false positive rate, false negative rate, precision and recall of each class.

    A class that is neither there nor predicted has Dice and IoU 1, as in BraTS; any other 0 / 0 is NaN: there
    was nothing to measure.

    Args:
        counts: (classes, 4) from `count`.

    Returns:
        name -> (classes,) float64 on the CPU; the names are dice, iou, accuracy, fpr, fnr, precision, recall.
    """
    tp, fp, fn, tn = counts.cpu().double().unbind(dim=-1)
    empty = tp + fp + fn == 0
    return {
        "dice": (2 * tp / (2 * tp + fp + fn)).masked_fill(empty, 1),
        "iou": (tp / (tp + fp + fn)).masked_fill(empty, 1),
        "accuracy": (tp + tn) / (tp + fp + fn + tn),
        "fpr": fp / (fp + tn),
        "fnr": fn / (fn + tp),
        "precision": tp / (tp + fp),
        "recall": tp / (tp + fn),
    }


def row(counts: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """The `ratios` under flat names, for a row of a CSV: dice_NCR, dice_ED, dice_ET, dice_mean, iou_NCR, ...

    A mean is the plain mean over the classes, NaN left out (NaN where nothing is left).

    Args:
        counts: (classes, 4) from `count`.
        classes: their names, in the order of their codes.

    Raises:
        ValueError: not as many names as classes.
    """
    flat: dict[str, float] = {}
    for name, values in ratios(counts).items():
        flat |= {f"{name}_{of}": value for of, value in zip(classes, values.tolist(), strict=True)}
        flat[f"{name}_mean"] = values.nanmean().item()
    return flat


def region_scores(
    predicted: np.ndarray | Tensor,
    true: np.ndarray | Tensor,
    spacing: Sequence[float],
    regions: Mapping[str, Sequence[int]],
) -> dict[str, float]:
    """Dice and 95 % Hausdorff distance of one patient, as BraTS measures them.

    BraTS's rule for empty regions comes first: empty in both volumes is right (Dice 1, HD95 0), empty in one
    only is wrong (Dice 0, HD95 373.13 mm). The distance is between centres of surface voxels, the larger of
    the two directions' 95th percentiles; a region that reaches the border of the volume has a surface there.

    Args:
        predicted: (X, Y, Z) label volume, codes 0 ... 3.
        true: the same shape.
        spacing: size of a voxel along X, Y, Z in mm.
        regions: name -> codes of the classes that it unites, such as {"TC": (1, 3)}.

    Returns:
        dice_<region> (0 to 1) and hd95_<region> (mm) for each region.

    Raises:
        ValueError: the shapes differ or do not match the spacing, or a label is above 3 (raw BraTS: ET is 4).
    """
    from scipy.ndimage import find_objects

    predicted, true = (np.asarray(v.cpu() if isinstance(v, Tensor) else v) for v in (predicted, true))
    if not predicted.shape == true.shape or not len(spacing) == true.ndim:
        raise ValueError(f"predicted is {predicted.shape}, true is {true.shape}, spacing is {tuple(spacing)}")
    if max(predicted.max(initial=0), true.max(initial=0)) > 3:
        raise ValueError("labels are 0, 1, 2, 3 (ET is 3); found a larger one: are these raw BraTS labels?")
    box = find_objects((predicted > 0) | (true > 0), max_label=1)[0] or ...  # outside: background in both
    predicted, true = predicted[box], true[box]

    scores = {}
    for name, codes in regions.items():
        p, t = np.isin(predicted, codes), np.isin(true, codes)
        scores[f"dice_{name}"], scores[f"hd95_{name}"] = _dice_and_hd95(p, t, spacing)
    return scores


def _dice_and_hd95(p: np.ndarray, t: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """Of two boolean volumes; the distance is in the unit of the spacing."""
    if not p.any() and not t.any():
        return 1.0, 0.0
    if not p.any() or not t.any():
        return 0.0, WORST_HD95

    from monai.metrics import compute_hausdorff_distance

    dice = 2 * np.count_nonzero(p & t) / (np.count_nonzero(p) + np.count_nonzero(t))
    pair = p[None, None], t[None, None]  # (1, 1, X, Y, Z)
    mm = [float(size) for size in spacing]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="monai")  # it warns of its own calls
        hd95 = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=mm)
    return float(dice), hd95.item()


def by_patient(patients: Sequence[str], values: Sequence[float]) -> list[float]:
    """One number a patient, in order of appearance: the mean over their cases, as two visits are not two patients.

    Args:
        patients: (cases,) whose case it is.
        values: (cases,) a number each.

    Raises:
        ValueError: not as many values as patients.
    """
    of: dict[str, list[float]] = {}
    for patient, value in zip(patients, values, strict=True):
        of.setdefault(patient, []).append(value)
    return [fmean(cases) for cases in of.values()]


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Mean over patients with its 95 % percentile bootstrap interval (10,000 resamples, always the same; Efron 1979).

    Compare two models on the same patients by the interval of their paired differences: where it excludes 0,
    they differ.

    Args:
        values: (patients,) one number a patient.

    Returns:
        mean, low, high. One patient tells nothing about the spread: low and high are then NaN.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    from scipy.stats import bootstrap

    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"expected a list of finite numbers, at least one, got {values}")
    mean = values.mean()
    if values.size == 1:
        return float(mean), float("nan"), float("nan")
    interval = bootstrap(
        [values],
        np.mean,
        n_resamples=10_000,
        batch=1000,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(mean), float(interval.low), float(interval.high)
