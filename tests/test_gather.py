"""Gathering runs: every case once, what is missing named, differences paired, accuracy as scikit-learn has it."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score

from utils import gather

PROJECT = Path(__file__).parents[1]


def patients(path: Path, dice: dict[str, float]) -> Path:
    """A table of cases; a visit is a case such as "p-1", of the patient "p"."""
    columns = [f"{measure}_{region}" for measure in ("dice", "hd95") for region in gather.REGIONS]
    rows = [",".join([case, case.partition("-")[0], *[str(value)] * len(columns)]) for case, value in dice.items()]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([",".join(["case", "patient", *columns]), *rows]) + "\n")
    return path


def test_folds_are_gathered_and_compared_in_pairs(tmp_path: Path) -> None:
    runs = [
        patients(tmp_path / "a_fold0of2.csv", {"p": 0.9, "q": 0.5}),
        patients(tmp_path / "a_fold1of2.csv", {"r": 0.1}),
        patients(tmp_path / "b_fold0of2.csv", {"p": 0.7, "q": 0.3}),
    ]
    results, without = gather.read(runs)
    assert without == [] and set(results["a"].rows) == {"p", "q", "r"}
    text = gather.of_patients(results)
    assert "| a | 3 | 0.50 (" in text and "| b | 2 (fold 1 missing) | 0.50 (" in text
    assert "| a - b | 2 | 0.20 (0.20 to 0.20) |" in text


def test_two_visits_are_not_two_patients(tmp_path: Path) -> None:
    visits = patients(tmp_path / "a.csv", {"p-1": 0.9, "p-2": 0.7, "q-1": 0.2})
    means = patients(tmp_path / "b.csv", {"p": 0.8, "q": 0.2})
    other = patients(tmp_path / "c.csv", {"p-2": 0.6, "p-1": 0.8, "q-1": 0.4, "r-1": 0.3})
    results, _ = gather.read([visits, means, other])
    assert results["a"].column("dice_WT") == pytest.approx(results["b"].column("dice_WT"))
    text = gather.of_patients(results).splitlines()
    assert text[2].replace("| a |", "| b |") == text[3] and text[3].startswith("| b | 2 | 0.50 (0.20 to 0.80) |")
    assert "| a - c | 2 | -0.05 (-0.20 to 0.10) |" in text[-1]


def test_folds_of_different_splits_are_refused(tmp_path: Path) -> None:
    first = patients(tmp_path / "a_fold0of2.csv", {"p": 0.9})
    with pytest.raises(ValueError, match="p stands in two folds of a"):
        gather.read([first, patients(tmp_path / "a_fold1of2.csv", {"p": 0.9})])
    with pytest.raises(ValueError, match="no new fold"):
        gather.read([first, first])
    whole = patients(tmp_path / "whole.csv", {"p": 0.9})
    with pytest.raises(ValueError, match=r"whole\.csv is the second run that is called whole"):
        gather.read([whole, whole])
    seen = patients(tmp_path / "scores.csv", {"p": 0.5, "q": 0.9})
    lines = zip(seen.read_text().splitlines(), ("trained_on", "False", "True"), strict=True)
    seen.write_text("".join(f"{line},{more}\n" for line, more in lines))
    with pytest.raises(ValueError, match=r"scores\.csv: the weights were trained on q"):
        gather.read([seen])
    other = tmp_path / "other.csv"
    other.write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match=r"other.csv is neither"):
        gather.read([other])


@pytest.mark.parametrize(("content", "says"), [
    (b"case,patient,dice_WT\np,p,0.5\n", "is neither a patients.csv nor"),
    (b"file,truth,prediction,a,b\n1.jpg,a,a,1,0\n", "is neither a patients.csv nor"),
    (b"file,group,truth,prediction,a,b\n1.jpg,g,a\n", "lacks values"),
    (b"file,group,truth,prediction,a,b\n1.jpg,g,a,a,,1\n", "lacks values"),
    (b"\x89PNG\xff\xfe", "is no table"), (b"case\n" + b"x" * 200_000, "is no table"),
    (b"case,patient\n", "has no rows"),
])  # fmt: skip
def test_what_is_no_whole_table_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"table\.csv {says}"):
        gather.read([tmp_path / "table.csv"])


def test_the_accuracy_of_images_is_that_of_all_folds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ["glioma", "none", "other"]
    truth, logits = rng.integers(3, size=60), rng.normal(size=(60, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    called = probabilities.argmax(axis=1)
    for fold in range(2):
        with (tmp_path / f"cnn_fold{fold}of2.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "group", "truth", "prediction", *names])
            for i in range(fold, 60, 2):
                writer.writerow([f"{i}.jpg", i // 4, names[truth[i]], names[called[i]], *probabilities[i]])
    results, _ = gather.read(sorted(tmp_path.glob("*.csv")))
    cells = [cell.strip() for cell in gather.of_images(results).splitlines()[-1].split("|")]
    assert cells[1:3] == ["cnn", "60"] and cells[3].startswith(f"{accuracy_score(truth, called):.4f} (")
    assert cells[4] == f"{f1_score(truth, called, average='macro'):.3f}"
    assert cells[5:8] == [f"{value:.3f}" for value in recall_score(truth, called, average=None)]
    four = probabilities.reshape(15, 4, 3).mean(axis=1).argmax(axis=1).repeat(4)
    assert cells[10] == f"{accuracy_score(truth, four):.3f}"


def test_methods_are_compared_on_the_images_that_both_have(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(25), 8)
    right = rng.random((2, 200)) < np.array([[0.9], [0.7]])
    for row, (method, first) in enumerate({"a": 0, "b": 40}.items()):  # b lacks five groups
        with (tmp_path / f"{method}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "group", "truth", "prediction", "x", "y"])
            for i in range(first, 200):
                said = "x" if right[row, i] else "y"
                writer.writerow([i, groups[i], "x", said, float(said == "x"), float(said == "y")])
    results, _ = gather.read(sorted(tmp_path.glob("*.csv")))
    cells = [cell.strip() for cell in gather.differences_of_images(results).splitlines()[-1].split("|")]
    apart = (right[0].astype(int) - right[1])[40:].reshape(20, 8)  # all groups of one size
    drawn = [apart[rng.integers(20, size=20)].mean() for _ in range(20_000)]
    low, high = map(float, re.findall(r"-?\d\.\d+", cells[3])[1:])
    assert cells[1:3] == ["a - b", "160"] and float(cells[3].split()[0]) == pytest.approx(apart.mean(), abs=1e-4)
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=0.01)
    assert gather.differences_of_images({"a": results["a"]}) == ""
    (tmp_path / "b.csv").rename(tmp_path / "b_fold0of2.csv")  # another split: not to be compared
    assert gather.differences_of_images(gather.read(sorted(tmp_path.glob("*.csv")))[0]) == ""
    people = (tmp_path / "a.csv").read_text().splitlines()  # other people under the same file names
    (tmp_path / "c.csv").write_text("\n".join([people[0], *(line.replace(",x,", "1,x,", 1) for line in people[1:])]))
    assert gather.differences_of_images(gather.read([tmp_path / "a.csv", tmp_path / "c.csv"])[0]) == ""


def test_runs_without_results_are_named_and_the_exit_code_says_so(tmp_path: Path) -> None:
    done, stopped = tmp_path / "done", tmp_path / "stopped"
    patients(done / "patients.csv", {"p": 0.9, "q": 0.5})
    (done / "results.md").write_text("finished\n")
    patients(stopped / "patients.csv", {"p": 0.9})  # results.md comes last: this one was cut off
    (tmp_path / "leaky").mkdir()
    (tmp_path / "leaky" / "results.md").write_text("finished\n")
    runs = map(str, (done, stopped, tmp_path / "gone", tmp_path / "leaky"))
    command = [sys.executable, str(PROJECT / "utils" / "gather.py"), *runs]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 1 and "| done | 2 |" in shown.stdout and "| stopped |" not in shown.stdout
    assert f"missing: {tmp_path / 'leaky'} has no results a patient (a leaky split has none" in shown.stdout
    assert f"missing: {stopped} has" in shown.stdout and f"missing: {tmp_path / 'gone'} has" in shown.stdout


@pytest.mark.parametrize(
    ("marker", "tables"),
    [("table", "brats_folds/*.csv"), ("images", "*_predictions.csv"), ("folds", "image_folds/*.csv"),
     ("variants", "image_variants/*.csv")],
)
def test_the_tables_of_readme_are_those_of_the_committed_answers(marker: str, tables: str) -> None:
    readme = (PROJECT / "README.md").read_text()
    stated = readme.partition(f"<!-- {marker} -->")[2].partition(f"<!-- /{marker} -->")[0].strip().splitlines()
    results, _ = gather.read(sorted((PROJECT / "models" / "saved_metrics").glob(tables)))
    if marker == "table":
        found = gather.of_patients(results)
    else:
        found = gather.of_images(results).replace("_predictions |", " |")
        found += f"\n\n{gather.differences_of_images(results) if marker == 'folds' else ''}"
    assert len(stated) > 2 and not set(stated) - set(found.splitlines())
