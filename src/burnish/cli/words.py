"""Arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped recipe (see `burnish list recipes`), a .yaml file, or a run.")
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PATH=VALUE]...", help="Changes, by the recipe's own paths: objective.ppo_clip.clip=2e-4"),
]
RunOrRecipe = Annotated[
    str, typer.Argument(metavar="RUN", help="The folder of a run; or a recipe, for the model it starts from.")
]
Seed = Annotated[int | None, typer.Option(help="Of the noise. Unless given: 0, or that of the run where it evaluates.")]
