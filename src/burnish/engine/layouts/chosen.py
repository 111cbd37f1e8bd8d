"""Which layout a run has: that of the processes it was started with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from burnish.engine.layouts.local import Local
from burnish.engine.layouts.processes import Processes
from burnish.machine import processes


@contextmanager
def layout() -> Iterator[Local | Processes]:
    """One process, or all that torchrun (or accelerate launch) started, which then end together."""
    if processes() == 1:
        yield Local()
        return
    several = Processes()
    with several.ranks.together():
        yield several
    several.close()  # of a run that failed there is nobody left to say goodbye to
