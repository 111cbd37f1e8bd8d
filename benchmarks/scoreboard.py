"""The scoreboard: every method for denoisers on the embedded world, at equal network evaluations and equal wall time.

    python benchmarks/scoreboard.py run --seeds 0 1 2            # all of scenes/, into runs/scoreboard, 2 at a time
    python benchmarks/scoreboard.py run flow_grpo cps            # some
    python benchmarks/scoreboard.py pace                         # seconds of an evaluation, of all in one sitting
    python benchmarks/scoreboard.py table                        # docs/ideas/scoreboard.md

A run gets as many steps as spend `--budget` evaluations of the network: states drawn through, and states that an
update asks about, the reference's and older weights' too. A first run of one step tells what a step costs; where steps
differ so much that a run spends a tenth more or less than it should, it is made again. Runs may be made on several
machines and beside other work, so what an evaluation takes is timed for all recipes in one sitting, which is kept in
docs/evidence/pace.json: seconds of the processor, in drawing, scoring and updating, in the quicker of two steps.
What a run came to is kept in docs/evidence/scoreboard.json, with a digest of its recipe: a table can be gone on with on
another machine, a run of a recipe that has changed since is made again, and one of a recipe that two names have is not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from burnish.engine.reporter import write_text
from burnish.formulas.statistics import Interval, mean_interval

RUNS, KEPT, TABLE = Path("runs/scoreboard"), Path("docs/evidence/scoreboard.json"), Path("docs/ideas/scoreboard.md")
PACE = Path("docs/evidence/pace.json")
SUITE = "heldout"
TIMES = {"scenes/identity_grpo": 1.55}  # the budget of the others: more numbers of a video answer for a reward
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}  # half-width of 95 %, in standard errors, by runs
NEAR, TRIES = 0.1, 3  # share of the budget that a run may miss it by, and how often it is made for that
LOCK = threading.Lock()


def methods() -> list[str]:
    """Recipes of the embedded world whose policy is a denoiser."""
    from burnish.core import LatentPlan
    from burnish.recipe import read

    names = [name for name, _ in read.shipped() if name.startswith("scenes/")]
    return [name for name in names if isinstance(read.read(name).source.plan_at(1), LatentPlan)]


# --- running ---------------------------------------------------------------------------------------------------------


def train(folder: Path, name: str, overrides: list[str], threads: int) -> float:
    """One run, as a user would start it. Returns its largest memory, in MiB. Raises RuntimeError if it fails."""
    resumed = ["--resume"] if (folder / "recipe.yaml").exists() else []
    command = [sys.executable, "-m", "burnish", "train", name, *overrides, "--folder", str(folder), *resumed]
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    with log.open("w") as out:
        actions = [(os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_DUP2, out.fileno(), 2)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        child = os.posix_spawn(command[0], command, environment, file_actions=actions)
        _, status, used = os.wait4(child, 0)
    if status:
        raise RuntimeError(f"{name} failed; see {log}")
    return used.ru_maxrss / 1024


def cost(name: str, threads: int) -> float:
    """Evaluations of a training step: the mean of a whole run, if there is one, or by making a step."""
    if known := [facts["curve"][-1] for key, facts in read_kept().items() if key.rpartition("/")[0] == name]:
        return known[0]["evaluations"] / known[0]["step"]
    folder = RUNS / f"{name.partition('/')[2]}-cost"
    if not (folder / "summary.json").exists():
        train(folder, name, ["steps=1", f"suites.{SUITE}=null"], threads)
    return spent(lines(folder)[-1])


def pace(name: str, threads: int) -> dict[str, Any]:
    """Seconds of the processor that an evaluation of the network takes, with all that belongs to it."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        train(folder, name, ["steps=3", f"suites.{SUITE}=null"], threads)
        each = [line["step/cpu_seconds"] / spent(line) for line in lines(folder) if line["step"] > 1]
        cpu = json.loads((folder / "environment.json").read_text())["cpu"]
    return {"seconds": min(each), "recipe": digest(name), "cpu": cpu}


