"""Where the time of a step goes: named stretches of the clock, on whichever thread they were."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Lap:
    """A stretch, in seconds since its `Laps` began."""

    name: str
    start: float
    end: float


@dataclass(eq=False)
class Laps:
    """Stretches that have ended, in the order of their ends. They may lie within one another, and side by side."""

    device: torch.device | None = None  # whose work belongs to the stretch in which it was asked for
    began: float = field(default_factory=time.perf_counter)
    ended: list[Lap] = field(default_factory=list)

    def now(self) -> float:
        """Seconds since the beginning, once the device has done what it was given."""
        if self.device and self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter() - self.began

    def seconds(self, name: str) -> float:
        """All stretches of that name together; those of two threads count twice."""
        return sum(lap.end - lap.start for lap in self.ended if lap.name == name)


_kept: list[Laps] = []  # the innermost `recorded` block last


@contextmanager
def recorded(device: torch.device | None = None) -> Iterator[Laps]:
    """A block whose laps are kept, of all threads."""
    laps = Laps(device)
    _kept.append(laps)
    try:
        yield laps
    finally:
        _kept.remove(laps)


@contextmanager
def lap(name: str) -> Iterator[None]:
    """A stretch with this name, kept if a block records."""
    if not _kept:
        yield
        return
    laps = _kept[-1]
    start = laps.now()
    try:
        yield
    finally:
        laps.ended.append(Lap(name, start, laps.now()))
