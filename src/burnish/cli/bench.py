"""`burnish bench`: what a step of a recipe costs on this machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.cli.words import Changes, RecipeName

if TYPE_CHECKING:
    from burnish.engine.bench import Bench


def bench(
    recipe: RecipeName,
    changes: Changes = None,
    random: Annotated[
        bool,
        typer.Option(
            "--random", help="Random weights in the released shape (text encoders of one layer); prompts of the scenes."
        ),
    ] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed; their median counts.")] = 5,
    vary: Annotated[
        str, typer.Option(metavar="PATH=A,B,...", help="Measure at each of these values: how does the time grow?")
    ] = "",
    out: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Keep everything as JSON.")] = None,
    page: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep it as a page, with a roofline.")] = None,
) -> None:
    """Time the steps of a recipe, and count what they do, beside what the machine can do. Writes no run."""
    from burnish.machine import leads, processes
    from burnish.report.bench import render

    path, values = _varied(vary)
    if path and processes() > 1:
        raise ValueError(
            "--vary measures one run after another, and several processes make one; start it for each value"
        )
    found: list[Bench] = []
    for value in values:
        asked = [*(changes or ()), *([f"{path}={value}"] if path else [])]
        if taken := _measured(recipe, asked, random, steps):
            found.append(taken)
            print("\n".join(said(" ".join([recipe, *asked]), taken)), flush=True)
    if not leads():
        return
    told = {
        "recipe": recipe,
        "changes": changes or [],
        "random": random,
        "benches": [taken.as_dict() for taken in found],
        **(_grown(path, values, found) if path else {}),
    }
    if out:
        out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if page:
        page.write_text(render(told), encoding="utf-8")


def _measured(name: str, changes: list[str], random: bool, steps: int) -> Bench | None:
    from burnish.engine.bench import bench
    from burnish.recipe.check import require
    from burnish.recipe.read import read

    with TemporaryDirectory() as folder:
        # Steps alone: what suites and measures need may not be here. And what happens here: workers are not seen
        alone = {"suites": {}, "measures": {}, "learners": None, "drawers": None, "scorers": None}
        recipe = replace(read(name, changes), **alone)
        if random:
            from burnish.making.released import at_random

            recipe = at_random(recipe, Path(folder))
        require(recipe)
        return bench(recipe, steps)


def _grown(path: str, values: list[str], found: list[Bench]) -> dict[str, Any]:
    """How the time of drawing and updating grows with the setting, said and for JSON."""
    from burnish.engine.bench import growth

    sizes = [float(value) for value in values]
    clock = "cpu_seconds" if found[0].device == "cpu" else "seconds"  # what else runs here does not count
    powers = {
        name: growth(sizes, [getattr(taken.stages[name], clock) for taken in found]) for name in ("draw", "update")
    }
    told = ", ".join(f"{power:.2f} ({name})" for name, power in powers.items())
    print(f"{clock.replace('_', ' ')} grow as {path} to the power of {told}")
    return {"vary": path, "values": sizes, "clock": clock, "growth": powers}


def _varied(asked: str) -> tuple[str, list[str]]:
    """Path and values of --vary. Raises ValueError for fewer than two numbers above 0."""
    if not asked:
        return "", [""]
    path, _, values = asked.partition("=")
    numbers = values.split(",")
    try:
        fine = len({float(value) for value in numbers}) > 1 and all(float(value) > 0 for value in numbers)
    except ValueError:
        fine = False
    if not fine:
        raise ValueError(f"--vary {asked}: write PATH=A,B,... with two different numbers or more, all above 0")
    return path, numbers


def said(name: str, taken: Bench) -> list[str]:
    """Lines for a terminal."""
    network = f", {taken.evaluations:.0f} evaluations of the network" if taken.evaluations else ""
    several = f"{taken.processes} processes, " if taken.processes > 1 else ""
    heads = ("seconds", "CPU seconds", "images/s", "G operations", "of the rate", "GB moved", "of copying")
    lines = [
        f"{name}: {several}{taken.device}, {taken.threads} thread{'s' * (taken.threads > 1)}",
        f"    {taken.images} images a step{network}; median of {taken.steps} steps",
        f"    {'':<8}{''.join(f'{head:>13}' for head in heads)}",
    ]
    for stage, one in taken.stages.items():
        pace = f"{taken.images_per_second(one):.2f}"
        cells = [f"{one.seconds:.3f}", f"{one.cpu_seconds:.3f}", pace, f"{one.operations / 1e9:.1f}"]
        cells += [f"{100 * taken.share_of_rate(one):.1f} %", f"{one.traffic / 1e9:.2f}"]
        cells += [f"{100 * taken.share_of_traffic(one):.1f} %"]
        lines.append(f"    {stage:<8}{''.join(f'{cell:>13}' for cell in cells)}")
    rates = f"{taken.matrix_rate / 1e9:.0f} G operations a second in {taken.arithmetic}, "
    rates += f"{taken.memory_rate / 1e9:.1f} GB a second copied"
    return [*lines, f"    memory {taken.memory / 1e9:.2f} GB; the best here: {rates}"]
