"""Does a long run stay as it is? Memory, file descriptors and threads of 2,000 steps, looked at from outside.

    python benchmarks/soak.py                                       # scenes/flow_grpo in its smallest steps
    python benchmarks/soak.py scenes/ar_grpo --steps 2000 source.on_policy.per_step=1

Every `--every` steps the process is looked at through /proc (Linux). In the first quarter pools and caches fill; of
the rest the last third is compared with the first, each by the least that was seen in it, so that what passes (a
checkpoint on its way to the disk) does not count, and what is kept does. Exits with status 1 if memory grows by more
than `--most` kB a step, or if the fewest descriptors or threads are more than they were.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import suppress
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
    """Of a process: memory in kB, descriptors, threads. Raises KeyError or FileNotFoundError if it has ended."""
    place = Path(f"/proc/{pid}")
    told = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
    return {
        "memory": int(told["VmRSS"].split()[0]),
        "descriptors": len(list((place / "fd").iterdir())),
        "threads": int(told["Threads"]),
    }


def soaked(name: str, changes: list[str], steps: int, every: int, limit: float) -> list[dict[str, int]]:
    """What was seen along a run. Raises RuntimeError, with its last words, for one that fails or stands still."""
    found: list[dict[str, int]] = []
    with TemporaryDirectory() as home:
        folder, log = Path(home) / "run", Path(home) / "log"
        command = [sys.executable, "-m", "burnish", "train", name, *changes, f"steps={steps}", "--folder", str(folder)]
        with log.open("w") as out:
            child = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            metrics, last, moved = folder / "metrics.jsonl", 0, time.monotonic()
            while child.poll() is None:
                done = len(metrics.read_bytes().splitlines()) - 1 if metrics.exists() else 0
                if done > last:
                    last, moved = done, time.monotonic()
                if time.monotonic() - moved > limit:
                    raise RuntimeError(f"nothing came after step {last} in {limit:g} s: {log.read_text()[-2000:]}")
                if done >= every + (found[-1]["step"] if found else 0):
                    with suppress(KeyError, FileNotFoundError):
                        found.append({"step": done, **looked_at(child.pid)})
                time.sleep(0.2)
        finally:
            child.kill()
            child.wait()
        if child.returncode:
            raise RuntimeError(f"the run failed: {log.read_text()[-2000:]}")
    return found


def verdict(found: list[dict[str, int]], most: float) -> dict[str, Any]:
    """Growth a step after the first quarter, and whether it is none. Exits with a sentence if too little was seen."""
    later = [one for one in found if one["step"] > found[-1]["step"] / 4]
    third = len(later) // 3
    if not third:
        sys.exit(
            f"{len(later)} looks after the first quarter, where 3 are needed: have more --steps, or look more often"
        )
    first, last = later[:third], later[-third:]
    steps = statistics.median(one["step"] for one in last) - statistics.median(one["step"] for one in first)
    memory = min(one["memory"] for one in last) - min(one["memory"] for one in first)
    risen = [
        what for what in ("descriptors", "threads") if min(one[what] for one in last) > min(one[what] for one in first)
    ]
    return {
        "steps": found[-1]["step"],
        "memory_kb": [later[0]["memory"], max(one["memory"] for one in later), later[-1]["memory"]],
        "growth_kb_a_step": round(memory / steps, 3),
        "descriptors": sorted({one["descriptors"] for one in later}),
        "threads": sorted({one["threads"] for one in later}),
        "risen": risen,
        "stays": memory / steps <= most and not risen,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?", default="scenes/flow_grpo")
    parser.add_argument("changes", nargs="*")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--most", type=float, default=1.0, help="kB a step")
    parser.add_argument("--limit", type=float, default=900, help="seconds in which another step has to come")
    parser.add_argument("--json", type=Path)
    known = parser.parse_intermixed_args()
    common = ["measures.clip=null", "checkpoint_every=100", "keep_checkpoints=2"]
    changes = [*SMALL.get(known.name, []), *common, *known.changes]
    began = time.monotonic()
    found = soaked(known.name, changes, known.steps, known.every, known.limit)
    told = {"recipe": known.name, "changes": changes, **verdict(found, known.most)}
    told |= {"seconds": round(time.monotonic() - began), "seen": found}
    print(json.dumps({name: value for name, value in told.items() if name != "seen"}, indent=1))
    if known.json:
        known.json.write_text(json.dumps(told) + "\n")
    sys.exit(not told["stays"])


if __name__ == "__main__":
    main()
