"""Learners on a Ray cluster: Ray Train starts the processes, and again, from the last checkpoint, when one has died.

    burnish train RECIPE learners.count=4 learners.gpus=1

Each learner is a process of processes.py, wherever Ray puts it. The folder of the run has to be one that all machines
see. Workers that draw and score are beside this: `drawers` and `scorers` of the recipe, and the reward `on_ray`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from burnish.crew import Luggage, connected, reason, same_signals
from burnish.engine.layouts.processes import PATIENCE, Heard, Lost, Untold, backend
from burnish.engine.loop import train
from burnish.engine.reporter import Reporter
from burnish.engine.resuming import refuse
from burnish.recipe.encode import encode
from burnish.recipe.recipe import Recipe

STARTS = 10  # times that a cluster is asked for the learners, a minute each


@dataclass(frozen=True)
class Asked:
    """What a learner is told: the recipe, and the surroundings of the command that it stands in for."""

    recipe: Recipe
    folder: Path
    resume: bool
    warnings: Sequence[str]
    command: Sequence[str]


def train_on_ray(recipe: Recipe, folder: Path, resume: bool, warnings: Sequence[str] = ()) -> Path:
    """As `train`, by learners on a cluster, and return the folder.

    A learner that dies (killed, out of memory, its machine gone) has all of them started again, as often as the recipe
    says, and they go on from the last checkpoint. Raises ValueError if ray is missing, if they died too often, and with
    their own sentence where one of them raises it. Interrupted, they end at once; the last checkpoint stays whole.
    """
    assert recipe.learners is not None
    refuse(folder, encode(recipe), resume)
    ray, size = connected(log=True), recipe.learners
    gpus = _gpus(recipe, ray.cluster_resources().get("GPU", 0))
    notes = f"ray-{uuid4().hex[:8]}"  # Ray Train's own, in the folder of the run while it is at work
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    here = replace(recipe, device="cpu") if recipe.device == "auto" and not gpus else recipe  # Ray hides none of them
    asked = Asked(here, folder.resolve(), resume, warnings, sys.argv)
    trainer = TorchTrainer(
        learn,
        train_loop_config={"asked": Luggage.of(asked)},
        torch_config=TorchConfig(backend=backend(gpus > 0), timeout_s=PATIENCE.seconds),
        scaling_config=ScalingConfig(
            num_workers=size.count,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": size.cpus, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=RunConfig(
            storage_path=str(folder.resolve()),
            name=notes,
            failure_config=FailureConfig(max_failures=size.restarts, controller_failure_limit=STARTS),
        ),
    )
    try:
        with same_signals():
            sentence = trainer.fit().return_value
    except SystemExit:  # what Ray Train makes of Ctrl-C
        raise KeyboardInterrupt from None
    except ray.train.TrainingFailedError as problem:
        failed = getattr(problem, "worker_failures", {}).values()
        why = "; ".join(dict.fromkeys(reason(one) for one in failed)) or reason(problem)
        raise ValueError(
            f"the learners could not be started, or died once more than {size.restarts} times: {why}. "
            "The last checkpoint is whole; resume the run to go on from there"
        ) from problem
    finally:
        shutil.rmtree(folder / notes, ignore_errors=True)
    if sentence:
        raise ValueError(sentence)
    return folder


def _gpus(recipe: Recipe, there: float) -> float:
    assert recipe.learners is not None
    if recipe.learners.gpus is not None:
        return recipe.learners.gpus
    return float(there > 0 and recipe.device != "cpu")


def learn(config: dict[str, Any]) -> str:
    """One learner. Returns the sentence it ended with, if it ended with one: starting it again would change nothing.

    Raises Untold where the others would wait for it: of divided weights, once there are any.
    """
    asked: Asked = config["asked"].opened()
    sys.argv = list(asked.command)
    again = asked.resume or (asked.folder / "recipe.yaml").exists()
    try:
        train(asked.recipe, asked.folder, again, Reporter(asked.folder, warnings=asked.warnings))
    except Heard as problem:
        return str(problem)
    except (Lost, Untold):
        raise
    except ValueError as problem:
        return str(problem)
    return ""