def run(name: str, seed: int, budget: float, threads: int) -> None:
    """A run of the whole budget, and what it came to."""
    key, recipe = f"{name}/{seed}", digest(name)
    kept = read_kept()
    if (known := kept.get(key)) and known.get("recipe", recipe) == recipe:
        return
    for other, facts in kept.items():
        if facts.get("recipe") == recipe and other.endswith(f"/{seed}"):
            keep({**kept, key: facts})
            print(f"{key}: is {other}, which the same recipe has made", flush=True)
            return
    budget *= TIMES.get(name, 1.0)
    each, made = cost(name, threads), set[int]()
    while (steps := max(3, round(budget / each))) not in made and len(made) < TRIES:
        made.add(steps)
        folder = RUNS / f"{name.partition('/')[2]}-{seed}-{steps}"
        every = math.ceil(steps / 3)
        overrides = [f"seed={seed}", f"steps={steps}", f"evaluate_every={every}", f"checkpoint_every={steps}"]
        memory = train(folder, name, overrides, threads)
        found = result(folder)
        each = found["curve"][-1]["evaluations"] / steps
        if abs(steps * each / budget - 1) < NEAR:
            break
    with LOCK:  # transformers reads weights in one thread at a time
        found |= {"memory": round(memory), "distance": round(distance(folder, name), 4), "recipe": recipe}
        keep({**read_kept(), key: found})
    print(f"{key}: {found['curve'][0]['verified']:.3f} -> {found['curve'][-1]['verified']:.3f}", flush=True)


def digest(name: str) -> str:
    """Of everything that the recipe says, its bases too."""
    from burnish.recipe.encode import encode
    from burnish.recipe.read import as_yaml, read

    return hashlib.sha256(as_yaml(encode(read(name))).encode()).hexdigest()[:12]


def keep(runs: dict[str, Any]) -> None:
    """One line a run, in the order of their names."""
    rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(runs[key])}" for key in sorted(runs))
    write_text(KEPT, f"{{\n{rows}\n}}\n")


def read_kept() -> dict[str, Any]:
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def spent(line: dict[str, Any]) -> float:
    return line.get("draw/evaluations", 0.0) + line.get("update/evaluations", 0.0)


def result(folder: Path) -> dict[str, Any]:
    """What a finished run came to: how success grew, and its two passes sample by sample."""
    evaluations = seconds = 0.0
    curve = []
    for line in lines(folder):
        evaluations += spent(line)
        seconds += line["step/cpu_seconds"] if line["step"] else 0.0
        if f"eval/{SUITE}_verified" in line:
            point = {what: round(line[f"eval/{SUITE}_{what}"], 4) for what in ("verified", "reward", "diversity")}
            curve.append({"step": line["step"], "evaluations": evaluations, "seconds": round(seconds, 1), **point})
    passes = [np.load(folder / "evaluations" / f"{SUITE}-{curve[i]['step']:06d}.npz") for i in (0, -1)]
    asked = [p["text"] for p in json.loads((folder / "evaluations" / f"{SUITE}-000000.json").read_text())["prompts"]]
    before, after = ("".join(str(int(bit)) for bit in values["verified"]) for values in passes)
    place = {text: number for number, text in enumerate(dict.fromkeys(asked))}
    gain = passes[1]["reward"] - passes[0]["reward"]
    around = json.loads((folder / "environment.json").read_text())
    return {
        "curve": curve,
        "before": before,
        "after": after,
        "prompt": [place[text] for text in asked],  # which samples are of one prompt
        "reward": [round(float(value), 3) for value in gain],  # gain of what is optimised, of each sample
        **{name: around[name] for name in ("commit", "cpu", "torch")},
    }


