"""Checkpoints that are whole or not there.

    checkpoints/step-000050/weights.safetensors   policy.state(): trainable weights and their copies
                            optimiser.pt          moments of AdamW (torch.save, read with weights_only=True)
                            memory.pt             what advantage and objective remember (likewise), if they do
                            state.json            format, step, updates, seconds, torch's random state (base64), digest
                                                  of the prompts, metrics not yet told, digests of the files

A checkpoint is written beside the others under a name nobody reads, synced, and then renamed; one that goes is first
renamed back to such a name. Noise and the order of samples are keyed by (seed, step), so there is no position of a
source, and no stream but torch's own, to keep.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = "burnish-checkpoint/1"
WEIGHTS, OPTIMISER, MEMORY, STATE = "weights.safetensors", "optimiser.pt", "memory.pt", "state.json"
PARTIAL, REMOVED = ".partial", ".removed"  # a dot, the checkpoint's name and one of these: being written, or going


@dataclass(frozen=True)
class Checkpoint:
    """All that is needed to go on after `step` as if nothing had happened."""

    step: int  # steps that are done
    updates: int  # optimiser updates that are done
    seconds: float  # spent so far, over all resumptions
    weights: Mapping[str, Tensor]  # policy.state()
    optimiser: Mapping[str, Any]  # state_dict of the optimiser
    random: Tensor  # torch.get_rng_state()
    memory: Mapping[str, Any] = field(default_factory=dict)  # Memory.state() of every component that remembers
    prompts: str = ""  # digest of what the source asks about; empty in checkpoints that are older than it
    untold: Mapping[str, float] | None = None  # metrics of `step`, if it was still to be evaluated and reported


def write(run: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Save under run/checkpoints, and remove all but the newest `keep`. Older ones go only once this one is whole.

    Raises ValueError if it cannot be written (disk full); what was there before is untouched. What cannot be removed
    (busy, or somebody else's) is a warning, and the next call tries again.
    """
    home = run / "checkpoints"
    final = home / f"step-{checkpoint.step:06d}"
    beside = home / f".{final.name}{PARTIAL}"
    assert not final.exists(), f"{final} was written twice"
    try:
        home.mkdir(parents=True, exist_ok=True)
        for left in (*home.glob(f".*{PARTIAL}"), *home.glob(f".*{REMOVED}")):  # of a run that was killed, or busy then
            _remove(left)
        beside.mkdir()
        _fill(beside, checkpoint)
        _sync(beside)
        beside.rename(final)
        _sync(home)
    except (OSError, RuntimeError, SafetensorError) as problem:
        shutil.rmtree(beside, ignore_errors=True)
        last = latest(run)
        stays = f"{last.name} is whole" if last else "there is no earlier one"
        raise ValueError(f"could not save {final}: {problem}; {stays}. Free some space and resume the run") from problem
    for old in _all(run)[: -max(1, keep)]:
        _remove(old, home / f".{old.name}{REMOVED}")
    return final


def _remove(folder: Path, aside: Path | None = None) -> None:
    """Remove a folder, under another name if one is given, so that half of it is never read. A failure is a warning."""
    try:
        shutil.rmtree(folder.rename(aside) if aside else folder)
    except OSError as problem:
        warnings.warn(f"{folder} takes room, and could not be removed: {problem}", RuntimeWarning, stacklevel=2)


