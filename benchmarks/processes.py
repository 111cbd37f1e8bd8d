"""How much faster are two processes on two cores than one on one? Steps of a recipe by `burnish bench`, in turns.

    python benchmarks/processes.py                                    # the world's flow and raster model, 5 rounds
    python benchmarks/processes.py scenes/flow_grpo --count 2 --json FILE

As many cores as processes (taskset), and one thread in each; what is drawn in a step is the same in all. The share of
the ideal is seconds of one process over count times the seconds of several, for the whole step and for its stages.
Needs cores that nothing else uses: a process waits for the other at the end of each stage.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

RECIPES = {
    "scenes/flow_grpo": ["source.on_policy.per_step=8"],
    "scenes/ar_grpo_verified": ["source.on_policy.per_step=8"],
}
STAGES = ("draw", "update", "step")


def benched(name: str, changes: list[str], count: int, steps: int) -> dict[str, Any]:
    """What `burnish bench` keeps of so many processes."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "bench.json"
        cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[:count])
        start = [sys.executable, "-m"]
        if count > 1:
            start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m"]
        command = ["taskset", "-c", cores, *start, "burnish", "bench", name, *changes, "--steps", str(steps)]
        told = subprocess.run(
            [*command, "--json", str(out)], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        if told.returncode:
            raise SystemExit(told.stderr)
        return json.loads(out.read_text())["benches"][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="")
    parser.add_argument("changes", nargs="*")
    parser.add_argument("--count", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="timed in each round")
    parser.add_argument("--json", type=Path)
    known = parser.parse_intermixed_args()
    found = {}
    for name in [known.recipe] if known.recipe else RECIPES:
        changes = known.changes or RECIPES.get(name, [])
        rounds = [
            tuple(benched(name, changes, count, known.steps)["stages"] for count in (1, known.count))
            for _ in range(known.rounds)
        ]
        shares = {
            stage: [one[stage]["seconds"] / several[stage]["seconds"] / known.count for one, several in rounds]
            for stage in STAGES
        }
        found[name] = {
            "changes": changes,
            "seconds": {
                count: round(statistics.median(pair[i]["step"]["seconds"] for pair in rounds), 3)
                for i, count in enumerate((1, known.count))
            },
            "share of the ideal": {stage: round(statistics.median(each), 3) for stage, each in shares.items()},
            "rounds": [round(share, 3) for share in shares["step"]],
        }
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    if known.json:
        settings = {"count": known.count, "rounds": known.rounds, "steps": known.steps}
        known.json.write_text(json.dumps({**settings, "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
