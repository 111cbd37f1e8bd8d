"""Keyed noise: the same run seed, step and sample id give the same numbers, in any batch, on any device.

A counter-based generator (Philox 4x64, Salmon et al. 2011) is keyed by a hash of (seed, stream, step, sample id), so
neither the batch split, nor the world size, nor a resume changes what a sample is drawn with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Noise:
    """A stream of random numbers for every sample of a draw."""

    seed: int
    step: int
    ids: tuple[int, ...]  # one per sample, unique within the step
    stream: str = "draw"  # separates uses that share a step: draw, evaluate, ...
    # mean and deviation of the starting noise of each sample, (b, *d) on the CPU; None: standard normal
    start: tuple[Tensor, Tensor] | None = field(default=None, compare=False)

    def of(self, rows: Int[Tensor, " n"]) -> Noise:
        """The streams of some of the samples."""
        start = None if self.start is None else (self.start[0][rows], self.start[1][rows])
        return replace(self, ids=tuple(self.ids[i] for i in rows.tolist()), start=start)

    def starting(self, mean: Float[Tensor, "b *d"], std: Float[Tensor, "b *d"]) -> Noise:
        """The same streams, with another law of starting noise."""
        return replace(self, start=(mean, std))

    def uniform(self, k: int, what: str = "") -> Float[Tensor, "b k"]:
        """`k` uniform numbers in [0, 1) for every sample. On the CPU, float32."""
        rows = [self._generator(i, what).random(k, dtype=np.float32) for i in self.ids]
        return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, k)

    def normal(self, shape: Sequence[int], what: str = "") -> Float[Tensor, "b ..."]:
        """Standard normal numbers of `shape` for every sample; what "start" by `start`. On the CPU, float32."""
        rows = [self._generator(i, what).standard_normal(tuple(shape), dtype=np.float32) for i in self.ids]
        drawn = torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, *shape)
        return drawn if self.start is None or what != "start" else self.start[0] + self.start[1] * drawn

    def _generator(self, sample: int, what: str) -> np.random.Generator:
        return generator(self.seed, self.stream, what, self.step, sample)


def generator(*key: object) -> np.random.Generator:
    """A random generator that depends on nothing but its key."""
    digest = hashlib.blake2b("\x1f".join(str(part) for part in key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))
