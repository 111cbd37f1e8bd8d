"""The evidence runs: what the recipes of the embedded world do, over seeds, as tables in docs/evidence.

    python benchmarks/evidence.py run verified --seeds 0 1 2 3 4        # into runs/evidence, 2 at a time with --jobs 2
    python benchmarks/evidence.py table                                 # docs/evidence from what was run

Studies: verified (the verifier is the reward), laws (the same with law conditional instead of sampled, as AR-GRPO is
released), rewards (the paper's three kinds of learned reward), classes (class-conditional, with FID and recall).
A run that is finished is not run again; a run that was cut off is gone on with. What a run came to is kept in
docs/evidence/STUDY.json, from which the tables are made: they can be gone on with on another machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

RELEASED = ["source.on_policy.plan.every_token.law=conditional", "objective.ppo_clip.anchor=recomputed"]
STUDIES = {
    "verified": ("scenes/ar_grpo_verified", []),
    "laws": ("scenes/ar_grpo_verified", RELEASED),
    "rewards": ("scenes/ar_grpo", []),
    "classes": ("scenes/ar_grpo_c2i", []),
}
RUNS, TABLES = Path("runs/evidence"), Path("docs/evidence")


def run(study: str, seed: int, threads: int, extra: list[str]) -> None:
    """One run, as a user would start it."""
    recipe, overrides = STUDIES[study]
    folder = RUNS / f"{study}-{seed}"
    if (folder / "summary.json").exists():
        return
    command = [sys.executable, "-m", "burnish", "train", recipe, f"seed={seed}", *overrides, *extra]
    command += ["--folder", str(folder), *(["--resume"] if (folder / "recipe.yaml").exists() else [])]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (RUNS / f"{study}-{seed}.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": str(threads)})


def result(folder: Path) -> dict[str, Any]:
    """What a finished run came to."""
    facts, around = (json.loads((folder / name).read_text()) for name in ("summary.json", "environment.json"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    gaps = [line["update/law_gap"] for line in lines if line.get("update/law_gap") is not None]
    return {
        "suites": facts["suites"],
        "law_gap": {"first": gaps[0], "median": statistics.median(gaps), "most": max(gaps)},
        "seconds": round(facts["seconds"]),
        **{name: around[name] for name in ("commit", "cpu", "torch")},
    }


def collect(study: str) -> dict[int, dict[str, Any]]:
    """Results by seed: those kept, and those of runs that are here, which are kept from now on."""
    kept = TABLES / f"{study}.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for summary in RUNS.glob(f"{study}-*/summary.json"):
        found[summary.parent.name.rsplit("-", 1)[1]] = result(summary.parent)
    found = {seed: found[seed] for seed in sorted(found, key=int)}
    if found:
        kept.write_text(json.dumps(found, indent=1) + "\n")
    return {int(seed): facts for seed, facts in found.items()}


def table(study: str, found: dict[int, dict[str, Any]]) -> str:
    """Markdown: for every seed each suite metric before, after, difference and its interval; then over seeds."""
    recipe, overrides = STUDIES[study]
    text = [f"# {study}", "", f"`burnish train {' '.join([recipe, *overrides])} seed=N`", ""]
    text += [
        "| seed | metric | before | after | difference | 95 % interval | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    differences: dict[str, list[float]] = {}
    for seed, facts in found.items():
        for suite, metrics in facts["suites"].items():
            for name, m in metrics.items():
                differences.setdefault(f"{suite}/{name}", []).append(m["difference"])
                interval = "" if m["ci_low"] is None else f"{m['ci_low']:+.4f} to {m['ci_high']:+.4f}"
                numbers = " | ".join([f"{m['base']:.4f}", f"{m['tuned']:.4f}", f"{m['difference']:+.4f}"])
                text.append(f"| {seed} | {suite}/{name} | {numbers} | {interval} | {m['verdict']} |")
    text += ["", "| metric | seeds | mean difference | least | most |", "|---|---|---|---|---|"]
    for name, values in differences.items():
        spread = f"{min(values):+.4f} | {max(values):+.4f}"
        text.append(f"| {name} | {len(values)} | {statistics.fmean(values):+.4f} | {spread} |")
    text += ["", "| seed | law gap, first step | median | largest | seconds |", "|---|---|---|---|---|"]
    for seed, facts in found.items():
        shown = " | ".join(f"{facts['law_gap'][name]:.2e}" for name in ("first", "median", "most"))
        text.append(f"| {seed} | {shown} | {facts['seconds']} |")
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("study", choices=STUDIES)
    runner.add_argument("overrides", nargs="*", default=[])
    runner.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runner.add_argument("--jobs", type=int, default=2)
    runner.add_argument("--threads", type=int, default=1, help="of each job")
    commands.add_parser("table")
    known = parser.parse_args()
    if known.command == "run":
        with ThreadPoolExecutor(known.jobs) as jobs:
            list(jobs.map(lambda seed: run(known.study, seed, known.threads, known.overrides), known.seeds))
        return
    TABLES.mkdir(parents=True, exist_ok=True)
    for study in STUDIES:
        if found := collect(study):
            (TABLES / f"{study}.md").write_text(table(study, found))
            print(TABLES / f"{study}.md")


if __name__ == "__main__":
    main()
