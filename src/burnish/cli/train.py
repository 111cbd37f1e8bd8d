"""`burnish train`: from a recipe to the folder of a run and its report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from burnish.cli.words import Changes, RecipeName


def train(
    recipe: RecipeName,
    changes: Changes = None,
    run: Annotated[str, typer.Option(metavar="NAME", help="The run goes to runs/NAME.")] = "",
    folder: Annotated[Path | None, typer.Option(help="The run goes to this folder instead.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of that run.")] = False,
) -> None:
    """Train by a recipe; writes everything into the folder of the run, report.html too."""
    from burnish.cli.runs import folder_for, train_into
    from burnish.machine import leads
    from burnish.recipe.read import read

    if run and folder:
        raise ValueError("--run and --folder both say where the run goes; give one")
    place = folder_for(recipe, Path("runs") / run if run else folder, resume)
    done = train_into(read(recipe, changes or ()), place, resume, warn=_warn)
    if leads():
        print(f"{done}/report.html")


def _warn(sentence: str) -> None:
    print(f"burnish: warning: {sentence}", file=sys.stderr)
