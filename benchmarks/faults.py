"""Does a run come to the same end whatever befalls it? Kills and stalls of random processes at random moments.

    python benchmarks/faults.py                              # scenes/ar_grpo in small steps, 2 processes, 30 faults
    python benchmarks/faults.py --processes 1 --faults 50
    python benchmarks/faults.py scenes/flow_grpo             # any recipe of scenes that can draw groups of four

A run of real pictures is made once undisturbed. Then again, with faults: after a random while a random process (also
torchrun itself) is killed, or asked to stop, or stands still for two seconds, and the run is resumed if it ended. When
a run is done and faults are left, another begins. Every program has to end as one so struck should, within `--limit`
seconds, and every run with the metrics (but for timings) and the last checkpoint of the undisturbed one, bit for bit.
Exits with status 1 if one does not. Looks at processes through /proc (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from burnish.engine import checkpoint
from burnish.engine.reporter import TIMINGS
from burnish.recipe.encode import encode
from burnish.recipe.read import read

CHANGES = [
    "source.on_policy.per_step=2",
    "suites.heldout.scenes.count=4",
    "measures.clip=null",
    "checkpoint_every=3",
    "evaluate_every=10",
    "samples_every=5",
]
FAULTS = {"kill": signal.SIGKILL, "stop": signal.SIGTERM, "stall": signal.SIGSTOP}
# The statuses that a program may end with once it is struck: a lone process; and torchrun, which says 1 whatever ended
# one of its own. Nobody listens to SIGTERM at the very beginning and the very end: -15.
STATUSES = {
    "": ({0}, {0}),
    "stall": ({0}, {0}),
    "kill": ({0, -9}, {0, -9, 1}),
    "stop": ({0, 143, -15}, {0, -15, 1}),
}


def small(name: str) -> list[str]:
    """Changes that make the steps of a recipe small, whichever plan it draws by."""
    (plan,) = encode(read(name).source)["on_policy"]["plan"]
    return [*CHANGES, f"source.on_policy.plan.{plan}.group=4"]


@contextmanager
def started(name: str, steps: int, folder: Path, processes: int) -> Iterator[subprocess.Popen[str]]:
    """A run, which goes on where it was if there is one in the folder. Nothing of it is at work after the block."""
    resume = ["--resume"] if (folder / "recipe.yaml").exists() else []
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    words = ["burnish", "train", name, *small(name), f"steps={steps}", "--folder", str(folder), *resume]
    with subprocess.Popen(
        [sys.executable, "-m", *(launcher if processes > 1 else []), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as program:
        try:
            yield program
        finally:
            while left := at_work(folder):
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.1)


def at_work(folder: Path) -> list[int]:
    """The processes started for a folder. Those of torchrun are in groups of their own, and may outlive it."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if os.fsencode(folder) in (place / "cmdline").read_bytes().split(b"\0"):
                found.append(int(place.name))
    return sorted(found)


def heard(program: subprocess.Popen[str], seconds: float) -> str | None:
    """What a program said, once it and all that it started have ended. None if that takes longer."""
    try:
        return program.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        return None


def struck(folder: Path, fault: str, chance: random.Random) -> None:
    """Let something befall one of the run's processes. Nothing does if it has ended."""
    with suppress(IndexError, ProcessLookupError):
        pid = chance.choice(at_work(folder))
        os.kill(pid, FAULTS[fault])
        if fault == "stall":
            time.sleep(2)
            os.kill(pid, signal.SIGCONT)


def wrong(status: int, said: str | None, fault: str, processes: int) -> str:
    """What is wrong with the end of a program that `fault` befell, or nothing did: a sentence, empty if it is right."""
    what = f"a program after a {fault}" if fault else "an undisturbed program"
    if said is None:
        return f"{what} came to no end within --limit seconds, and was killed"
    expected = STATUSES[fault][processes > 1]
    if status in expected:
        return ""
    return f"{what} ended with status {status}, not one of {sorted(expected)}; it said: {said[-2000:]}"


def ended(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The metrics of a run without its timings, and its last checkpoint."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    newest = checkpoint.latest(folder)
    assert newest is not None, f"{folder} has no checkpoint"
    told = [{k: v for k, v in row.items() if not k.endswith(TIMINGS)} for row in rows]
    # what is untold in a checkpoint are metrics, timings among them, that the last line tells
    return told, {**vars(checkpoint.read(newest)), "seconds": None, "untold": None}


def difference(a: Any, b: Any, where: str = "") -> str:
    """Where two ends differ first, and how. Empty if they are equal, bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if torch.equal(a, b):
            return ""
        return f"{where}: {int((a != b).sum())} of {a.numel()} numbers" if a.shape == b.shape else f"{where}: shapes"
    if isinstance(a, dict) and isinstance(b, dict):
        odd = sorted(map(str, a.keys() ^ b.keys()))
        found = (difference(a[key], b[key], f"{where}.{key}") for key in a)
        return f"{where}: {', '.join(odd)} in one of them" if odd else next(filter(None, found), "")
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return f"{where}: {len(a)} and {len(b)} things"
        return next(filter(None, (difference(x, y, f"{where}[{i}]") for i, (x, y) in enumerate(zip(a, b)))), "")
    return "" if a == b else f"{where}: {a!r} and {b!r}"


def trial(name: str, steps: int, processes: int, faults: int, seed: int, limit: float) -> dict[str, Any]:
    """Raises RuntimeError, with its words, for a program that failed though nothing befell it."""
    chance, came, ends = random.Random(seed), Counter[str](), Counter[str]()
    began, same, failures = time.monotonic(), list[bool](), list[str]()
    with TemporaryDirectory() as home:
        calm = Path(home) / "calm"
        with started(name, steps, calm, processes) as program:
            said = heard(program, limit)
        if failure := wrong(program.returncode, said, "", processes):
            raise RuntimeError(failure)
        whole, expected = time.monotonic() - began, ended(calm)
        while sum(came.values()) < faults:
            rough, status, failure = Path(home) / f"rough-{len(same)}", -1, ""
            while status and not failure:
                fault = chance.choice(list(FAULTS)) if sum(came.values()) < faults else ""
                with started(name, steps, rough, processes) as program:
                    said = heard(program, chance.uniform(0, whole) if fault else limit)
                    if said is not None:
                        fault = ""  # it ended before
                    elif fault:
                        struck(rough, fault, chance)
                        came[fault] += 1
                        said = heard(program, limit)
                status = program.returncode
                ends["no end" if said is None else f"status {status}"] += 1
                failure = wrong(status, said, fault, processes)
                if failure and not fault and said is not None:
                    raise RuntimeError(failure)
            if not failure and (apart := difference(ended(rough), expected, "end")):
                failure = f"run {len(same)} is another than the undisturbed one: {apart}"
            failures += [failure] if failure else []
            same.append(not failure)
    return {
        "recipe": name,
        "steps": steps,
        "processes": processes,
        "faults": dict(came),
        "ends": dict(ends),
        "failures": failures,
        "runs": len(same),
        "equal": sum(same),
        "seconds": round(time.monotonic() - began),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?", default="scenes/ar_grpo")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=900, help="seconds in which a program has to end")
    parser.add_argument("--json", type=Path)
    known = parser.parse_args()
    told = trial(known.name, known.steps, known.processes, known.faults, known.seed, known.limit)
    print(json.dumps(told, indent=1))
    if known.json:
        known.json.write_text(json.dumps(told) + "\n")
    sys.exit(told["equal"] < told["runs"])


if __name__ == "__main__":
    main()
