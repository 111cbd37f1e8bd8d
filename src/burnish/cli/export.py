"""`burnish export`: a tuned model, in the format that it came in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from burnish.cli.words import Changes, RunOrRecipe


def export(
    run: RunOrRecipe,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder for the model.")],
    changes: Changes = None,
) -> None:
    """Write the newest weights of a run, or the average it kept, as diffusers' or LlamaGen's own files.

    Adapters are merged. optim.ema=null takes the newest weights where there is an average.
    """
    from burnish.cli.runs import open_model

    model = open_model(run, changes or [])
    model.export(folder)
    print(f"{folder}: {run}, {model.weights}")
