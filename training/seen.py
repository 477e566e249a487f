"""Which samples of a store weights have seen: by what their header says, or by the names of files and patients."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import models
from datasets import splits
from datasets.images import SUFFIXES
from datasets.store import Store


def names(store: Store, unit: splits.Unit, rows: np.ndarray) -> list[str]:
    """What rows of a store are known by in a header: who they show, and their names."""
    if unit == "slice":
        return np.unique(splits.members(store, unit)[rows]).tolist()
    return sorted({*store.index["case"][rows].tolist(), *store.index["patient"][rows].tolist()})


def bare(case: str) -> str:
    """A case's name; of an image file class and name, such as glioma/1: copies of a data set change all else."""
    path = Path(case)
    return f"{path.parent.name}/{path.stem}" if path.suffix.lower() in SUFFIXES else case


def seen_by(header: Mapping[str, Any], store: Store) -> np.ndarray:
    """(N,) bool: rows of a store that published weights, or the ones they started from, were trained or watched on,
    or others of the same patient."""
    slices = header.get("split", {}).get("unit") == "slice"  # of a patient it has seen some and is asked about others
    known = list(models.noted(header) if slices else models.recorded(header))
    seen = np.isin(splits.members(store, "slice"), known) if slices else np.zeros(len(store), bool)
    return seen | files_of(known, store) | np.isin(store.index["patient"], known)


def files_of(known: list[str], store: Store) -> np.ndarray:
    """(N,) bool: rows of a store whose file has one of these names, wherever it lies; two of a name go by path."""
    cases = store.index["case"]
    bares, which, count = np.unique([bare(case) for case in cases.tolist()], return_inverse=True, return_counts=True)
    alike = np.isin(bares, known + [bare(name) for name in known]) & (count == 1)
    return np.isin(cases, known) | alike[which]
