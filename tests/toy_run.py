"""A small run on the toy policy, in this process or, to be killed, in another.

Started as a program it imports everything once and then forks a run for every line on its standard input, a JSON object
{"folder", "resume", "die"}; it answers with the process id, and with the exit status once the run has ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import toys

from burnish.advantages.group_norm import GroupNorm
from burnish.advantages.prompt_history import PromptHistory
from burnish.advantages.trimmed import Trimmed
from burnish.engine import checkpoint
from burnish.engine.loop import train
from burnish.engine.reporter import TIMINGS, Reporter
from burnish.objectives.ppo_clip import PPOClip
from burnish.plans.every_token import EveryToken
from burnish.recipe.recipe import Average, Optim, Recipe
from burnish.sources.on_policy import OnPolicy


def recipe(**changes: Any) -> Recipe:
    """Forty steps of GRPO towards bright pictures, with other fields as given."""
    whole = Recipe(
        policy=toys.ToyRaster(),
        source=OnPolicy("toys:prompts", EveryToken(group=8), per_step=3),
        reward=toys.Brightness(),
        objective=PPOClip(),
        advantage=GroupNorm(),
        steps=40,
        optim=Optim(lr=0.03),
        suites={"heldout": toys.ToySuite()},
    )
    return replace(whole, **changes)


def lines(folder: Path) -> list[dict[str, Any]]:
    """What a run told of its steps, without the timings; nothing, if it has told nothing yet."""
    file = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [{k: v for k, v in row.items() if not k.endswith(TIMINGS)} for row in rows]


def everything() -> Recipe:
    """A run with all that a checkpoint must bring back: copies, moments, schedule, memory, torch's stream."""
    return recipe(
        steps=14,
        checkpoint_every=4,
        evaluate_every=5,
        samples_every=3,
        reward=toys.Brightness(spoil="noise", pause=0.02),
        measures={"again": toys.Brightness(spoil="noise")},
        objective=PPOClip(kl=0.1, anchor="recomputed", clip=0.1),
        advantage=Trimmed(PromptHistory(buffer=30, least=20)),
        optim=Optim(lr=0.03, warmup=3, schedule="cosine", epochs=2, minibatches=2, ema=Average(0.8, every=2), micro=5),
    )


def _one(folder: str, resume: bool, die: str) -> None:
    torch.set_num_threads(1)
    kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    if die == "before the files are synced":
        checkpoint._sync = kill
    elif die == "before the old one is removed":
        checkpoint.shutil.rmtree = kill
    try:
        train(everything(), Path(folder), resume, Reporter(Path(folder), quiet=True))
    except SystemExit as stopped:
        os._exit(int(stopped.code or 0))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _one(**asked)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
