"""A bar on the terminal with the reward as it moves. Nothing is drawn in the first two seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

PATIENCE = 2.0  # seconds before anything is drawn


class Progress:
    """Where a run stands, on standard error."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._bar: Bar | None = None
        self._started = time.monotonic()
        self._done, self._steps = 0, 0

    def begin(self, step: int, steps: int) -> None:
        self._started, self._done, self._steps = time.monotonic(), step, steps

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._bar is None and self._console.is_terminal and time.monotonic() - self._started > PATIENCE:
            self._open()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, words=_words(metrics))
        self._done = step

    def say(self, sentence: str) -> None:
        """A line that stays, above the bar."""
        self._console.print(sentence, highlight=False, markup=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _open(self) -> None:
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[words]}"))
        self._bar = Bar(*columns, TimeRemainingColumn(), console=self._console)
        self._bar.add_task("train", total=self._steps, completed=self._done, words="")
        self._bar.start()


def _words(metrics: Mapping[str, float]) -> str:
    known = (("reward", "score/total_mean", ".4f"), ("images/s", "draw/images_per_second", ".1f"))
    return "  ".join(f"{word} {metrics[name]:{form}}" for word, name, form in known if name in metrics)
