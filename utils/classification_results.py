"""What a classification run leaves behind for people: tables as Markdown and CSV files; and how they are read again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils import classification
from utils.files import read_csv, write_csv
from utils.markdown import table


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
    per_class = [["", *classes, "mean"]]
    for metric in ("precision", "recall", "f1"):
        per_class.append([metric, *(f"{scores[f'{metric}_{of}']:.4f}" for of in (*classes, "mean"))])
    counts = classification.confusion(labels, predicted, len(classes))
    confused = [["true class, called", *classes]]
    confused += [[name, *row] for name, row in zip(classes, counts.tolist(), strict=True)]
    headline = (
        f"accuracy {accuracy:.4f} (95 % interval {low:.4f} to {high:.4f}) on {len(labels)} images; "
        f"macro AUROC {scores['auroc']:.4f}, confidence {scores['confidence']:.3f}, margin {scores['margin']:.2f}, "
        f"calibration error {scores['ece']:.3f}, at temperature {temperature:.2f} {scores['ece_scaled']:.3f}"
    )
    return "\n\n".join([title, headline, table(per_class), table(confused)]) + "\n", scores


class Answers(NamedTuple):
    """What a model said of N test images."""

    logits: np.ndarray  # (N, C), but for a constant an image
    labels: np.ndarray  # (N,) true classes
    groups: np.ndarray  # (N,) names
    classes: list[str]


def answers(rows: Sequence[Mapping[str, str]]) -> Answers:
    """The rows of a predictions.csv, at least one, as arrays; the logits are those that the temperature has divided."""
    classes = [name for name in rows[0] if name not in ("file", "group", "truth", "prediction")]
    labels = np.array([classes.index(row["truth"]) for row in rows])
    logits = np.log(np.array([[float(row[name]) for name in classes] for row in rows]).clip(1e-12))
    return Answers(logits, labels, np.array([row["group"] for row in rows]), classes)


def saved(folder: Path, model: str) -> tuple[dict[str, float], Answers] | None:
    """The scores of a published model and its answers, with the logits as trained; None where it has left none.

    Args:
        folder: holds <model>_metrics.csv and <model>_predictions.csv, as `write` made them.

    Returns:
        the scores also have confidence_scaled, the mean confidence at the temperature.

    Raises:
        ValueError: a table has no rows.
    """
    metrics, predictions = (folder / f"{model}_{table}.csv" for table in ("metrics", "predictions"))
    if not (metrics.is_file() and predictions.is_file()):
        return None
    rows, said = map(read_csv, (metrics, predictions))
    if not (rows and said):
        raise ValueError(f"{predictions if rows else metrics} has no rows: take the run's own table")
    scores, found = {name: float(value) for name, value in rows[0].items()}, answers(said)
    scores["confidence_scaled"] = float(classification.softmax(found.logits).max(axis=1).mean())
    return scores, found._replace(logits=found.logits * scores["temperature"])


def most_confident_mistakes(
    logits: np.ndarray, labels: np.ndarray, temperature: float
) -> list[tuple[int, int, float]]:
    """Place, called class and confidence of each wrong prediction, the most confident first."""
    probabilities = classification.softmax(logits, temperature)
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    worst_first = wrong[np.argsort(-confidence[wrong])]
    return [(int(place), int(predicted[place]), float(confidence[place])) for place in worst_first]
