"""Which samples of a store weights have seen: by what their header says, or by the names of files and patients."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import models
from datasets import splits
from datasets.images import SUFFIXES
from datasets.store import Store
from training.options import Options

INIT = "init.safetensors"  # in a run's folder: the weights that it started from


def names(store: Store, unit: splits.Unit, rows: np.ndarray) -> list[str]:
    """What rows of a store are known by in a header: who they show, and their names."""
    if unit == "slice":
        return np.unique(splits.members(store, unit)[rows]).tolist()
    return sorted({*store.index["case"][rows].tolist(), *store.index["patient"][rows].tolist()})


def bare(case: str) -> str:
    """A case's name; of an image file class and name, such as glioma/1: copies of a data set change all else."""
    path = Path(case)
    return f"{path.parent.name}/{path.stem}" if path.suffix.lower() in SUFFIXES else case


def start_of(options: Options) -> str:
    """The weights to start from: the run's own copy, once there is one, as theirs may change or go."""
    copy = options.folder / INIT
    return str(copy if copy.exists() else options.init)


def unseen(options: Options, split: splits.Split, store: Store, part: str) -> np.ndarray:
    """Rows of a part of the split that the weights to start from, if there are any, have not seen."""
    rows = split.rows(store, part)
    return rows[~seen_by(models.read_header(start_of(options)), store)[rows]] if options.init else rows


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
