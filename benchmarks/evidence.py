"""The evidence runs: what the recipes of the embedded world do, over seeds, as tables in docs/evidence.

    python benchmarks/evidence.py run verified --seeds 0 1 2 3 4        # into runs/evidence, 2 at a time with --jobs 2
    python benchmarks/evidence.py table                                 # docs/evidence/*.md from what was run

Studies: verified (the verifier is the reward), laws (the same with law conditional instead of sampled, as AR-GRPO is
released), rewards (the paper's three kinds of learned reward), classes (class-conditional, with FID and recall).
A run that is finished is not run again; a run that was cut off is gone on with.
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


def rows(study: str) -> list[tuple[int, dict, list[dict]]]:
    """Seed, summary and metrics of every finished run of a study."""
    found = []
    for folder in sorted(RUNS.glob(f"{study}-*/summary.json")):
        lines = (folder.parent / "metrics.jsonl").read_text().splitlines()
        seed = int(folder.parent.name.rsplit("-", 1)[1])
        found.append((seed, json.loads(folder.read_text()), [json.loads(line) for line in lines]))
    return found


def table(study: str) -> str:
    """Markdown: for every seed each suite metric before, after, difference and its interval; then over seeds."""
    found = rows(study)
    recipe, overrides = STUDIES[study]
    text = [f"# {study}", "", f"`burnish train {' '.join([recipe, *overrides])} seed=N`", ""]
    text += [
        "| seed | metric | before | after | difference | 95 % interval | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    differences: dict[str, list[float]] = {}
    for seed, facts, _ in found:
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
    text += ["", "| seed | law gap, first step | law gap, median | law gap, last | seconds |", "|---|---|---|---|---|"]
    for seed, facts, lines in found:
        gaps = [line["update/law_gap"] for line in lines if line.get("update/law_gap") is not None]
        shown = " | ".join(f"{g:.2e}" for g in (gaps[0], statistics.median(gaps), gaps[-1]))
        text.append(f"| {seed} | {shown} | {facts['seconds']:.0f} |")
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
        if rows(study):
            (TABLES / f"{study}.md").write_text(table(study))
            print(TABLES / f"{study}.md")


if __name__ == "__main__":
    main()
