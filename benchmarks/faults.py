"""Does a run come to the same end whatever befalls it? Kills and stalls of random processes at random moments.

    python benchmarks/faults.py                              # scenes/ar_grpo in small steps, 2 processes, 30 faults
    python benchmarks/faults.py --processes 1 --faults 50

A run of real pictures is made once undisturbed. Then again, with faults: after a random while a random process (also
torchrun itself) is killed, or asked to stop, or stands still for two seconds, and the run is resumed if it ended. When
a run is done and faults are left, another begins. Every run has to end, its metrics (but for timings) and its last
checkpoint those of the undisturbed one, bit for bit. Exits with status 1 if they are not.
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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from burnish.engine import checkpoint
from burnish.engine.reporter import TIMINGS

CHANGES = [
    "source.on_policy.per_step=2",
    "source.on_policy.plan.every_token.group=4",
    "suites.heldout.scenes.count=4",
    "measures.clip=null",
    "checkpoint_every=3",
    "evaluate_every=10",
    "samples_every=5",
]
FAULTS = {"kill": signal.SIGKILL, "stop": signal.SIGTERM, "stall": signal.SIGSTOP}


def started(name: str, steps: int, folder: Path, processes: int) -> subprocess.Popen[str]:
    """A run, which goes on where it was if there is one in the folder."""
    resume = ["--resume"] if (folder / "recipe.yaml").exists() else []
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    words = ["burnish", "train", name, *CHANGES, f"steps={steps}", "--folder", str(folder), *resume]
    return subprocess.Popen(
        [sys.executable, "-m", *(launcher if processes > 1 else []), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def members(pid: int) -> list[int]:
    """A process and all below it."""
    below = Path(f"/proc/{pid}/task/{pid}/children")
    return [pid, *(one for child in below.read_text().split() for one in members(int(child)))]


def struck(program: subprocess.Popen[str], fault: str, chance: random.Random) -> None:
    """Let something befall one of the run's processes. Nothing does if it has ended."""
    try:
        pid = chance.choice(members(program.pid))
        os.kill(pid, FAULTS[fault])
        if fault == "stall":
            time.sleep(2)
            os.kill(pid, signal.SIGCONT)
    except (FileNotFoundError, ProcessLookupError):
        return


def ended(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The metrics of a run without its timings, and its last checkpoint."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    newest = checkpoint.latest(folder)
    assert newest is not None, f"{folder} has no checkpoint"
    told = [{k: v for k, v in row.items() if not k.endswith(TIMINGS)} for row in rows]
    return told, {**vars(checkpoint.read(newest)), "seconds": None}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def trial(name: str, steps: int, processes: int, faults: int, seed: int) -> dict[str, Any]:
    chance, came, ends = random.Random(seed), Counter[str](), Counter[str]()
    began, same = time.monotonic(), []
    with TemporaryDirectory() as home:
        calm = Path(home) / "calm"
        program = started(name, steps, calm, processes)
        said, _ = program.communicate()
        if program.returncode:
            raise RuntimeError(said)
        whole, expected = time.monotonic() - began, ended(calm)
        while sum(came.values()) < faults:
            rough = Path(home) / f"rough-{len(same)}"
            while not (rough / "summary.json").exists():
                program = started(name, steps, rough, processes)
                if disturbed := sum(came.values()) < faults:
                    time.sleep(chance.uniform(0, whole))
                    fault = chance.choice(list(FAULTS))
                    came[fault] += program.poll() is None
                    struck(program, fault, chance)
                said, _ = program.communicate(timeout=20 * whole)
                ends[sort_of(program.returncode, said)] += 1
                if program.returncode and not disturbed:
                    raise RuntimeError(said)
            same.append(equal(ended(rough), expected))
    return {
        "recipe": name,
        "steps": steps,
        "processes": processes,
        "faults": dict(came),
        "ends": dict(ends),
        "runs": len(same),
        "equal": sum(same),
        "seconds": round(time.monotonic() - began),
    }


def sort_of(status: int, said: str) -> str:
    """How a program ended."""
    return "refused: another is at work" if "is still at work on this run" in said else f"status {status}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?", default="scenes/ar_grpo")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    known = parser.parse_args()
    told = trial(known.name, known.steps, known.processes, known.faults, known.seed)
    print(json.dumps(told, indent=1))
    if known.json:
        known.json.write_text(json.dumps(told) + "\n")
    sys.exit(told["equal"] < told["runs"])


if __name__ == "__main__":
    main()
