"""A polite stop: Ctrl-C, SIGTERM and SIGUSR1 are noted, and the training loop saves at its next step."""

import signal
import threading
from types import FrameType


class Interrupted(Exception):
    """A run was asked to stop, and has saved."""


class StopRequest:
    """Context manager; true once a signal came. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        names = ("SIGINT", "SIGTERM", "SIGUSR1")  # the last is Slurm's warning; Windows has none
        self.signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
        self.received: str | None = None

    def __bool__(self) -> bool:
        return self.received is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __enter__(self) -> "StopRequest":
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self.before = {number: signal.signal(number, self._note) for number in self.signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
