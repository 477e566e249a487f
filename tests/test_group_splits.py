"""No group stands on two sides of a split, whatever the groups look like."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import group_splits
from datasets.images import CLASSES


def store(groups: list[int], labels: list[int], part: list[int] | None = None) -> Any:
    """What a split asks of a store."""
    names = np.array([f"file{number}" for number in range(len(groups))])
    index = {"case": names, "patient": np.array([f"g{group}" for group in groups])}
    index["part"] = np.zeros(len(groups), int) if part is None else np.array(part)

    class Store(SimpleNamespace):
        def __len__(self) -> int:
            return len(groups)

    return Store(index=index, targets=np.array(labels), options={"classes": list(CLASSES)}, folder=Path())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=40, max_size=120), st.integers(0, 5))
def test_groups_are_disjoint_and_every_image_is_tested_once(sizes: list[tuple[int, int]], seed: int) -> None:
    sizes += [(label, 1) for label in range(4) for _ in range(20)]  # enough groups of each class for the folds
    groups = [group for group, (_, size) in enumerate(sizes) for _ in range(size)]
    labels = [label for label, size in sizes for _ in range(size)]
    made = store(groups, labels)
    tested = []
    for fold in range(3):
        split = group_splits.by_fold(made, fold, 3, val=0.2, seed=seed)
        parts = [set(split.rows(made, part)) for part in ("train", "val", "test")]
        assert sum(map(len, parts)) == len(groups) and set.union(*parts) == set(range(len(groups)))
        for one in range(3):
            for other in range(one):
                assert not {groups[row] for row in parts[one]} & {groups[row] for row in parts[other]}
        tested += list(parts[2])
    assert sorted(tested) == list(range(len(groups)))


def test_classes_are_spread_evenly_and_the_split_is_stable() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(400), 5)
    labels = np.repeat(rng.integers(0, 4, 400), 5)
    made = store(groups.tolist(), labels.tolist())
    split = group_splits.by_fold(made, 1, 5, val=0.0)
    shares = np.bincount(labels[split.rows(made, "test")]) / np.bincount(labels)
    np.testing.assert_allclose(shares, 0.2, atol=0.03)
    assert not split.val
    assert split == group_splits.by_fold(made, 1, 5, val=0.0)
    assert split != group_splits.by_fold(made, 1, 5, val=0.0, seed=1)


def test_the_official_test_set_stays_and_validation_is_taken_by_group() -> None:
    groups = np.repeat(np.arange(100), 4)
    labels = np.repeat(np.arange(100) % 4, 4)
    part = np.tile([0, 0, 0, 1], 100)  # every group is on both sides, as in the real set
    made = store(groups.tolist(), labels.tolist(), part.tolist())
    split = group_splits.official(made, val=0.2)
    np.testing.assert_array_equal(split.rows(made, "test"), np.flatnonzero(part == 1))
    trained, watched = groups[split.rows(made, "train")], groups[split.rows(made, "val")]
    assert not set(trained) & set(watched)
    assert 0.1 < len(watched) / 300 < 0.3
    assert "both sides" in split.about


def test_bad_requests_are_one_sentence() -> None:
    made = store([0, 1, 2, 3, 4, 4], [0, 1, 2, 3, 0, 0])
    with pytest.raises(ValueError, match="class glioma has 2 groups of images, which cannot be dealt into 3 parts"):
        group_splits.by_fold(made, 0, 3, val=0.0)
    with pytest.raises(ValueError, match="fold 3 of 3 does not exist"):
        group_splits.by_fold(made, 3, 3, val=0.0)
    with pytest.raises(ValueError, match="not divided into Training and Testing"):
        group_splits.official(made, val=0.1)
