"""Splits: disjoint, stable, stratified; and the leaky one really leaks."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import slices, splits

SIZES = {f"p{number:02d}": 1000 * number for number in range(30)}


@settings(deadline=None)  # a busy machine may stall
@given(st.dictionaries(st.text("abc", min_size=1, max_size=4), st.integers(0, 10**6), min_size=6, max_size=40),
       st.integers(2, 6), st.floats(0, 0.3), st.integers(0, 99))  # fmt: skip
def test_folds_partition_the_patients(sizes: dict[str, int], folds: int, val: float, seed: int) -> None:
    dealt = [splits.by_fold(sizes, fold, folds, val, seed) for fold in range(folds)]
    assert sorted(patient for split in dealt for patient in split.test) == sorted(sizes)
    for split in dealt:
        assert sorted(split.train + split.val + split.test) == sorted(sizes)
        assert (len(split.val) > 0) == (val > 0)


def test_shares_stability_and_strata() -> None:
    split = splits.by_patient(SIZES, val=0.2, test=0.2)
    assert (len(split.train), len(split.val), len(split.test)) == (18, 6, 6)
    assert split == splits.by_patient(dict(reversed(SIZES.items())), val=0.2, test=0.2)
    assert split != splits.by_patient(SIZES, val=0.2, test=0.2, seed=1)
    for first in range(0, 30, 5):  # one test patient in each stretch of five neighbours in size
        assert sum(f"p{number:02d}" in split.test for number in range(first, first + 5)) == 1


def test_patients_that_the_weights_know_are_not_tested() -> None:
    known = set(list(SIZES)[:20])
    split = splits.by_patient(SIZES, val=0.2, test=0.2, known=known)
    assert len(split.test) == 6 and not known & set(split.test) and known <= set(split.train)
    assert len(split.val) == 2, "of the 4 that are left, half is to learn from"
    assert len(splits.by_patient(SIZES, known=list(SIZES)[:28], val=0.2).val) == 6, "none is left but known ones"
    assert len(splits.by_patient(SIZES, known=list(SIZES)[:28]).test) == 2, "fewer where fewer are left"
    with pytest.raises(ValueError, match="seen all of these patients"):
        splits.by_patient(SIZES, known=SIZES)


def test_folds_are_stratified() -> None:
    for fold in range(3):
        tested = splits.by_fold(SIZES, fold, 3).test
        assert all(sum(f"p{n:02d}" in tested for n in range(first, first + 3)) == 1 for first in range(0, 30, 3))


def test_bad_requests() -> None:
    with pytest.raises(ValueError, match="2 patients cannot be dealt into 3 folds"):
        splits.by_fold({"a": 1, "b": 2}, 0, 3)
    with pytest.raises(ValueError, match="fold 3 of 3 does not exist"):
        splits.by_fold(SIZES, 3, 3)
    with pytest.raises(ValueError, match="more patients"):
        splits.by_patient({"a": 1})
    with pytest.raises(ValueError, match="b in both train and test"):
        splits.Split("patient", ["a", "b"], [], ["b"])


def test_saved_and_checked_when_loaded(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    split = splits.by_patient(SIZES)
    path.write_text(split.text)
    assert splits.Split.load(path) == split
    path.write_text(path.read_text().replace(split.test[0], split.train[0]))
    with pytest.raises(ValueError, match="in both train and test"):
        splits.Split.load(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"split\.json is not a split"):
        splits.Split.load(path)


def test_rows_by_patient_and_by_slice(cases: Path, tmp_path: Path) -> None:
    store = slices.open_slices(cases, tmp_path, (48, 64))
    honest = splits.by_patient(splits.tumour_sizes(store), val=0.2, test=0.2)
    leaky = splits.by_slice(store)
    for split in (honest, leaky):
        parts = [split.rows(store, part) for part in splits.PARTS]
        assert sorted(row for part in parts for row in part) == list(range(len(store)))
    patients = [set(store.index["patient"][honest.rows(store, part)]) for part in splits.PARTS]
    assert not patients[0] & patients[2] and not patients[0] & patients[1]
    train, test = (set(store.index["patient"][leaky.rows(store, part)]) for part in ("train", "test"))
    assert train & test and "LEAKY" in leaky.about
