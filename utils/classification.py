"""What a classification is worth: accuracy and its interval, recall and the like per class, and calibration.

Everything is computed from the logits of all images at once, so that nothing depends on the batch size.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from utils.evaluate import predict

BINS = 15  # of the reliability diagram, as in Guo 2017


def logits_of(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str = "fp32", mirror: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The logits (N, C) float64 and the true classes (N,) of all images, in the order of the batches.

    Args:
        mirror: take the mean of the logits of an image and of its left-right mirror image.
    """
    model.eval()
    logits, labels = [], []
    for images, targets in batches:
        found = predict(model, images, precision)
        if mirror:
            found = (found + predict(model, images.flip(-1), precision)) / 2
        logits.append(found)
        labels.append(targets)
    return torch.cat(logits).double().cpu().numpy(), torch.cat(labels).cpu().numpy()


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities (N, C); a temperature above 1 makes them less sure, and changes no decision."""
    from scipy.special import softmax as of

    return of(logits / temperature, axis=1)


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How many images (classes, classes) of each true class (row) were called what (column)."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def per_class(table: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 (C,) of each class from a confusion table; NaN where there was nothing to measure."""
    right, true, called = np.diag(table).astype(float), table.sum(axis=1), table.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return {"precision": right / called, "recall": right / true, "f1": 2 * right / (true + called)}


def accuracy_interval(right: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """Accuracy with the ends of its 95 % interval.

    Bootstrap over groups (10,000 resamples), not over images: ten slices of one patient are not ten patients. The ends
    are NaN where there is one group only.

    Args:
        right: (N,) bool, or the difference of two such; groups: (N,) to which group an image belongs.
    """
    _, which = np.unique(groups, return_inverse=True)
    if which.max() == 0:
        return float(right.mean()), float("nan"), float("nan")
    hits, sizes = np.bincount(which, right.astype(float)), np.bincount(which)
    rng = np.random.default_rng(0)
    found = np.empty(10_000)
    for first in range(0, len(found), 1000):
        drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=1000)  # (1000, groups)
        found[first : first + 1000] = (drawn @ hits) / (drawn @ sizes)
    low, high = np.quantile(found, (0.025, 0.975))
    return float(right.mean()), float(low), float(high)


def together(probabilities: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Each image's probabilities (N, C) replaced by the mean over its group (N,), such as the slices of a patient."""
    _, which = np.unique(groups, return_inverse=True)
    sums = np.zeros((which.max() + 1, probabilities.shape[1]))
    np.add.at(sums, which, probabilities)
    return (sums / np.bincount(which)[:, None])[which]


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, accuracy and number of images in each of 15 equal bins of confidence (Guo 2017).

    Args:
        probabilities: (N, C); labels: (N,).

    Returns:
        three arrays (15,); mean confidence and accuracy of an empty bin are NaN.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return (np.bincount(bins, confidence, BINS) / counts, np.bincount(bins, right, BINS) / counts, counts)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy over the bins, weighted by images.

    Naeini 2015; Guo 2017, arXiv 1706.04599.
    """
    confidence, accuracy, counts = reliability(probabilities, labels)
    return float(np.nansum(np.abs(confidence - accuracy) * counts) / counts.sum())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the smallest cross-entropy on these images, which must not be test images.

    Guo 2017, arXiv 1706.04599. Logits (N, C), labels (N,). Between 0.05 and 20; 1 where all answers are right, since
    cross-entropy then asks for ever more confidence.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    if (logits.argmax(axis=1) == labels).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(scaled[np.arange(len(labels)), labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log((0.05, 20.0)), method="bounded").x))


def scores(
    logits: np.ndarray, labels: np.ndarray, classes: Sequence[str], temperature: float = 1.0
) -> dict[str, float]:
    """One flat row: accuracy, precision, recall and F1 of each class and their means, macro AUROC, confidence, margin,
    calibration error (before and after the temperature).

    Args:
        logits: (N, C); labels: (N,); classes: C names.
    """
    from sklearn.metrics import roc_auc_score

    probabilities = softmax(logits)
    predicted = logits.argmax(axis=1)
    table = confusion(labels, predicted, len(classes))
    row = {"accuracy": float((predicted == labels).mean())}
    for metric, values in per_class(table).items():
        row |= {f"{metric}_{name}": float(value) for name, value in zip(classes, values, strict=True)}
        row[f"{metric}_mean"] = float(np.nanmean(values))
    there = np.unique(labels)
    one_versus_rest = [roc_auc_score(labels == label, probabilities[:, label]) for label in there if len(there) > 1]
    ranked = np.sort(logits, axis=1)
    return row | {
        "auroc": float(np.mean(one_versus_rest)) if one_versus_rest else float("nan"),
        "confidence": float(probabilities.max(axis=1).mean()),
        "margin": float((ranked[:, -1] - ranked[:, -2]).mean()),
        "ece": calibration_error(probabilities, labels),
        "ece_scaled": calibration_error(softmax(logits, temperature), labels),
    }