def distance(folder: Path, name: str, count: int = 64, steps: int = 8) -> float:
    """How far a tuned model is from its base: E |v - v_0|^2 / E |v_0|^2 along the base's own draws."""
    import torch

    from burnish.cli.runs import open_model
    from burnish.formulas.noise import Noise
    from burnish.worlds.scenes import grammar, moving

    base, tuned = open_model(name).policy, open_model(str(folder)).policy
    world = moving if len(base.network.shape) == 4 else grammar
    prompts, noise = world.heldout(count, 0), Noise(0, 0, tuple(range(count)), "distance")
    times = base.times(steps)
    x = base.network.start(noise.normal(base.network.shape, "start"), steps)
    far = size = 0.0
    with torch.no_grad():
        for t, s in pairwise(times):
            at = torch.full((count,), float(t))
            v, other = (policy.velocity(x, at, prompts) for policy in (base, tuned))
            far, size = far + float((other - v).square().mean()), size + float(v.square().mean())
            x = x + float(s - t) * v
    return far / size


# --- the table -------------------------------------------------------------------------------------------------------


def at(curve: list[dict[str, float]], evaluations: float) -> float:
    """Success after so many evaluations: between two passes, in proportion."""
    return float(np.interp(evaluations, [p["evaluations"] for p in curve], [p["verified"] for p in curve]))


