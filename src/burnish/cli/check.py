"""`burnish check`: all that can be known of a recipe before a model loads; with --rehearse it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from burnish.cli.words import Changes, RecipeName

if TYPE_CHECKING:
    from burnish.recipe.recipe import Recipe


def check(
    recipe: RecipeName,
    changes: Changes = None,
    rehearse: Annotated[
        bool,
        typer.Option(
            "--rehearse", help="Load it and make one pass of each kind: what memory and time will a run take?"
        ),
    ] = False,
) -> None:
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
    if rehearse:
        _rehearsed(decoded)
        return
    taken = estimate(decoded)
    if taken is None:
        print("what it takes of memory and time is rehearsed, not estimated: --rehearse does a pass of each kind here")
        return
    print(f"estimate, without rewards, texts and decoding of pictures: {taken.total / 1e9:.2f} GB of memory or more")
    for what, size in taken.memory.items():
        print(f"    {what:<12} {size / 1e9:8.3f} GB")
    if decoded.shard:
        print("    of one process alone: with shard, all but cache and activations is divided among those there are")
    hours = taken.seconds_a_step * decoded.steps / 3600
    print(
        f"    {taken.seconds_a_step:.2f} s a step or more, {hours:.2f} h for all, at the "
        f"{taken.rate:.0f} G multiply-adds a second just measured here; --rehearse measures more of it"
    )


def _rehearsed(recipe: Recipe) -> None:
    from burnish.engine.rehearsal import rehearse

    found = rehearse(recipe)
    print(
        f"rehearsed here: {found.memory / 1e9:.2f} GB of memory; {found.seconds:.2f} s a step, "
        f"{found.seconds * recipe.steps / 3600:.2f} h for all, without evaluations and measures"
    )
    if len(found.steps) > 1:
        steps = ", ".join(map(str, found.steps))
        least, most = min(found.steps.values()), max(found.steps.values())
        print(f"    means of steps {steps}, which take {least:.2f} to {most:.2f} s: plans differ from step to step")
    for kind, (count, seconds) in found.passes.items():
        what = f"{count:g} x {kind.what} of {kind.rows}, {'with' if kind.gradient else 'without'} gradient"
        print(f"    {what:<44}{count * seconds:9.2f} s")
    print(f"    {'rewards, decoding, optimiser and all else':<44}{found.rest:9.2f} s")
