"""Does a long run stay as it is? Memory, file descriptors and threads of 2,000 steps, looked at from outside.

    python benchmarks/soak.py                                       # scenes/flow_grpo in its smallest steps
    python benchmarks/soak.py scenes/ar_grpo --steps 2000 source.on_policy.per_step=1

Every `--every` steps the process is looked at through /proc (Linux). In the first quarter pools and caches
fill; growth is that of the rest, by least squares. Exits with status 1 if memory grows by more than `--most` kB a step,
or if descriptors or threads do not stay.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SMALL = {
    "scenes/flow_grpo": [
        "source.on_policy.per_step=1",
        "source.on_policy.plan.all_steps.group=2",
        "source.on_policy.plan.all_steps.steps=3",
        "source.on_policy.plan.all_steps.evaluation_steps=3",
        "suites.heldout.scenes.count=2",
        "samples_every=50",
        "evaluate_every=100",
    ]
}


def looked_at(pid: int) -> dict[str, int]:
    """Of a process: memory in kB, descriptors, threads. Raises FileNotFoundError if it has ended."""
    place = Path(f"/proc/{pid}")
    told = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
    return {
        "memory": int(told["VmRSS"].split()[0]),
        "descriptors": len(list((place / "fd").iterdir())),
        "threads": int(told["Threads"]),
    }


def soaked(name: str, changes: list[str], steps: int, every: int) -> list[dict[str, int]]:
    """What was seen along a run. Raises RuntimeError, with its last words, for a run that failed."""
    found: list[dict[str, int]] = []
    with TemporaryDirectory() as home:
        folder, log = Path(home) / "run", Path(home) / "log"
        command = [sys.executable, "-m", "burnish", "train", name, *changes, f"steps={steps}", "--folder", str(folder)]
        with log.open("w") as out:
            child = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"})
        metrics = folder / "metrics.jsonl"
        while child.poll() is None:
            done = sum(1 for _ in metrics.open()) - 1 if metrics.exists() else 0
            if done >= every * (len(found) + 1):
                try:
                    found.append({"step": done, **looked_at(child.pid)})
                except FileNotFoundError:
                    break
            time.sleep(0.2)
        if child.wait():
            raise RuntimeError(f"the run failed: {log.read_text()[-2000:]}")
    return found


def verdict(found: list[dict[str, int]], most: float) -> dict[str, Any]:
    """Growth a step after the first quarter, and whether it is none."""
    later = [one for one in found if one["step"] > found[-1]["step"] / 4]
    steps = [one["step"] for one in later]
    growth = statistics.linear_regression(steps, [one["memory"] for one in later]).slope
    stay = all(len({one[what] for one in later}) <= 2 for what in ("descriptors", "threads"))
    return {
        "steps": found[-1]["step"],
        "memory_kb": [later[0]["memory"], max(one["memory"] for one in later), later[-1]["memory"]],
        "growth_kb_a_step": round(growth, 3),
        "descriptors": sorted({one["descriptors"] for one in later}),
        "threads": sorted({one["threads"] for one in later}),
        "stays": growth <= most and stay,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?", default="scenes/flow_grpo")
    parser.add_argument("changes", nargs="*")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--most", type=float, default=1.0, help="kB a step")
    parser.add_argument("--json", type=Path)
    known = parser.parse_args()
    common = ["measures.clip=null", "checkpoint_every=100", "keep_checkpoints=2"]
    changes = [*SMALL.get(known.name, []), *common, *known.changes]
    began = time.monotonic()
    found = soaked(known.name, changes, known.steps, known.every)
    told = {"recipe": known.name, "changes": changes, **verdict(found, known.most)}
    told |= {"seconds": round(time.monotonic() - began), "seen": found}
    print(json.dumps({name: value for name, value in told.items() if name != "seen"}, indent=1))
    if known.json:
        known.json.write_text(json.dumps(told) + "\n")
    sys.exit(not told["stays"])


if __name__ == "__main__":
    main()
