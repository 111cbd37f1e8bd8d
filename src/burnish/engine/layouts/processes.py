"""Several processes, each with all weights and a share of the groups: started by `torchrun` or `accelerate launch`.

    torchrun --nproc-per-node 2 -m burnish train RECIPE

Losses, counts and gradients are summed before they are divided, so an update is that of one process; all processes then
step alike, and their weights stay equal. The first process writes the folder. A checkpoint does not know how many
processes there were. Tensors on a GPU are summed by nccl; all that is said besides goes by gloo.

With `shard: true` in the recipe the trained network, its moments and its copies are divided among them (FSDP2), and put
together a block at a time where a pass needs it: memory for communication. All processes then make the same passes. The
network is loaded whole before it is divided, so it has to fit on one device without moments, copies and gradients.
"""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from burnish.core import Divides, Evaluation, Policy
from burnish.engine.checkpoint import Checkpoint
from burnish.engine.layouts.local import Place, built, device_of
from burnish.engine.ranks import Elsewhere, Ranks
from burnish.formulas.sentinel import Glance
from burnish.laps import lap
from burnish.recipe.recipe import Recipe
from burnish.types import Latents, Mean, Plan, Prompt, Rollout, Scores, Tokens

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # for the others at any one point: the longest that scoring may differ
BUCKET = 2**24  # numbers of gradients that are summed at once
# What is said is tensors, plain values and these; whatever else arrives is not opened.
SAID = [Checkpoint, Elsewhere, Evaluation, Glance, Latents, Mean, Plan, Prompt, Rollout, Scores, Tokens]


def backend(accelerated: bool) -> str:
    """What torch.distributed sums and talks by."""
    return "cpu:gloo,cuda:nccl" if accelerated else "gloo"


class Lost(ValueError):
    """Another process failed, ended, or does not answer. It is not told to the others: they know."""


class Heard(Lost):
    """Another process has said the sentence that it ended with."""


class Untold(ValueError):
    """What ended this process, while the others may be in the middle of a pass and hear nothing."""


class Processes:
    """The layout of as many processes as WORLD_SIZE says, of which this is RANK."""

    def __init__(self) -> None:
        self._opened = not dist.is_initialized()  # Ray Train has done it
        if self._opened:
            # Imported later, its functions keep the group for good (as a default); its threads may abort the exit.
            importlib.import_module("torch.distributed.nn")
            dist.init_process_group(backend(torch.cuda.is_available()), timeout=PATIENCE)
        self.ranks = Company(dist.get_rank(), dist.get_world_size())

    def build(self, recipe: Recipe) -> Place:
        """Load everything a recipe names, in every process. Raises ValueError for weights that do not fit."""
        device = self.ranks.device = self.device(recipe.device)
        if not recipe.shard:
            return built(recipe, device, self.ranks)
        if recipe.flat_groups == "refill":
            raise ValueError("shard: flat_groups: refill draws more in one process than in another; keep or drop them")
        if not recipe.objective.needs().even:
            raise ValueError("shard: this objective makes passes for some samples alone, and not in all processes")
        place = built(recipe, device, self.ranks, partial(_divide, device.type))
        self.ranks.divides = True
        return place

    def close(self) -> None:
        if self._opened:
            dist.destroy_process_group()

    def device(self, name: str) -> torch.device:
        """The device of that name, of which each process has its own. Raises ValueError for one that is absent."""
        if name.startswith("cuda:"):
            raise ValueError(f"device: {name!r} is one for several processes; 'cuda' or 'auto' gives each its own")
        own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available() and name in ("auto", "cuda"):
            torch.cuda.set_device(own)  # before anything is looked for: "cuda" would be the first one, in every process
        device = device_of(name)
        return own if device.type == "cuda" else device


def _divide(kind: str, policy: Policy) -> None:
    if not isinstance(policy, Divides):
        raise ValueError(f"shard: the weights of {type(policy).__name__} cannot be divided; leave shard out")
    policy.divide(init_device_mesh(kind, (dist.get_world_size(),)))


@dataclass(frozen=True)
class _Said:
    """What one process tells the others: a value, or the sentence it ends with."""

    value: Any
    failed: str | None = None


