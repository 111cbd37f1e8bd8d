"""Rewards for workers on a Ray cluster, in a module that workers can import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import toys
from torch import Tensor

from burnish.core import Scorer
from burnish.types import Prompt, Scores


@dataclass(frozen=True)
class Tells(toys.Reward):
    """Brightness of the first pixel, NaN for black ones, with a note of which process says so."""

    broken: bool = False  # raises as it is loaded
    seconds: float = 0.0  # that it takes
    videos = True

    def load(self, device: torch.device) -> Scorer:
        if self.broken:
            raise ValueError("no weights at all")
        return _Teller(self.seconds)


class _Teller(Scorer):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        time.sleep(self.seconds)
        if any(prompt.text == "wrong" for prompt in prompts):
            raise KeyError("no such endpoint")
        values = images.flatten(1)[:, 0]
        told = [f"{prompt.text} by {os.getpid()}" for prompt in prompts]
        return Scores.of("tells", torch.where(values > 0, values, torch.nan), told)


@dataclass(frozen=True)
class Mortal(toys.Reward):
    """`of`, whose process is killed in one call, the first time that this call is made."""

    of: toys.Reward
    file: str  # written in that moment
    call: int = 1  # which
    rank: int = 0  # the process that is killed, of several that learn together
    once: bool = False  # what is started in its place never gets ready

    def load(self, device: torch.device) -> Scorer:
        while self.once and Path(self.file).exists():
            time.sleep(1)
        return _Mortal(self, self.of.load(device))


class _Mortal(Scorer):
    def __init__(self, spec: Mortal, inner: Scorer) -> None:
        self.spec, self.inner, self.calls = spec, inner, 0

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        self.calls += 1
        mine = self.spec.rank == int(os.environ.get("RANK", "0"))
        if mine and self.calls == self.spec.call:
            with suppress(FileExistsError):  # of several in one moment, one dies
                Path(self.spec.file).touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(images, prompts)
