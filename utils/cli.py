"""What the scripts share: a typed command line whose options a run remembers, and errors as one sentence."""

import dataclasses
import errno
import json
import os
import signal
import sys
import threading
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

from utils.files import write_text
from utils.signals import Interrupted, StopRequest


class HasFolder(Protocol):
    """Options of a run, a dataclass that knows where the run lives."""

    @property
    def folder(self) -> Path: ...


Options = TypeVar("Options", bound=HasFolder)

BAD_INPUT = 2
INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: run the same command again
BROKEN_PIPE = 141  # 128 + SIGPIPE, as shells say
SAVED = "options.json"
IN_THE_WAY = "a file is where a folder should be"
REMEDIES = {FileExistsError: IN_THE_WAY, NotADirectoryError: IN_THE_WAY, PermissionError: "see to its rights"}


def main(function: Callable[[Options], None], kind: type[Options], description: str | None) -> None:
    """Parse the command line, call `function`, and exit: 0, 2 on bad input, 75 when interrupted, 141 if none reads on.

    Of several processes the first alone exits with 75, the others with 0.

    Where the folder of the run holds the options of an earlier start, these are the defaults: a run goes on with its
    name alone. With TRACEBACK=1 in the environment an error shows where it came from.
    """
    import tyro

    with exits(resumes=True):
        options = tyro.cli(kind, description=description)
        if (saved := options.folder / SAVED).exists():
            options = tyro.cli(kind, description=description, default=load(kind, saved))
        _tell("RUN_MARK", str(options.folder))
        function(options)


def run(
    function: Callable[..., None], description: str | None, resumes: bool = False, kind: type | None = None
) -> None:
    """The command line of a script without a run: the function's own arguments. Exits like `main`.

    Args:
        resumes: the same command goes on where it was stopped.
        kind: a dataclass whose fields are the arguments; the function takes one of it.
    """
    import tyro

    with exits(resumes):
        if kind is None:
            tyro.cli(function, description=description)
        else:
            function(tyro.cli(kind, description=description))


@contextmanager
def exits(resumes: bool = False) -> Iterator[None]:
    """Turn what stops a script into one sentence and an exit code; `resumes` as in `run`."""
    stays = "what was finished stays"
    _stop_politely()
    try:
        yield
    except Interrupted as stop:
        if resumes and not _first():
            sys.exit(0)  # a process that fails would have srun kill the first, which may not have said all
        _tell("CONTINUE_MARK", str(stop))
        print(f"{stop}; {'the same command goes on from there' if resumes else stays}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        then = "the same command goes on from where it was saved, if it was"
        print(f"stopped; {then if resumes else stays}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # whoever reads the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("TRACEBACK"):
            raise
        print(f"error: {_sentence(error)}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except (RuntimeError, MemoryError) as error:
        if os.environ.get("TRACEBACK") or not _out_of_memory(error):
            raise
        remedy = "a training wants a smaller --batch-size or a larger --accumulate, and another --name"
        print(f"error: out of memory: {remedy}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def _first() -> bool:
    """Whether this process is the first of several, or alone; see `utils.distributed.place`."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _tell(mark: str, text: str) -> None:
    """Tell a job script that asks to be told in a file (see jobs/common.sh); of several processes the first does."""
    if (path := os.environ.get(mark)) and _first():
        write_text(Path(path), f"{text}\n")


def _stop_politely() -> None:
    """SIGTERM and SIGUSR1 end a script as Ctrl-C does, with its clean-up; the training loop saves first."""

    def stop(number: int, frame: FrameType | None) -> None:
        if not StopRequest.leaving:  # else a second signal would disturb the clean-up
            StopRequest.leaving = True
            raise Interrupted(f"stopped by {signal.Signals(number).name}")

    StopRequest.leaving = False
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGUSR1"):  # Windows lacks the second
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), stop)


def keep(options: Any, folder: Path, free: tuple[str, ...] = ()) -> None:
    """Write the options of a run into its folder at the first start; later starts must agree but for those in `free`.

    Raises:
        ValueError: they differ; names the options.
    """
    path = folder / SAVED
    if not path.exists():
        write_text(path, json.dumps(dataclasses.asdict(options), indent=1, default=str))
        return
    saved = load(type(options), path)
    names = [field.name for field in dataclasses.fields(options) if field.name not in free]
    changed = [name for name in names if getattr(options, name) != getattr(saved, name)]
    if changed:
        listed = ", ".join(f"{name} {getattr(saved, name)} (not {getattr(options, name)})" for name in changed)
        raise ValueError(f"{folder} was started with {listed}: choose another --name, or leave these as they were")


def load(kind: type[Options], path: Path) -> Options:
    """Read options that `keep` wrote.

    Raises:
        ValueError: the file is damaged, or of another version of the script.
    """
    hints = typing.get_type_hints(kind)
    try:
        values = json.loads(path.read_text())
        return kind(**{name: _revive(hints[name], value) for name, value in values.items()})
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as options of this script: choose another --name") from error


def _revive(hint: Any, value: Any) -> Any:
    """JSON knows neither paths nor tuples."""
    if isinstance(value, str) and Path in (hint, *typing.get_args(hint)):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def _out_of_memory(error: Exception) -> bool:
    """NumPy's error has a type of its own, PyTorch's has one on a GPU only."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    )


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no space left on the disk: free some and run the same command again"
    if isinstance(error, OSError) and error.filename and error.strerror:
        remedy = REMEDIES.get(type(error), "see to it")
        return f"{error.filename}: {error.strerror.lower()}: {remedy}, or take another path"
    return " ".join(str(error).split())
