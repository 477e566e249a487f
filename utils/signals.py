"""A polite stop: Ctrl-C, SIGTERM and SIGUSR1 are noted, and the training loop saves at its next step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import ClassVar


class Interrupted(BaseException):
    """A script was asked to stop; the message says what is saved. No error, which libraries may catch."""


class StopRequest:
    """Context manager; true once a signal came. A second Ctrl-C stops at once."""

    leaving: ClassVar[bool] = False  # a signal has ended the work of this process, which is on its way out

    def __init__(self) -> None:
        names = ("SIGINT", "SIGTERM", "SIGUSR1")  # the last is Slurm's warning; Windows has none
        self.signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
        self.received: str | None = None
        self.urgent = False

    def __bool__(self) -> bool:
        return self.received is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._act()

    def _act(self) -> None:
        if self.urgent and self.received:
            self.urgent = False  # a second signal shall not disturb what follows
            raise Interrupted(self.received)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal is not noted but raises `Interrupted` where it finds the program."""
        self.urgent = True
        try:
            self._act()
            yield
        finally:
            self.urgent = False

    def __enter__(self) -> "StopRequest":
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self.before = {number: signal.signal(number, self._note) for number in self.signals}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        StopRequest.leaving = kind is Interrupted
        for number, handler in self.before.items():
            signal.signal(number, handler)
