"""Checkpoints that survive a kill at any moment, and the lock of a run folder.

A checkpoint is written to a temporary file, fsync'd and renamed; the previous one stays beside it, and is taken with a
warning when the newest is damaged.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from filelock import FileLock, Timeout

from utils.files import replacing, sync


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint; the one that stood at `path` becomes `<stem>.previous<suffix>`.

    Raises:
        OSError: no space left, say. What stood there before is untouched, and no temporary file remains.
    """
    try:
        with replacing(path) as temporary:
            torch.save(state, temporary)
            sync(temporary)  # before the old one moves
            if path.exists():
                path.replace(_previous(path))
    except torch.AcceleratorError:  # the GPU failed earlier, and says so when it is asked for the weights
        raise
    except RuntimeError as error:  # torch reports a failed write so
        why = str(error).partition("\n")[0]
        raise OSError(f"{path} could not be written (is the disk full?): free some space and resume ({why})") from error


def load(path: Path) -> dict[str, Any] | None:
    """Read the newest whole checkpoint at `path`, on the CPU; None where there is none.

    Raises:
        ValueError: there are files, but none can be read.
    """
    found = [candidate for candidate in (path, _previous(path)) if candidate.exists()]
    for candidate in found:
        try:
            with ZipFile(candidate) as file:
                if damaged := file.testzip():  # torch does not compare the checksums
                    raise ValueError(damaged)
            return torch.load(candidate, map_location="cpu", weights_only=True)
        except Exception as error:  # damage shows as RuntimeError, EOFError, UnpicklingError, OSError and others
            warnings.warn(f"{candidate} is damaged ({type(error).__name__}) and left out", stacklevel=2)
    if found:
        raise ValueError(f"no checkpoint in {path.parent} can be read: remove that folder to start anew")
    return None


def exists(path: Path) -> bool:
    """Whether there is anything to go on from."""
    return path.exists() or _previous(path).exists()


def _previous(path: Path) -> Path:
    return path.with_suffix(".previous" + path.suffix)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder; the lock ends with the process, however it ends. A folder that is still empty then goes.

    Raises:
        ValueError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{folder} belongs to a run that is still going on: choose another --name") from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps what is open
            if [path.name for path in folder.iterdir()] == ["lock"]:
                (folder / "lock").unlink()
                folder.rmdir()
        lock.release()
