"""Burnish: reinforcement-learning post-training of visual generative models.

    import burnish
    run = burnish.train("scenes/ar_grpo_verified", steps=100)
    burnish.load(run).sample(["a red square left of a blue circle"])[0].save("picture.png")
    burnish.evaluate(run)["heldout"].metrics["verified"]

Nothing heavy is imported until one of these is called.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from burnish.cli.runs import Model
    from burnish.core import Evaluation, Suite
    from burnish.recipe.recipe import Recipe

__version__ = "0.1.0"
__all__ = ["evaluate", "load", "train"]


def train(
    recipe: str | PathLike[str] | Recipe,
    folder: str | PathLike[str] | None = None,
    *,
    resume: bool = False,
    overrides: Sequence[str] = (),
    **settings: Any,
) -> Path:
    """Train by a recipe and return the folder of the run.

    `recipe` is a shipped name, a .yaml file, the folder of a run, or a Recipe. Settings go by the recipe's own names:
    `steps=100`, `optim={"lr": 1e-4}`, `**{"objective.ppo_clip.clip": 0.1}`, or the command line's text in `overrides`.
    `reward` may be any callable `(images, prompts) -> scores`; pictures come as (b, 3, h, w) in [0, 1],
    videos as (b, f, 3, h, w).
    Raises ValueError, before any model loads, for a recipe that cannot run.
    """
    from pathlib import Path

    from burnish.cli.runs import folder_for, train_into
    from burnish.recipe.read import changed, read

    named = isinstance(recipe, (str, PathLike))
    decoded = read(str(recipe), overrides, settings) if named else changed(recipe, overrides, settings)
    place = folder_for(str(recipe) if named else "run", Path(folder) if folder else None, resume)
    return train_into(
        decoded, place, resume, warn=lambda sentence: print(f"burnish: warning: {sentence}", file=sys.stderr)
    )


def load(run: str | PathLike[str], overrides: Sequence[str] = ()) -> Model:
    """The model of a run, with its newest weights or the average it kept of them; or of a recipe, as it starts out.

    `load(run).sample(["a red square"])` draws: a list of PIL images; of videos, a list of frames each.
    `load(run).export(folder)` writes the model into a folder. `overrides` are changes as the command line takes them:
    `optim.ema=null` for the newest weights of a run that kept an average.
    """
    from burnish.cli.runs import open_model

    return open_model(str(run), overrides)


def evaluate(
    run: str | PathLike[str],
    suite: str | Suite = "",
    *,
    seed: int | None = None,
    reward: bool = True,
    overrides: Sequence[str] = (),
) -> dict[str, Evaluation]:
    """Suites over a model: those of its recipe, or one, by its name there or among the components, or as an object.

    `seed` is that of the recipe unless given, so that two evaluations can be compared sample by sample. `overrides` are
    changes as the command line takes them: `policy.sd.weights=FOLDER`.
    """
    from burnish.cli.runs import open_model, suites_of

    model = open_model(str(run), overrides)
    suites = suites_of(model.recipe, suite) if isinstance(suite, str) else {"suite": suite}
    return model.evaluate(suites, model.recipe.seed if seed is None else seed, reward)
