"""How near is what `burnish check --rehearse` says to what `burnish bench` measures?

    python benchmarks/rehearsal.py                                    # the recipes of RECIPES, one thread
    python benchmarks/rehearsal.py scenes/flow_grpo --rounds 5 optim.micro=4

In each round a rehearsal and a bench of one step, in processes of their own, one after the other; ratios of the two are
of one round, and their median counts. Where plans differ from step to step both are of the second. Memory is what is
held most, less what was held before anything was loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

RECIPES = ("scenes/ar_grpo", "scenes/flow_grpo", "scenes/mixgrpo", "scenes/awm", "scenes/ddpo", "scenes/draft")

REHEARSED = """
from burnish.engine.rehearsal import rehearse
found = rehearse(recipe)
print(json.dumps({"seconds": found.steps.get(2, found.seconds), "memory": found.memory}))
"""
MEASURED = """
from burnish.engine.bench import bench
found = bench(recipe, steps=1)
print(json.dumps({"seconds": found.stages["step"].seconds, "memory": found.memory}))
"""
FIRST = """
import json, sys
from dataclasses import replace
from burnish.recipe.read import read
recipe = replace(read(sys.argv[1], sys.argv[2:]), suites={}, measures={}, steps=3)
"""


def told(code: str, name: str, changes: list[str]) -> dict[str, float]:
    command = [sys.executable, "-c", FIRST + code, name, *changes]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="")
    parser.add_argument("changes", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    known = parser.parse_intermixed_args()
    found = {}
    for name in [known.recipe] if known.recipe else RECIPES:
        rounds = [
            (told(REHEARSED, name, known.changes), told(MEASURED, name, known.changes)) for _ in range(known.rounds)
        ]
        words, found[name] = [], {}
        for what, unit, size in (("seconds", "s", 1.0), ("memory", "GB", 1e9)):
            ratio = statistics.median(ours[what] / theirs[what] for ours, theirs in rounds)
            ours, theirs = (statistics.median(pair[i][what] for pair in rounds) / size for i in (0, 1))
            found[name][what] = {"said": ours, "measured": theirs, "ratio": ratio}
            words.append(f"{what} {ours:.2f} {unit} for {theirs:.2f}: {ratio:.3f}")
        print(f"{name}: {'; '.join(words)} (medians of {known.rounds})", flush=True)
    if known.json:
        settings = {"rounds": known.rounds, "changes": known.changes, "threads": 1}
        known.json.write_text(json.dumps({**settings, "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
