"""Files that are whole or not there."""

import csv
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`: what is written there takes its place at the end, if nothing fails.

    It reaches the disk before it takes the place, so that a kill or a power cut leaves the old file or the new one.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file has reached the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as a table, whole or not at all."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table, by column. Raises what opening and decoding a file raises, and csv.Error."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def writable(folder: Path) -> Path:
    """The folder, made if need be. ValueError: nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error.strerror}): choose another --out") from error


def spare(path: Path, inputs: Iterable[Path]) -> Path:
    """The path of an output, which may replace an older one. ValueError: it is one of the inputs."""
    if path.exists() and any(path.samefile(input) for input in inputs if input.exists()):
        raise ValueError(f"{path} is an input, which stays as it is: choose another --out")
    return path
