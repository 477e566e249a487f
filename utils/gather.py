"""Gather the results of several runs into one table; the folds of a cross-validation count as one result.

    python utils/gather.py runs/attention_unet_16_fold* runs/classic_unet_16_fold*
    python utils/gather.py models/saved_metrics/brats_folds/*.csv

A run is given by its folder, or by the table that it made of its test cases (patients.csv of a segmentation,
predictions.csv of a classification) under the run's name. In a cross-validation every case is tested once, by the model
of the fold that did not see it. Folds that are not given are named in the table; runs that have left no results are
named at the end, and the exit code is then 1.
"""

import csv
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

if not __package__:  # started as a script, wherever
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from utils import classification, cli
from utils.classification_results import answers
from utils.files import read_csv
from utils.markdown import table
from utils.metrics import by_patient, mean_interval

REGIONS = ("WT", "TC", "ET")
TABLES = ("patients.csv", "predictions.csv")
OF_PATIENTS = {"patient", *(f"{measure}_{region}" for measure in ("dice", "hd95") for region in REGIONS)}  # columns
OF_IMAGES = {"group", "truth", "prediction"}


@dataclass
class Result:
    """What one method scored: a row a test case, and the folds that it lacks."""

    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    missing: set[int] = field(default_factory=set)
    folds: int = 1

    @property
    def note(self) -> str:
        """Names the missing folds; empty where none is."""
        return f" (fold {', '.join(map(str, sorted(self.missing)))} missing)" if self.missing else ""

    def column(self, name: str, cases: Iterable[str] | None = None) -> list[float]:
        """A value a patient, of all cases or of these; see `metrics.by_patient`."""
        rows = [self.rows[case] for case in (self.rows if cases is None else cases)]
        return by_patient([row["patient"] for row in rows], [float(row[name]) for row in rows])


