"""`burnish evaluate`: the suites of a recipe over its model, tuned or as it starts out."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from burnish.cli.words import Changes, RunOrRecipe, Seed


def evaluate(
    run: RunOrRecipe,
    changes: Changes = None,
    suite: Annotated[str, typer.Option(help="One suite, by its name in the recipe or of `burnish list`.")] = "",
    seed: Seed = None,
    reward: Annotated[bool, typer.Option(help="Load the recipe's reward and report it too.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Ask a model fixed questions: same prompts and same noise, every time."""
    from burnish.cli.runs import open_model, suites_of

    asked = changes or []
    model = open_model(run, asked)
    chosen = suites_of(model.recipe, suite)
    found = model.evaluate(chosen, model.recipe.seed if seed is None else seed, reward)
    metrics = {name: dict(result.metrics) for name, result in found.items()}
    if as_json:
        print(json.dumps({"run": run, "changes": asked, "step": model.step, "suites": metrics}, indent=1))
        return
    print(f"{' '.join([run, *asked])}, {model.weights}")
    for name, values in metrics.items():
        for metric, value in values.items():
            print(f"{name}  {metric:<28} {value:.4f}")
