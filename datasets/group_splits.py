"""Who is in train, validation and test when images come in groups (of a patient, or of near-duplicates).

`by_fold` keeps each group on one side. `official` takes the test set that everybody uses, whose patients are in
training too: a number to quote, not one to believe.
"""

from dataclasses import replace

import numpy as np

from datasets.splits import Split, Unit, check_fold, members
from datasets.store import Store

TESTING = 1  # in the index's column `part`


def by_fold(store: Store, fold: int, folds: int, val: float, seed: int = 0) -> Split:
    """Fold `fold` (0 to folds - 1) of a cross-validation over groups, stratified by class.

    Args:
        val: share of the remaining images to watch the training on, by group; may be 0.

    Raises:
        ValueError: fewer groups than folds in some class, or no such fold.
    """
    check_fold(fold, folds)
    rows = np.arange(len(store))
    dealt = _deal(store, rows, folds, seed)
    split = _with_validation(store, rows[dealt != fold], rows[dealt == fold], val, seed)
    return replace(split, about=f"groups, fold {fold} of {folds}, seed {seed}")


def official(store: Store, val: float, seed: int = 0) -> Split:
    """The data set's own test set; validation is taken out of Training by group.

    Raises:
        ValueError: the data set has no Testing folder.
    """
    tested = store.index["part"] == TESTING
    if not tested.any() or tested.all():
        raise ValueError("the data set is not divided into Training and Testing: add them, or take --split patient")
    split = _with_validation(store, np.flatnonzero(~tested), np.flatnonzero(tested), val, seed, unit="file")
    groups = store.index["patient"]
    common = np.intersect1d(groups[tested], groups[~tested])
    sides = "patients on both sides" if common.size else "no patient on both sides, as far as known"
    return replace(split, about=f"official test set ({sides}), seed {seed}")


def _deal(store: Store, rows: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each row: whole groups, the classes spread evenly."""
    from sklearn.model_selection import StratifiedGroupKFold

    groups, labels = store.index["patient"][rows], np.asarray(store.targets)[rows]
    for label in np.unique(labels):
        if (there := len(np.unique(groups[labels == label]))) < folds:
            raise ValueError(
                f"class {store.options['classes'][label]} has {there} groups of images, which cannot be dealt into "
                f"{folds} parts: add images of other patients, or take fewer --folds, or --val 0"
            )
    dealt = np.zeros(len(rows), int)
    dealer = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, chosen) in enumerate(dealer.split(rows, labels, groups)):
        dealt[chosen] = fold
    return dealt


def _with_validation(
    store: Store, rest: np.ndarray, tested: np.ndarray, val: float, seed: int, unit: Unit = "patient"
) -> Split:
    watched = _deal(store, rest, max(2, round(1 / val)), seed) == 0 if val else np.zeros(len(rest), bool)
    names = members(store, unit)
    parts = (rest[~watched], rest[watched], tested)
    return Split(unit, *(np.unique(names[rows]).tolist() for rows in parts))