def table_of(run: Path) -> Path | None:
    """The table of test cases that a run has left, if it is finished."""
    if run.is_dir():
        found = [run / name for name in TABLES if (run / name).is_file()]
        return found[0] if found and (run / "results.md").exists() else None
    return run if run.is_file() else None


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table, with a value in each column. Raises ValueError."""
    try:
        rows = read_csv(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no table: give folders of runs, or their CSV files") from error
    if not rows:
        raise ValueError(f"{path} has no rows: remove it, and evaluate the run again")
    if any(not value for row in rows for value in row.values()):
        raise ValueError(f"{path} lacks values: evaluate the run again")
    return rows


def read(runs: Sequence[Path]) -> tuple[dict[str, Result], list[Path]]:
    """The results by method, and the runs without any.

    Raises:
        ValueError: a case was tested twice or trained on, folds are not of one split, or a table is empty or of no kind
            known here.
    """
    results: dict[str, Result] = {}
    without = []
    for run in runs:
        if (path := table_of(run)) is None:
            without.append(run)
            continue
        name = run.name.removesuffix(".csv")
        found = re.fullmatch(r"(.+)_fold(\d+)of(\d+)", name)
        method, fold, folds = (found[1], int(found[2]), int(found[3])) if found else (name, 0, 1)
        result = results.setdefault(method, Result(missing=set(range(folds)), folds=folds))
        if not found and not result.missing:
            raise ValueError(f"{run} is the second run that is called {name}: rename one")
        if fold not in result.missing or folds != result.folds:
            raise ValueError(f"{run} is no new fold beside the others of {method}: give each run once, of one split")
        result.missing.remove(fold)
        rows = _rows(path)
        for row in rows:
            case = row.get("case") or row.get("file")
            if row.get("trained_on") == "True":
                raise ValueError(f"{path}: the weights were trained on {case}, remove its row: it was no test")
            if case is None or not any(columns <= set(row) for columns in (OF_PATIENTS, OF_IMAGES)):
                raise ValueError(f"{path} is neither a patients.csv nor a predictions.csv with the truth: give runs")
            if case in result.rows:
                raise ValueError(f"{case} stands in two folds of {method}, {path} is one: these are not one split")
            result.rows[case] = row
    return results, without


def interval(values: Sequence[float] | np.ndarray, digits: int) -> str:
    """The mean with its 95 % interval (bootstrap), as text."""
    mean, low, high = mean_interval(values)
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def of_patients(results: dict[str, Result]) -> str:
    """Mean and interval of Dice and HD95 over the patients of each method, then the paired differences in Dice."""
    lines = [["method", "patients", *(f"{r} Dice" for r in REGIONS), *(f"{r} HD95 (mm)" for r in REGIONS)]]
    for method, result in results.items():
        cells = [
            interval(result.column(f"{measure}_{region}"), digits)
            for measure, digits in (("dice", 2), ("hd95", 0)) for region in REGIONS
        ]  # fmt: skip
        lines.append([method, f"{len(result.column('dice_WT'))}{result.note}", *cells])
    pairs = [["difference", "patients", *(f"{region} Dice" for region in REGIONS)]]
    for one, other in combinations(results, 2):
        if both := sorted(set(results[one].rows) & set(results[other].rows)):
            mine, theirs = (np.array([results[method].column(f"dice_{region}", both) for region in REGIONS])
                            for method in (one, other))  # fmt: skip
            apart = mine - theirs
            pairs.append([f"{one} - {other}", str(apart.shape[1]), *(interval(values, 2) for values in apart)])
    return "\n\n".join(map(table, [lines, pairs] if len(pairs) > 1 else [lines]))


def of_images(results: dict[str, Result]) -> str:
    """Accuracy with its interval over groups, F1, recall of each class, AUROC and calibration error of each method.

    AUROC and calibration error are of the probabilities in the tables, which the temperature has divided; "together" is
    the accuracy where each image gets the mean probabilities of its group.

    Raises:
        ValueError: the methods tell different classes apart.
    """
    found = {method: answers(list(result.rows.values())) for method, result in results.items()}
    classes = next(iter(found.values())).classes
    for method, other in found.items():
        if other.classes != classes:
            raise ValueError(f"{method} has the classes {', '.join(other.classes)}, others have {', '.join(classes)}")
    recalls = [f"recall {name}" for name in classes]
    lines = [["method", "images", "accuracy", "F1", *recalls, "AUROC", "ECE", "together"]]
    for method, (logits, labels, groups, _) in found.items():
        accuracy, low, high = classification.accuracy_interval(logits.argmax(axis=1) == labels, groups)
        scores = classification.scores(logits, labels, classes)
        names = ["f1_mean", *(f"recall_{name}" for name in classes), "auroc", "ece"]
        pooled = classification.together(classification.softmax(logits), groups).argmax(axis=1)
        cells = [f"{value:.3f}" for value in (*(scores[name] for name in names), (pooled == labels).mean())]
        images = f"{len(labels)}{results[method].note}"
        lines.append([method, images, f"{accuracy:.4f} ({low:.3f} to {high:.3f})", *cells])
    return table(lines)


def known(row: dict[str, str]) -> tuple[str | None, str | None]:
    """What is known of an image without a network."""
    return row.get("truth"), row.get("group")


def differences_of_images(results: dict[str, Result]) -> str:
    """Accuracy of one method less that of another on the images that both have, with its interval over groups.

    Only methods of as many folds are compared: the official split has patients on both sides. Files are the same image
    where truth and group agree. Empty where nothing can be compared.
    """
    lines = [["difference", "images", "accuracy"]]
    for one, other in combinations(results, 2):
        mine, theirs = results[one], results[other]
        same = [name for name, row in mine.rows.items() if known(row) == known(theirs.rows.get(name, {}))]
        if same and mine.folds == theirs.folds:
            right = [
                np.array([rows[name]["prediction"] == rows[name]["truth"] for name in same], float)
                for rows in (mine.rows, theirs.rows)
            ]
            groups = np.array([mine.rows[name]["group"] for name in same])
            apart, low, high = classification.accuracy_interval(right[0] - right[1], groups)
            lines.append([f"{one} - {other}", str(len(same)), f"{apart:.4f} ({low:.3f} to {high:.3f})"])
    return table(lines) if len(lines) > 1 else ""


def main(runs: tuple[Path, ...], /) -> None:
    """Gather the results of runs (folders, or their tables) into one table."""
    if not runs:
        raise ValueError("no runs to gather: give their folders")
    results, without = read(runs)
    images = {name: result for name, result in results.items() if "truth" in next(iter(result.rows.values()))}
    patients = {name: result for name, result in results.items() if name not in images}
    if patients:
        print(of_patients(patients), end="\n\n")
    if images:
        print(*filter(None, (of_images(images), differences_of_images(images))), sep="\n\n", end="\n\n")
    for run in without:
        leaky = " a patient (a leaky split has none, see results.md)" if (run / "results.md").exists() else ""
        print(f"missing: {run} has no results{leaky}")
    if without:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, __doc__)
