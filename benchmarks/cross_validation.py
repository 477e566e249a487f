"""Gather the folds of a cross-validation into one table, with paired differences between the methods.

    for run in runs/*_fold?of?; do cp $run/patients.csv models/saved_metrics/brats_folds/${run##*/}.csv; done
    python benchmarks/cross_validation.py

Every patient is tested once, by the model of the fold that did not see them. Intervals are bootstrapped over patients.
Where a method lacks folds, the table says so, and it is compared on the patients that both methods have.
"""

import csv
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.options import ROOT
from utils import cli

REGIONS = ("WT", "TC", "ET")
Scores = dict[str, dict[str, float]]  # case -> column -> value


@dataclass(frozen=True)
class Options:
    folder: Path = ROOT / "models" / "saved_metrics" / "brats_folds"
    """Holds METHOD_foldIofK.csv files, each a run's patients.csv."""


def read(folder: Path) -> tuple[dict[str, Scores], dict[str, list[int]]]:
    """The scores of each method over all its folds, and the folds that each method lacks.

    Raises:
        ValueError: there is nothing to gather, or a patient was tested twice.
    """
    scores: dict[str, Scores] = defaultdict(dict)
    missing: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.csv")):
        if not (found := re.fullmatch(r"(.+)_fold(\d+)of(\d+)", path.stem)):
            continue
        method, fold, folds = found[1], int(found[2]), int(found[3])
        lacking = missing.setdefault(method, list(range(folds)))
        if fold not in lacking:
            raise ValueError(f"{path} is no fold of {folds} beside the others of {method}: they are not one split")
        lacking.remove(fold)
        for row in csv.DictReader(path.open()):
            if row["case"] in scores[method]:
                raise ValueError(f"{row['case']} stands in two folds of {method} in {folder}: these are not one split")
            scores[method][row["case"]] = {k: float(v) for k, v in row.items() if k not in ("case", "patient")}
    if not scores:
        raise ValueError(f"no METHOD_foldIofK.csv in {folder}: copy the patients.csv of finished runs there")
    return dict(scores), missing


def table(scores: dict[str, Scores], missing: dict[str, list[int]]) -> str:
    """A row a method: mean and interval of Dice and HD95 over its patients."""
    lines = ["| method | patients | " + " | ".join(f"{r} Dice" for r in REGIONS) + " | "
             + " | ".join(f"{r} HD95 (mm)" for r in REGIONS) + " |", "|---" * 8 + "|"]  # fmt: skip
    for method, rows in scores.items():
        lacks = f" (folds {', '.join(map(str, missing[method]))} missing)" if missing[method] else ""
        cells = [interval([row[f"dice_{region}"] for row in rows.values()], 2) for region in REGIONS]
        cells += [interval([row[f"hd95_{region}"] for row in rows.values()], 0) for region in REGIONS]
        lines.append(f"| {method} | {len(rows)}{lacks} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(scores: dict[str, Scores]) -> str:
    """A row a pair of methods: the mean paired difference in Dice on the patients that both have."""
    lines = ["| difference | patients | " + " | ".join(f"{region} Dice" for region in REGIONS) + " |", "|---" * 5 + "|"]
    for one, other in combinations(scores, 2):
        both = sorted(set(scores[one]) & set(scores[other]))
        if both:
            cells = [interval([scores[one][case][f"dice_{region}"] - scores[other][case][f"dice_{region}"]
                               for case in both], 2) for region in REGIONS]  # fmt: skip
            lines.append(f"| {one} - {other} | {len(both)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval(values: list[float], digits: int) -> str:
    from utils.metrics import mean_interval

    mean, low, high = mean_interval(values)
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main(options: Options) -> None:
    scores, missing = read(options.folder)
    print(table(scores, missing), differences(scores), sep="\n\n")


if __name__ == "__main__":
    import tyro

    with cli.exits():
        main(tyro.cli(Options, description=__doc__))
