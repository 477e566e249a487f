"""Gathering folds: every patient once, missing folds named, differences paired."""

from pathlib import Path

import pytest

from benchmarks import cross_validation as cv


def write(folder: Path, name: str, dice: dict[str, float]) -> None:
    columns = [f"{measure}_{region}" for measure in ("dice", "hd95") for region in cv.REGIONS]
    rows = [",".join([case, case, *[str(value)] * len(columns)]) for case, value in dice.items()]
    (folder / f"{name}.csv").write_text("\n".join([",".join(["case", "patient", *columns]), *rows]) + "\n")


def test_folds_are_gathered_and_compared_in_pairs(tmp_path: Path) -> None:
    write(tmp_path, "a_fold0of2", {"p": 0.9, "q": 0.5})
    write(tmp_path, "a_fold1of2", {"r": 0.1})
    write(tmp_path, "b_fold0of2", {"p": 0.7, "q": 0.3})
    scores, missing = cv.read(tmp_path)
    assert missing == {"a": [], "b": [1]} and set(scores["a"]) == {"p", "q", "r"}
    text = cv.table(scores, missing)
    assert "| a | 3 | 0.50 (" in text and "| b | 2 (folds 1 missing) | 0.50 (" in text
    assert "| a - b | 2 | 0.20 (0.20 to 0.20) |" in cv.differences(scores)


def test_folds_of_different_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="copy the patients"):
        cv.read(tmp_path)
    write(tmp_path, "a_fold0of2", {"p": 0.9})
    write(tmp_path, "a_fold1of2", {"p": 0.9})
    with pytest.raises(ValueError, match="p stands in two folds of a"):
        cv.read(tmp_path)
