"""Who is in train, validation and test: by patient, stratified by tumour size, written to a JSON file once.

`by_slice` is the leaky shuffle of many public projects (slices of one patient on both sides). It exists to show how
much that flatters, and whatever is made with it says so.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np

from datasets.store import Store

Unit = Literal["patient", "slice", "file"]
PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Three disjoint lists of patients or groups (or, for unit "slice", of "case:slice", for "file" of files).

    Raises:
        ValueError: a member stands in two parts, or a part that must not be empty is.
    """

    unit: Unit
    train: list[str]
    val: list[str]
    test: list[str]
    about: str = ""  # how it was made
    data: str = ""  # fingerprint of the store it was made for

    def __post_init__(self) -> None:
        for one, other in combinations(PARTS, 2):
            if common := set(getattr(self, one)) & set(getattr(self, other)):
                raise ValueError(f"the split has {sorted(common)[0]} in both {one} and {other}: make it anew")
        if not self.train or not self.test:
            raise ValueError(
                "the split has no patient in train or in test: take smaller shares for val and test, or more patients"
            )

    def rows(self, store: Store, part: str) -> np.ndarray:
        """The rows of the store that belong to a part, in the store's order."""
        return np.flatnonzero(np.isin(members(store, self.unit), getattr(self, part)))

    @property
    def text(self) -> str:
        """What `load` reads, JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def load(cls, path: Path) -> "Split":
        """Read a split and check it again.

        Raises:
            ValueError: not a split, or its parts overlap.
        """
        try:
            return cls(**json.loads(path.read_text()))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path} is not a split file: remove it, and the split is made anew") from error


def members(store: Store, unit: Unit) -> np.ndarray:
    """What each row of the store is dealt by: its patient, its file, or its own "case:slice"."""
    if unit in ("patient", "file"):
        return store.index["patient" if unit == "patient" else "case"].astype(str)
    return np.array([f"{c}:{z}" for c, z in zip(store.index["case"], store.index["slice"], strict=True)])


def tumour_voxels(store: Store) -> np.ndarray:
    """Tumour voxels of each slice (N,)."""
    return store.index["ncr"] + store.index["ed"] + store.index["et"]


def tumour_sizes(store: Store) -> dict[str, int]:
    """Tumour voxels of each patient."""
    voxels = tumour_voxels(store)
    patients, which = np.unique(store.index["patient"].astype(str), return_inverse=True)
    return dict(zip(patients.tolist(), np.bincount(which, voxels).astype(int).tolist(), strict=True))


def by_patient(
    sizes: Mapping[str, int], val: float = 0.15, test: float = 0.2, seed: int = 0, known: Collection[str] = ()
) -> Split:
    """Shares of the patients, each part spread evenly over the tumour sizes.

    Args:
        sizes: tumour voxels of each patient.
        val, test: shares of all patients; at least one patient is tested, and validated if `val` > 0.
        known: patients that the weights to start from have seen: none is tested on, and none validated on where two
            others are left, of which at most half are.

    Raises:
        ValueError: all patients are known.
    """
    ranked = sorted(sizes, key=lambda patient: (sizes[patient], patient))
    rng = np.random.default_rng(seed)
    unknown = [patient for patient in ranked if patient not in known]
    if ranked and not unknown:
        raise ValueError("the weights to start from have seen all of these patients: none is left to test on")
    tested = _spread(unknown, max(1, round(test * len(ranked))), rng)
    rest = [patient for patient in ranked if patient not in tested]
    new, wanted = [patient for patient in rest if patient not in known], val * len(ranked)
    if known and len(new) > 1:
        return _with_validation(rest, new, tested, min(wanted, len(new) // 2), rng, f"patients, seed {seed}")
    return _with_validation(rest, rest, tested, wanted, rng, f"patients, seed {seed}")


def check_fold(fold: int, folds: int) -> None:
    """Raises ValueError where there is no such fold."""
    if not 0 <= fold < folds or folds < 2:
        raise ValueError(f"fold {fold} of {folds} does not exist: folds are counted from 0, and there are 2 or more")


def by_fold(sizes: Mapping[str, int], fold: int, folds: int, val: float = 0.15, seed: int = 0) -> Split:
    """Fold `fold` (0 to folds - 1) of a k-fold cross-validation over patients, stratified by tumour size.

    Raises:
        ValueError: fewer patients than folds, or no such fold.
    """
    check_fold(fold, folds)
    if len(sizes) < folds:
        raise ValueError(f"{len(sizes)} patients cannot be dealt into {folds} folds: take --folds {len(sizes)} at most")
    ranked = sorted(sizes, key=lambda patient: (sizes[patient], patient))
    rng = np.random.default_rng(seed)
    # of every `folds` patients of similar tumour size, one goes to each fold
    dealt = np.concatenate([rng.permutation(folds) for _ in range(0, len(ranked), folds)])[: len(ranked)]
    tested = [patient for patient, to in zip(ranked, dealt, strict=True) if to == fold]
    rest = [patient for patient, to in zip(ranked, dealt, strict=True) if to != fold]
    return _with_validation(rest, rest, tested, val * len(rest), rng, f"patients, fold {fold} of {folds}, seed {seed}")


def by_slice(store: Store, val: float = 0.15, test: float = 0.2, seed: int = 0) -> Split:
    """The leaky shuffle: slices at random, so that every patient is on both sides."""
    names = np.random.default_rng(seed).permutation(members(store, "slice")).tolist()
    first, second = round(test * len(names)), round((test + val) * len(names))
    return Split("slice", names[second:], names[first:second], names[:first], f"LEAKY: slices shuffled, seed {seed}")


def _with_validation(
    rest: list[str], eligible: list[str], tested: list[str], wanted: float, rng: np.random.Generator, about: str
) -> Split:
    validated = _spread(eligible, max(1, round(wanted)), rng) if wanted > 0 else []
    train = [patient for patient in rest if patient not in validated]
    return Split("patient", sorted(train), sorted(validated), sorted(tested), about)


def _spread(ranked: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """`count` members of a ranked list, one from each of `count` stretches of equal length."""
    stretches = np.array_split(np.array(ranked), max(1, min(count, len(ranked))))
    return [str(rng.choice(stretch)) for stretch in stretches if len(stretch)]
