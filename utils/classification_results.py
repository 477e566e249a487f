"""What a classification run leaves behind for people: tables as Markdown and CSV files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils import classification
from utils.journal import write_csv


def write(
    folder: Path, title: str, logits: np.ndarray, labels: np.ndarray, names: Sequence[str], groups: np.ndarray,
    classes: Sequence[str], temperature: float,
) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """Write metrics.csv and predictions.csv; returns the tables as Markdown, and the scores.

    Args:
        logits: (N, C); labels: (N,); names, groups: the file and the group of each image.
        temperature: for the probabilities in predictions.csv.
    """
    scores = classification.scores(logits, labels, classes, temperature)
    predicted = logits.argmax(axis=1)
    accuracy, low, high = classification.accuracy_interval(predicted == labels, groups)
    scores |= {"images": len(labels), "accuracy_low": low, "accuracy_high": high, "temperature": temperature}
    write_csv(folder / "metrics.csv", [scores])
    probabilities = classification.softmax(logits, temperature)
    rows = [
        {"file": name, "group": group, "truth": classes[label], "prediction": classes[guess]}
        | dict(zip(classes, row, strict=True))
        for name, group, label, guess, row in zip(names, groups, labels, predicted, probabilities.tolist(), strict=True)
    ]
    write_csv(folder / "predictions.csv", rows)
    lines = ["| | " + " | ".join([*classes, "mean"]) + " |", "|---" * (len(classes) + 2) + "|"]
    for metric in ("precision", "recall", "f1"):
        cells = [f"{scores[f'{metric}_{of}']:.4f}" for of in (*classes, "mean")]
        lines.append(f"| {metric} | " + " | ".join(cells) + " |")
    table = classification.confusion(labels, predicted, len(classes))
    confused = ["| true class, called | " + " | ".join(classes) + " |", "|---" * (len(classes) + 1) + "|"]
    confused += [f"| {name} | " + " | ".join(map(str, row)) + " |" for name, row in zip(classes, table, strict=True)]
    headline = (
        f"accuracy {accuracy:.4f} (95 % interval {low:.4f} to {high:.4f}) on {len(labels)} images; "
        f"macro AUROC {scores['auroc']:.4f}, confidence {scores['confidence']:.3f}, margin {scores['margin']:.2f}, "
        f"calibration error {scores['ece']:.3f}, at temperature {temperature:.2f} {scores['ece_scaled']:.3f}"
    )
    return "\n\n".join([title, headline, "\n".join(lines), "\n".join(confused)]) + "\n", scores


def most_confident_mistakes(
    logits: np.ndarray, labels: np.ndarray, temperature: float
) -> list[tuple[int, int, float]]:
    """Place, called class and confidence of each wrong prediction, the most confident first."""
    probabilities = classification.softmax(logits, temperature)
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    worst_first = wrong[np.argsort(-confidence[wrong])]
    return [(int(place), int(predicted[place]), float(confidence[place])) for place in worst_first]
