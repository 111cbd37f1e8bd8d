"""Workers on a Ray cluster (Moritz et al. 2018, arXiv:1712.05889): actors that answer calls, and are replaced if lost.

Ray is an extra, `pip install 'burnish[ray]'`. A running cluster is joined (RAY_ADDRESS, or one that `ray start` began
on this machine); without one, all of this machine becomes one for as long as the program runs.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from burnish.machine import first_device, processes

PATIENCE = 600.0  # seconds in which a cluster has to start the workers it was asked for, or one in place of a lost one
RETRIES = 3  # of a call whose worker was lost


@dataclass(frozen=True)
class Workers:
    """How many, and what Ray sets aside for each."""

    count: int = 1  # workers
    cpus: float = 1.0  # processor cores of each
    gpus: float = 0.0  # of each; less than 1 is a share of one

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"workers: count must be 1 or more, got {self.count}")
        if self.cpus < 0 or self.gpus < 0:
            raise ValueError(f"workers: cpus and gpus must be 0 or more, got {self.cpus:g} and {self.gpus:g}")


class Crew:
    """Workers that were made alike: `make`, called in each with the device it may use, gives what answers its calls.

    A worker that is lost is made again, on another machine if need be, and its call is repeated. They end with this.
    Raises ValueError if ray is missing, if the cluster does not start them, and what `make` raises.
    """

    # A worker says that it is there, in a thread of its own, also while it works
    _PULSE = "pulse"

    def __init__(self, make: Callable[[torch.device], Callable[..., Any]], size: Workers) -> None:
        self._ray = connected()
        self._size = size
        kind = self._ray.remote(
            num_cpus=size.cpus,
            num_gpus=size.gpus,
            max_restarts=-1,
            max_task_retries=RETRIES,
            max_concurrency=1,
            concurrency_groups={self._PULSE: 1},
        )(_Worker)
        self._workers = [kind.remote(Luggage.of(make), size.gpus > 0) for _ in range(size.count)]
        self._all_there("did not start")

    def __len__(self) -> int:
        return len(self._workers)

    def share(self, value: Any) -> Any:
        """A value that calls pass on: it is sent to a machine once."""
        return self._ray.put(value)

    def shares(self, values: Iterable[int]) -> list[list[int]]:
        """These values, in their order, in equal parts, one for each worker; none is empty."""
        return [part.tolist() for part in torch.tensor([*values]).tensor_split(len(self)) if len(part)]

    def calls(self, asked: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """The answers to these arguments, in their order, each as soon as it is there. Workers take turns.

        Raises ValueError with what a call has raised.
        """
        waiting = [self._workers[i % len(self)].do.remote(*arguments) for i, arguments in enumerate(asked)]
        for answer in waiting:
            while not self._ray.wait([answer], timeout=PATIENCE)[0]:
                self._all_there("lost, and did not start again,")
            yield self._heard(answer)

    def _all_there(self, otherwise: str) -> None:
        """Wait until every worker says that it is there. Raises ValueError if one does not."""
        pulses = [worker.ready.options(concurrency_group=self._PULSE).remote() for worker in self._workers]
        there, missing = self._ray.wait(pulses, num_returns=len(pulses), timeout=PATIENCE)
        for pulse in there:
            self._heard(pulse)
        if missing:
            has = {name: n for name, n in self._ray.cluster_resources().items() if name in ("CPU", "GPU")}
            raise ValueError(
                f"the Ray cluster, of {has}, {otherwise} {len(missing)} of {len(self)} workers of {self._size.cpus:g} "
                f"cpus and {self._size.gpus:g} gpus within {PATIENCE / 60:.0f} minutes"
            )

    def _heard(self, answer: Any) -> Any:
        try:
            return self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as problem:
            raise ValueError(reason(problem)) from problem
        except self._ray.exceptions.RayActorError as problem:
            raise ValueError(
                f"a worker could not be started, or was lost again and again: {reason(problem)}"
            ) from problem
        except self._ray.exceptions.RayError as problem:  # of what a worker has answered, or of its machine
            raise ValueError(f"the Ray cluster lost an answer: {reason(problem)}") from problem


@dataclass(frozen=True)
class Luggage:
    """Something that is opened in another process, which finds modules and files where this one does."""

    packed: bytes
    path: Sequence[str]  # where modules are
    place: Path  # where files are that are named without one

    @staticmethod
    def of(thing: Any) -> Luggage:
        cloudpickle: Any = import_module("ray.cloudpickle")  # which packs lambdas and what __main__ defines
        return Luggage(cloudpickle.dumps(thing), [str(Path(place).resolve()) for place in sys.path], Path.cwd())

    def opened(self) -> Any:
        sys.path.extend(place for place in self.path if place not in sys.path)
        if self.place.is_dir():
            os.chdir(self.place)
        return pickle.loads(self.packed)


class _Worker:
    """The actor."""

    def __init__(self, make: Luggage, accelerated: bool) -> None:
        self._work = make.opened()(first_device() if accelerated else torch.device("cpu"))

    def ready(self) -> None: ...

    def do(self, *arguments: Any) -> Any:
        return self._work(*arguments)


def reason(problem: BaseException) -> str:
    """What went wrong in a worker, without the way it came: a ValueError's own sentence, or the kind and its words."""
    cause = getattr(problem, "cause", None) or problem.__cause__
    if isinstance(cause, BaseException):
        return reason(cause)
    return str(problem) if isinstance(problem, ValueError) else f"{type(problem).__name__}: {problem}"


def connected(log: bool = False) -> Any:
    """The module ray, after joining or starting a cluster. Raises ValueError if it is not installed.

    log  show here what workers print
    """
    try:
        import ray
    except ImportError as problem:
        raise ValueError("workers on a Ray cluster need ray: pip install 'burnish[ray]'") from problem
    if not ray.is_initialized():
        one = "auto" if processes() > 1 else None  # or each of them would start one, of the same cores
        with same_signals():
            try:
                quiet = ray.LoggingConfig(log_level="ERROR")  # without its dashboard Ray warns every second
                ray.init(one, log_to_driver=log, logging_level=logging.ERROR, logging_config=quiet)
            except ConnectionError as problem:
                raise ValueError("several processes need one Ray cluster; `ray start --head` starts it") from problem
    return ray


@contextmanager
def same_signals() -> Iterator[None]:
    """A block after which signals do what they did before: Ray takes some of them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
