"""Ctrl-C and SIGTERM end a run at the end of its step. A second Ctrl-C ends it at once,
or as soon as a checkpoint that is being written is whole."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(SystemExit):
    """A run that was asked to stop and did, with nothing lost. Its code is 128 + the signal: 130 or 143."""

    def __init__(self, number: int, sentence: str) -> None:
        super().__init__(128 + number)
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence


class Interruption:
    """Whether, and by which signal, this run was asked to stop.

    A process that torchrun started and that torchrun no longer watches counts as asked: nobody would know of it.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._watcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    @property
    def number(self) -> int | None:
        if self._number is None and self._watcher not in (None, os.getppid()):
            return int(signal.SIGTERM)  # a plain number: it is told to the other processes
        return self._number

    def asked(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # whoever presses twice does not want to wait
        self._number = number


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Signals are noted inside the block, and do again what they did after it. Only the main thread can listen."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    earlier = {number: signal.signal(number, interruption.asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
