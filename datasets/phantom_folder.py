"""A folder that holds a whole phantom or none."""

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

MADE = "phantom.json"  # what the phantom in a folder was made with


@contextmanager
def building(folder: Path, parameters: dict[str, Any]) -> Iterator[Path | None]:
    """A temporary folder that takes the place of `folder` at the end, if nothing fails; None if there is nothing to do.

    A phantom of the same parameters is left alone, one of others is replaced.

    Raises:
        ValueError: the folder holds something else than a phantom.
        OSError: the folder cannot be written; nothing of the new data set is left then.
    """
    target = Path(folder).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):  # of several jobs one builds, the others wait
        if (target / MADE).is_file():
            if _made_with(target) == parameters:
                yield None
                return
            print(f"{folder} holds a phantom of other arguments: it is replaced", flush=True)
        elif target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ValueError(f"{folder} holds something else than a phantom: choose another folder")
        part, old = (target.with_name(f".{target.name}.{end}") for end in ("part", "old"))
        for left in (part, old):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        try:
            part.mkdir()
            yield part
            (part / MADE).write_text(json.dumps(parameters))
            if target.exists():
                target.rename(old)
            part.rename(target)
        except BrokenProcessPool as error:
            raise OSError("a process that made the phantom was ended, perhaps for want of memory: "
                          "free some and run the same command again") from error  # fmt: skip
        finally:
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def any_phantom(folder: Path, version: int, write: Callable[[Path], Path]) -> Path:
    """The folder with the phantom of this version that is there, whatever its other arguments; else `write(folder)`.

    Raises what `write` does.
    """
    return folder if _made_with(folder).get("version") == version else write(folder)


def _made_with(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / MADE).read_text()))
    except (FileNotFoundError, ValueError, TypeError):  # none, or cut off by a crash
        return {}
