"""`burnish check`: all that can be known of a recipe before a model loads."""

from __future__ import annotations

import typer

from burnish.cli.words import Changes, RecipeName


def check(recipe: RecipeName, changes: Changes = None) -> None:
    """Find faults, settings that do nothing, and what a run will take. Exit status 2 if it could not start."""
    from burnish.recipe.check import check as findings
    from burnish.recipe.check import samples
    from burnish.recipe.estimate import estimate
    from burnish.recipe.read import read

    decoded = read(recipe, changes or ())
    found = findings(decoded)
    for sentence in found.faults:
        print(f"fault    {sentence}")
    for sentence in found.warnings:
        print(f"warning  {sentence}")
    if found.faults:
        print(f"{recipe} cannot run: {len(found.faults)} fault{'s' * (len(found.faults) > 1)}")
        raise typer.Exit(2)
    prompts, group = samples(decoded)
    print(f"{recipe} can run: {decoded.steps} steps of {prompts} prompts x {group} samples")
    taken = estimate(decoded)
    if taken is None:
        return
    print(f"estimate, without rewards and the decoding of pictures: {taken.total / 1e9:.2f} GB of memory or more")
    for what, size in taken.memory.items():
        print(f"    {what:<12} {size / 1e9:8.3f} GB")
    hours = taken.seconds_a_step * decoded.steps / 3600
    print(
        f"    {taken.seconds_a_step:.2f} s a step or more, {hours:.2f} h for all, at the "
        f"{taken.rate:.0f} G multiply-adds a second just measured here"
    )