class Writer:
    """Writes the checkpoints of a run beside its steps: one at a time, in their order, on a thread of its own.

    Leaving the block waits for the one that is being written, and raises what became of it unless worse happened.
    """

    def __init__(self, run: Path, keep: int) -> None:
        self._run, self._keep = run, keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._last: Future[Path] | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if problem is None:
            self.wait()

    def write(self, checkpoint: Checkpoint) -> None:
        """Begin to save it, as it is now: moments and memories are copied, and may change from here on.

        Weights are not: Policy.state gives fresh ones. Raises as `wait` does.
        """
        self.wait()
        now = replace(
            checkpoint, **{name: _copied(getattr(checkpoint, name)) for name in ("optimiser", "memory", "random")}
        )
        self._last = self._thread.submit(write, self._run, now, self._keep)

    def wait(self) -> None:
        """Until the last one is whole. Raises ValueError if it could not be written."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def look(self) -> None:
        """Raises what `wait` would if that is known by now, and does not wait."""
        if self._last is not None and self._last.done():
            self.wait()


def _copied(value: Any) -> Any:
    """The same in main memory, with tensors that nobody else has."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: _copied(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(one) for one in value)
    return value


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    return next(reversed(_all(run)), None)


def read(folder: Path) -> Checkpoint:
    """Raises ValueError, naming the file, for a checkpoint that is cut short, changed, or somebody else's."""
    for name in (STATE, WEIGHTS, OPTIMISER):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not a checkpoint of Burnish: it has no {name}{_instead(folder)}")
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise ValueError(f"{folder / STATE} is damaged: {problem}{_instead(folder)}") from problem
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(
            f"{folder / STATE} does not say {FORMAT!r}: it was not written by this Burnish{_instead(folder)}"
        )
    for name, digest in state["digests"].items():
        if not (folder / name).is_file() or _digest(folder / name) != digest:
            raise ValueError(f"{folder / name} is damaged: it is not what was written{_instead(folder)}")
    try:
        weights = load_file(folder / WEIGHTS)
        optimiser = torch.load(folder / OPTIMISER, weights_only=True, map_location="cpu")
        remembers = MEMORY in state["digests"]
        memory = torch.load(folder / MEMORY, weights_only=True, map_location="cpu") if remembers else {}
    except (SafetensorError, pickle.UnpicklingError, RuntimeError) as problem:
        raise ValueError(f"{folder} cannot be read: {problem}{_instead(folder)}") from problem
    random = torch.frombuffer(bytearray(base64.b64decode(state["random"])), dtype=torch.uint8)
    return Checkpoint(
        state["step"],
        state["updates"],
        state["seconds"],
        weights,
        optimiser,
        random,
        memory,
        state.get("prompts", ""),
        state.get("untold"),
    )


def _fill(folder: Path, checkpoint: Checkpoint) -> None:
    save_file(dict(checkpoint.weights), folder / WEIGHTS)
    with (folder / OPTIMISER).open("wb") as file:
        torch.save(dict(checkpoint.optimiser), file)
    if checkpoint.memory:
        with (folder / MEMORY).open("wb") as file:
            torch.save(dict(checkpoint.memory), file)
    state = {
        "format": FORMAT,
        "step": checkpoint.step,
        "updates": checkpoint.updates,
        "seconds": checkpoint.seconds,
        "random": base64.b64encode(checkpoint.random.numpy().tobytes()).decode(),
        "prompts": checkpoint.prompts,
        "untold": checkpoint.untold,
        "digests": {name: _digest(folder / name) for name in (WEIGHTS, OPTIMISER, MEMORY) if (folder / name).exists()},
    }
    (folder / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")


def _sync(folder: Path) -> None:
    """Hand the files of a folder, and the folder itself, to the disk."""
    for path in [*(p for p in folder.iterdir() if p.is_file()), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _all(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first. Unfinished ones have another name."""
    home = run / "checkpoints"
    found = [p for p in home.iterdir() if _step(p) >= 0] if home.is_dir() else []
    return sorted(found, key=_step)


def _step(folder: Path) -> int:
    """The step after which a checkpoint was written, by its name; -1 for a name of something else."""
    found = re.fullmatch(r"step-(\d{6,})", folder.name)
    return int(found[1]) if found else -1


def _instead(folder: Path) -> str:
    """What would have worked: an older checkpoint, if there is one."""
    older = [p for p in _all(folder.parent.parent) if _step(p) < _step(folder)]
    return f". Remove that folder, and a resume goes on from {older[-1].name}" if older else ""
