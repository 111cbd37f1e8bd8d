"""Where the time of a step goes, or its work: named stretches of a clock, on whichever thread they were."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from burnish.machine import settle


@dataclass(frozen=True)
class Lap:
    """A stretch, in seconds since its `Laps` began, or in what else its clock counts."""

    name: str
    start: float
    end: float


@dataclass(eq=False)
class Laps:
    """Stretches that have ended, in the order of their ends. They may lie within one another, and side by side."""

    device: torch.device | None = None  # whose work belongs to the stretch in which it was asked for
    clock: Callable[[], float] = time.perf_counter
    ended: list[Lap] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._began = self.clock()

    def now(self) -> float:
        """What the clock counted since the beginning, once the device has done what it was given."""
        if self.device:
            settle(self.device)
        return self.clock() - self._began

    def spent(self, name: str) -> float:
        """All stretches of that name together; those of two threads count twice."""
        return sum(lap.end - lap.start for lap in self.ended if lap.name == name)


_kept: list[Laps] = []  # of the `recorded` blocks that are open


@contextmanager
def recorded(device: torch.device | None = None, clock: Callable[[], float] = time.perf_counter) -> Iterator[Laps]:
    """A block whose laps are kept, of all threads."""
    laps = Laps(device, clock)
    _kept.append(laps)
    try:
        yield laps
    finally:
        _kept.remove(laps)


@contextmanager
def lap(name: str) -> Iterator[None]:
    """A stretch with this name, kept by every block that records."""
    starts = [(laps, laps.now()) for laps in _kept]
    try:
        yield
    finally:
        for laps, start in starts:
            laps.ended.append(Lap(name, start, laps.now()))
