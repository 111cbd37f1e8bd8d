"""Scores of what has been drawn, while more is drawn: of one step, by one policy."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch

from burnish.types import Rollout, Scores, concatenate


class Ahead:
    """A block in which parts of a rollout are scored on a thread of their own, one after another.

    Leaving it by an exception forgets the parts that have not been begun.
    """

    def __init__(self, scored: Callable[[Rollout], Scores], device: torch.device) -> None:
        self._scored, self._found = scored, list[Future[Scores]]()
        self._thread = ThreadPoolExecutor(1, "scores", _at_home, (device,))

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=problem is not None)

    def __call__(self, part: Rollout) -> None:
        """A part has been drawn."""
        self._found.append(self._thread.submit(self._scored, part))

    def scores(self) -> Scores:
        """Of all parts, in their order, when they are there. Raises what scoring one of them has raised."""
        return concatenate([one.result() for one in self._found])


def _at_home(device: torch.device) -> None:
    """Every thread has a device of its own that it goes to unless told otherwise."""
    if device.type != "cpu" and device.index is not None:
        torch.accelerator.set_device_index(device.index)
