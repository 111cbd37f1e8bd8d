"""`burnish sample`: pictures, or videos, from a run, or from the model a recipe starts from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from burnish.cli.words import RunOrRecipe, Seed

PACE = 125  # milliseconds that a frame of a video is shown


def sample(
    run: RunOrRecipe,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="What to draw.")] = None,
    file: Annotated[str, typer.Option("--prompts", help="A prompt file, or module:function, instead.")] = "",
    each: Annotated[int, typer.Option(min=1, help="Pictures of every prompt.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("pictures"),
    seed: Seed = None,
    guidance: Annotated[float | None, typer.Option(help="Unless given, as in training; so are the next two.")] = None,
    temperature: Annotated[float | None, typer.Option()] = None,
    top_k: Annotated[int | None, typer.Option()] = None,
) -> None:
    """Draw pictures with the newest weights of a run, or the average it kept; or videos, as animated WebP."""
    from burnish.cli.runs import open_model
    from burnish.prompts import read_prompts

    if bool(prompts) == bool(file):
        raise ValueError("what is to be drawn? Give prompts after the run, or a file of them by --prompts")
    asked = [p for p in (prompts or read_prompts(file)) for _ in range(each)]
    plan = {"guidance": guidance, "temperature": temperature, "top_k": top_k}
    given = {name: value for name, value in plan.items() if value is not None}
    pictures = open_model(run).sample(asked, seed=seed or 0, **given)
    out.mkdir(parents=True, exist_ok=True)
    for number, (prompt, picture) in enumerate(zip(asked, pictures, strict=True)):
        text = prompt if isinstance(prompt, str) else prompt.text
        name = out / f"{number:04d}-{re.sub(r'[^a-z0-9]+', '-', text.lower())[:40].strip('-')}.png"
        if isinstance(picture, list):  # the frames of a video
            name, (first, *rest) = name.with_suffix(".webp"), picture
            first.save(name, save_all=True, append_images=rest, duration=PACE, loop=0, quality=90)
        else:
            picture.save(name)
        print(name)