def ends(found: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [facts["curve"][-1] for facts in found]


def table(kept: dict[str, Any]) -> str:
    by_method: dict[str, list[dict[str, Any]]] = {}
    for key, facts in sorted(kept.items()):
        by_method.setdefault(key.rpartition("/")[0], []).append(facts)
    runs = [facts for found in by_method.values() for facts in found]
    took = {name: each["seconds"] for name, each in json.loads(PACE.read_text()).items()}
    quickest = min(took[name] * one["evaluations"] for name, found in by_method.items() for one in ends(found))
    cheapest = min(facts["curve"][-1]["evaluations"] for facts in runs)
    rows = []
    for name, found in by_method.items():
        verified, rewarded = [bits(f["after"]) - bits(f["before"]) for f in found], [f["reward"] for f in found]
        gain, trained = (pooled(gains, found) for gains in (verified, rewarded))
        soon = statistics.fmean(at(f["curve"], quickest / took[name]) - f["curve"][0]["verified"] for f in found)
        last = ends(found)
        rows.append(
            (
                gain.mean,
                soon,
                [
                    f"`{name}`" + " \\*" * (name in TIMES),
                    f"{100 * statistics.fmean(f['curve'][0]['verified'] for f in found):.1f}",
                    f"**{100 * gain.mean:+.1f}** ({100 * gain.low:+.1f}..{100 * gain.high:+.1f})",
                    ", ".join(f"{100 * statistics.fmean(gains):+.1f}" for gains in verified),
                    f"{100 * soon:+.1f}",
                    f"**{trained.mean:+.3f}** ({trained.low:+.3f}..{trained.high:+.3f})",
                    ", ".join(f"{statistics.fmean(gains):+.3f}" for gains in rewarded),
                    f"{statistics.fmean(f['curve'][0]['diversity'] for f in found):.3f}"
                    f" -> {statistics.fmean(p['diversity'] for p in last):.3f}",
                    f"{statistics.fmean(facts['distance'] for facts in found):.4f}",
                    f"{statistics.fmean(p['step'] for p in last):.0f}",
                    f"{statistics.fmean(p['evaluations'] for p in last) / 1000:.1f}",
                    f"{took[name] * statistics.fmean(p['evaluations'] for p in last):.0f}",
                    f"{max(facts['memory'] for facts in found)}",
                ],
            )
        )
    sooner = {row[2][0]: place for place, row in enumerate(sorted(rows, key=lambda row: -row[1]), 1)}
    head = ["rank", "recipe", "before, %", "gain, points (95 %)", "each seed", f"gain in {quickest:.0f} s (rank)"]
    head += ["trained reward (95 %)", "each seed", "diversity", "distance", "steps", "evaluations, k", "s", "MiB"]
    text = ["# Scoreboard", "", " ".join(INTRODUCTION.split()).format(cheapest / 1000, quickest), ""]
    if len(runs) < (whole := 3 * len(methods())):
        text += [f"**Not finished**: {len(runs)} of {whole} runs.", ""]
    text += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for place, (_, _, cells) in enumerate(sorted(rows, key=lambda row: -row[0]), 1):
        cells[4] += f" ({sooner[cells[0]]})"
        text.append(f"| {place} | {' | '.join(cells)} |")
    return "\n".join([*text, "", f"{_over_seeds(by_method)} {_origin(kept)}"]) + "\n"


def _over_seeds(by_method: dict[str, list[dict[str, Any]]]) -> str:
    """Whose gain in the trained reward is above 0 as a mean of runs, of which there are few, and not of prompts."""
    gains = [[statistics.fmean(one["reward"]) for one in found] for found in by_method.values()]
    rises = sum(min(runs) > 0 for runs in gains)
    errors = [(runs, statistics.stdev(runs) / math.sqrt(len(runs))) for runs in gains if len(runs) in STUDENT]
    sure = sum(statistics.fmean(runs) > STUDENT[len(runs)] * error for runs, error in errors)
    return (
        f"The trained reward rises in all runs of {rises} of {len(gains)} recipes. Intervals above are over prompts, "
        f"for the runs that were made; over runs (Student's t) those of {sure} of {len(gains)} are above 0."
    )


def _origin(kept: dict[str, Any]) -> str:
    """How many runs say that they were made by the recipes of today."""
    names = sorted({key.rpartition("/")[0] for key in kept})
    now = {name: digest(name) for name in names}
    same = sum(facts.get("recipe") == now[key.rpartition("/")[0]] for key, facts in kept.items())
    unknown = sum("recipe" not in facts for facts in kept.values())
    return (
        f"Of {len(kept)} runs {same} have the digest of today's recipe, {unknown} have none, and "
        f"{len(kept) - same - unknown} that of an earlier form of it; their commits are in the evidence."
    )


INTRODUCTION = """Made by `python benchmarks/scoreboard.py run --seeds 0 1 2` and `table`. Verified success of 300
samples of held-out prompts, before and after the same number of network evaluations ({:.1f} thousand or a step more;
\\*, of videos, half as many again), with the 95 % paired interval over all seeds, clustered by prompt; then the gain
when {:.0f} seconds of a core had been spent, between two passes in proportion. Seconds are of one core, timed for all
recipes in one sitting (`pace`); ddpo and rl4med_ddpo are one recipe, and differ by the noise of that. Trained reward:
the gain, on the same held-out prompts, of what the recipe optimises, which is the share of the truth that is met, or
the score of its CLIP (alignprop, draft, refl, pref_grpo); diversity_reward is paid for the diversity of its sets above
all, and has a fiftieth of the truth beside it. Diversity is that of two samples of a prompt; distance is E |v - v_0|^2
/ E |v_0|^2 along the base's draws. Models of Stable Diffusion's and of Stable Diffusion 3's format begin from different
success: compare within one kind. What differs from the papers is in [surprises.md](surprises.md)."""


def bits(text: str) -> np.ndarray:
    return np.array([int(bit) for bit in text], float)


def pooled(gains: list[Any], found: list[dict[str, Any]]) -> Interval:
    """Mean gain of all samples of all seeds, clustered by prompt."""
    return mean_interval(np.concatenate(gains), np.concatenate([facts["prompt"] for facts in found]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("names", nargs="*", help="without scenes/; all if none is named")
    runner.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runner.add_argument("--budget", type=float, default=40_000, help="network evaluations of a run")
    runner.add_argument("--jobs", type=int, default=2)
    runner.add_argument("--threads", type=int, default=1, help="of each job")
    commands.add_parser("pace")
    commands.add_parser("table")
    known = parser.parse_args()
    if known.command == "table":
        TABLE.write_text(table(read_kept()))
        return
    if known.command == "pace":
        write_text(PACE, json.dumps({name: pace(name, 1) for name in methods()}, indent=1) + "\n")
        return
    names = [f"scenes/{name}" for name in known.names] or methods()
    with ThreadPoolExecutor(known.jobs) as jobs:
        pairs = [(name, seed) for seed in known.seeds for name in names]
        for done in [jobs.submit(run, name, seed, known.budget, known.threads) for name, seed in pairs]:
            if trouble := done.exception():
                print(f"{type(trouble).__name__}: {trouble}", file=sys.stderr)


if __name__ == "__main__":
    main()