class Company(Ranks):
    """The processes of torch.distributed."""

    def __init__(self, number: int, count: int) -> None:
        self.number, self.count = number, count
        self.device = torch.device("cpu")  # what is gathered comes here

    def gathered(self, value: T) -> list[T]:
        return [one.value for one in self._all(_Said(value))]

    def first(self, make: Callable[[], T]) -> T:
        made = make() if self.leads else None
        payload = _packed(made) if self.leads else torch.empty(0, dtype=torch.uint8)
        size = self.gathered(len(payload))[0]
        if not self.leads:
            payload = torch.empty(size, dtype=torch.uint8)
        self._wait(lambda: dist.broadcast(payload, 0))
        return made if self.leads else _unpacked(payload, torch.device("cpu"))  # pyright: ignore[reportReturnType]

    def add(self, tensors: Sequence[Tensor]) -> None:
        for _, alike in groupby(tensors, lambda tensor: (tensor.dtype, tensor.device)):
            for bucket in _buckets(list(alike)):
                joined = torch.cat([tensor.flatten() for tensor in bucket])
                self._wait(lambda joined=joined: dist.all_reduce(joined))
                for tensor, summed in zip(bucket, joined.split([t.numel() for t in bucket]), strict=True):
                    tensor.copy_(summed.view_as(tensor))

    @contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
            self.gathered(None)  # nobody leaves while another may still fail
        except Lost:
            raise
        except (Exception, KeyboardInterrupt) as problem:
            if not self.divides:
                self._tell(problem)
                raise
            # They may be in the middle of a pass, which waits by itself: torchrun, or Ray, ends them.
            if _of_passing(problem):
                raise self._lost(f" ({str(problem).splitlines()[0]})") from problem
            if isinstance(problem, ValueError):
                raise Untold(str(problem)) from problem
            raise

    def _tell(self, problem: BaseException) -> None:
        """Say how this process ended. The others hear it at the next thing that they tell one another."""
        said = str(problem) if isinstance(problem, ValueError) else f"{type(problem).__name__}: {problem}"
        with suppress(Lost):  # the others have failed as well, or are gone; what is raised here is what happened here
            self._all(_Said(None, said))

    def _all(self, mine: _Said) -> list[_Said]:
        payload = _packed((mine.value, mine.failed))
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.count)]
        self._wait(lambda: dist.all_gather(sizes, torch.tensor([len(payload)])))
        most = max(int(size) for size in sizes)
        room = torch.zeros(most, dtype=torch.uint8)
        room[: len(payload)] = payload
        found = [torch.empty(most, dtype=torch.uint8) for _ in sizes]
        self._wait(lambda: dist.all_gather(found, room))
        heard = []
        for number, (size, payload) in enumerate(zip(sizes, found, strict=True)):
            value, failed = _unpacked(payload[: int(size)], self.device)
            if failed is not None and number != self.number:
                raise Heard(f"process {number} of {self.count} has failed: {failed}")
            heard.append(_Said(value, failed))
        return heard

    def _wait(self, call: Callable[[], Any]) -> None:
        try:
            with lap("wait"):
                call()
        except RuntimeError as problem:  # all that torch.distributed raises is one
            raise self._lost() from problem

    def _lost(self, why: str = "") -> Lost:
        return Lost(
            f"process {self.number} of {self.count} lost the others: one of them ended, or did not answer for "
            f"{PATIENCE.seconds // 60} minutes{why}. The last checkpoint is whole; resume the run to go on from there"
        )


def _of_passing(problem: BaseException) -> bool:
    """Whether what sums and gathers tensors has failed. gloo raises plain errors."""
    told = str(problem).lower()
    return isinstance(problem, dist.DistError) or (
        isinstance(problem, RuntimeError) and any(word in told for word in ("gloo", "nccl", "connection closed"))
    )


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket, size = [], 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def _packed(value: Any) -> Tensor:
    file = io.BytesIO()
    torch.save(value, file)
    return torch.from_numpy(np.frombuffer(file.getbuffer(), dtype=np.uint8).copy())


def _unpacked(payload: Tensor, device: torch.device) -> Any:
    with torch.serialization.safe_globals(SAID):
        return torch.load(io.BytesIO(payload.numpy().tobytes()), weights_only=True, map_location=device)
