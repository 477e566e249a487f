"""A data set decoded once: memory-mapped arrays and an index table, the only thing that training reads.

A store is a folder with `images.npy`, `targets.npy`, `index.csv` (a row a sample) and `store.json`. Its name ends
with a hash of its sources (names, sizes, times) and of the options it was built with, so that changed data or options
make a new store. It is written into a temporary folder that is renamed when whole; a file lock lets one process
build while others wait.
"""

import csv
import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

TEXT = ("case", "patient")  # columns of an index that are names; all others are whole numbers
VERSION = 2  # raise it when the arrays' meaning changes: older stores are then built anew


class Block(NamedTuple):
    """Some samples on their way into a store, such as the slices of one case."""

    images: np.ndarray  # (n, C, H, W)
    targets: np.ndarray  # (n, H, W) masks or (n,) classes
    rows: list[dict[str, Any]]  # n rows of the index
    info: dict[str, Any]  # what is kept once a block, JSON


@dataclass(frozen=True)
class Store:
    """An open store.

    Attributes:
        images: (N, C, H, W) memory map, read only; whoever reads many rows says so with `expect` before.
        targets: (N, H, W) or (N,) memory map, read only.
        index: the index's columns, each an array of N entries.
        info: what was kept with each block, in order.
        options: the options that the store was built with.
    """

    folder: Path
    images: np.memmap
    targets: np.memmap
    index: dict[str, np.ndarray]
    info: list[dict[str, Any]]
    options: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    def expect(self, rows: np.ndarray) -> None:
        """Tell the system which rows are read next: it fetches them together and in whole, and nothing else.

        Of a store larger than memory it would else guess, and read what lies around each, too.

        Args:
            rows: (n,) integers.
        """
        for array in (self.images, self.targets):
            size = array[0].nbytes
            for row in rows.tolist() if size >= mmap.PAGESIZE else ():
                first = array.offset + row * size
                page = first - first % mmap.PAGESIZE
                _advise(array, "MADV_WILLNEED", page, first + size - page)

    @property
    def fingerprint(self) -> str:
        """A hash of the index: equal for the same samples in the same order, wherever the files lie."""
        return hashlib.sha256((self.folder / "index.csv").read_bytes()).hexdigest()[:16]


def open_or_build(
    cache: Path, name: str, sources: Iterable[Path], options: dict[str, Any], produce: Callable[[], Iterator[Block]]
) -> Store:
    """Open the store of these sources and options under `cache`, or build it from the blocks of `produce()`.

    Raises:
        ValueError: nothing was produced, or what `produce` raises for bad input.
        OSError: no space left; nothing half-written remains.
    """
    folder = cache / f"{name}-{_key(sources, options)}"
    if (store := _open(folder)) is not None:
        return store
    cache.mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache / f"{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{folder.name} is being built by another process: waiting for it", flush=True)
        lock.acquire()
    try:
        return _open(folder) or _build(folder, options, produce)
    finally:
        lock.release()


def _key(sources: Iterable[Path], options: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, options], sort_keys=True).encode())
    for path in sources:
        status = path.stat()
        name = "/".join(path.parts[-3:])  # with the folders, which may say the class
        digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def _open(folder: Path) -> Store | None:
    """The store in `folder`, or None where it is absent, damaged or of another version.

    Raises:
        OSError: it is there, but may not or cannot be read: to build it again would not help.
    """
    try:
        about = json.loads((folder / "store.json").read_text())
        if about["version"] != VERSION:
            return None
        images = np.load(folder / "images.npy", mmap_mode="r")
        targets = np.load(folder / "targets.npy", mmap_mode="r")
        index = _read_columns(folder / "index.csv")
        _advise(images, "MADV_RANDOM")
        _advise(targets, "MADV_RANDOM")
        if not len(images) == len(targets) == len(next(iter(index.values()))):
            return None
    except (FileNotFoundError, EOFError, ValueError, KeyError, TypeError, StopIteration, csv.Error):
        return None
    return Store(folder, images, targets, index, about["info"], about["options"])


def _advise(array: np.memmap, name: str, *part: int) -> None:
    """Advise the system (where it takes advice) on a part of a memory map: first byte and size; on all of it."""
    advice, pages = getattr(mmap, name, None), getattr(array, "_mmap", None)
    if advice is not None and pages is not None:
        with suppress(OSError):  # it was advice
            pages.madvise(advice, *part)


def _build(folder: Path, options: dict[str, Any], produce: Callable[[], Iterator[Block]]) -> Store:
    temporary = folder.with_name(folder.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    temporary.mkdir()
    try:
        rows, info = _write(temporary, produce())
        (temporary / "store.json").write_text(json.dumps({"version": VERSION, "options": options, "info": info}))
        _write_columns(temporary / "index.csv", rows)
        shutil.rmtree(folder, ignore_errors=True)  # an older or damaged store of the same name
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    store = _open(folder)
    assert store is not None
    return store


def _write(folder: Path, blocks: Iterator[Block]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    info: list[dict[str, Any]] = []
    with NpyWriter(folder / "images.npy") as images, NpyWriter(folder / "targets.npy") as targets:
        for block in blocks:
            images.append(block.images)
            targets.append(block.targets)
            rows += block.rows
            info.append(block.info)
    if not rows:
        raise ValueError(f"nothing to store in {folder.stem}: no sample was found")
    return rows, info


class NpyWriter:
    """Appends blocks to a .npy file whose length is known only at the end.

    Plain writes, not a memory map: a full disk is then an OSError instead of a crash. NumPy pads the header so that
    the first axis can grow in place.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.length = 0
        self.shape: tuple[int, ...] = ()
        self.dtype = np.dtype("uint8")

    def append(self, block: np.ndarray) -> None:
        """Add a block of shape (n, ...); the later axes and the type are those of the first block."""
        if self.file.tell() == 0:
            self.shape, self.dtype = block.shape[1:], block.dtype
            self._header()
        if (block.shape[1:], block.dtype) != (self.shape, self.dtype):
            raise ValueError(f"a block of {block.shape[1:]} {block.dtype} among {self.shape} {self.dtype}")
        self.file.write(np.ascontiguousarray(block).data)
        self.length += len(block)

    def _header(self) -> None:
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def __enter__(self) -> "NpyWriter":
        return self

    def __exit__(self, *_: object) -> None:
        with self.file:
            self.file.seek(0)
            self._header()
            self.file.flush()
            os.fsync(self.file.fileno())


def _write_columns(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _read_columns(path: Path) -> dict[str, np.ndarray]:
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    return {name: _column(name, [row[name] for row in rows]) for name in reader.fieldnames or ()}


def _column(name: str, values: list[str]) -> np.ndarray:
    if name in TEXT:  # 001 and 1 are two patients
        return np.array(values)
    return np.array([int(value) for value in values])
