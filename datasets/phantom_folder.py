"""A folder that holds a whole phantom or none."""

import json
import shutil
import uuid
from collections.abc import Iterator
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
            if json.loads((target / MADE).read_text()) == parameters:
                yield None
                return
        elif target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ValueError(f"{folder} holds something else than a phantom: choose another folder")
        part, old = (target.with_name(f".{target.name}-{uuid.uuid4().hex}.{end}") for end in ("part", "old"))
        try:
            part.mkdir()
            yield part
            (part / MADE).write_text(json.dumps(parameters))
            if target.exists():
                target.rename(old)
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
