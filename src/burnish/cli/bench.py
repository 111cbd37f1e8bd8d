"""`burnish bench`: what a step of a recipe costs on this machine."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.cli.words import Changes, RecipeName

if TYPE_CHECKING:
    from burnish.core import Footprint
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
        str,
        typer.Option(
            metavar="PATH=A,B,...",
            help="Measure at each of these: how do time and memory grow? With tokens, parameters or numbers of a "
            "denoiser's state, if these change.",
        ),
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
    settings = [[*(changes or ()), *([f"{path}={value}"] if path else [])] for value in values]
    grows = _sizes(path, values, [_footprint(recipe, asked) for asked in settings]) if path else None
    found: list[Bench] = []
    for asked in settings:
        if taken := _measured(recipe, asked, random, steps):
            found.append(taken)
            print("\n".join(said(" ".join([recipe, *asked]), taken)), flush=True)
    if not leads():
        return
    if grows:
        grows = _or_states(path, *grows, [taken.state for taken in found])
    told = {
        "recipe": recipe,
        "changes": changes or [],
        "random": random,
        "benches": [taken.as_dict() for taken in found],
        **({"vary": path, "values": values, **_grown(*grows, found)} if grows else {}),
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


def _footprint(name: str, changes: list[str]) -> Footprint | None:
    """What the policy says of its size, if it does."""
    from burnish.core import Sized
    from burnish.recipe.read import read

    policy = read(name, changes).policy
    with suppress(ValueError):  # its weights are not here, and nothing else tells
        return policy.footprint() if isinstance(policy, Sized) else None


def _grown(sizes: list[float], unit: str, found: list[Bench]) -> dict[str, Any]:
    """How the time of drawing and updating, operations and memory grow: said, and for JSON.

    A stage has a part that does not grow, which hides one that grows fast in a fit over all sizes. So what it costs to
    go from the second largest to the largest is said too.
    """
    from burnish.engine.bench import growth

    clock = "cpu_seconds" if found[0].device == "cpu" else "seconds"  # what else runs here does not count
    costs = {name: [getattr(taken.stages[name], clock) for taken in found] for name in ("draw", "update")}
    counted = {"operations": [one.stages["step"].operations for one in found], "memory": [one.memory for one in found]}
    costs |= {name: cost for name, cost in counted.items() if min(cost) > 0}
    largest = sorted(range(len(sizes)), key=sizes.__getitem__)[-2:]
    powers = {name: growth(sizes, cost) for name, cost in costs.items()}
    ends = {name: growth([sizes[i] for i in largest], [cost[i] for i in largest]) for name, cost in costs.items()}
    told = ", ".join(f"{power:.2f} ({name}; {ends[name]:.2f} at the end)" for name, power in powers.items())
    clocked = "CPU seconds" if clock == "cpu_seconds" else "seconds"
    print(f"{', '.join([clocked, *(what for what in counted if what in costs)])} grow as {unit} to the power of {told}")
    return {"sizes": sizes, "unit": unit, "clock": clock, "growth": powers, "growth_at_the_end": ends}


def _sizes(path: str, values: list[str], known: list[Footprint | None]) -> tuple[list[float], str]:
    """What costs are said to grow with, and its name: tokens or parameters where the setting changes them, else itself.

    Raises ValueError for words that change neither.
    """
    for unit in ("tokens", "parameters"):
        sizes = [float(getattr(one, unit)) for one in known if one]
        if len(sizes) == len(values) == len(set(sizes)):
            return sizes, unit
    try:
        sizes = [float(value) for value in values]
    except ValueError:
        raise ValueError(
            f"--vary {path}: its values are no numbers, and change no size that the policy tells"
        ) from None
    if len(set(sizes)) < len(sizes) or not all(0 < size < math.inf for size in sizes):
        raise ValueError(f"--vary {path}: write numbers that differ, all above 0, not {', '.join(values)}")
    return sizes, path


def _or_states(path: str, sizes: list[float], unit: str, states: list[int]) -> tuple[list[float], str]:
    """Sizes and their unit; numbers of a denoiser's state if these change, and no unit but the setting itself is known.

    states  of each setting, known once its policy was loaded; 0 for no denoiser
    """
    if unit == path and min(states) > 0 and len(set(states)) == len(states):
        return [float(state) for state in states], "numbers of a state"
    return sizes, unit


def _varied(asked: str) -> tuple[str, list[str]]:
    """Path and values of --vary. Raises ValueError for fewer than two of them."""
    if not asked:
        return "", [""]
    path, _, values = asked.partition("=")
    found = values.split(",")
    if len(set(found)) < 2 or "" in found:
        raise ValueError(f"--vary {asked}: write PATH=A,B,... with two different values or more")
    return path, found


def said(name: str, taken: Bench) -> list[str]:
    """Lines for a terminal."""
    network = f", {taken.evaluations:.0f} evaluations of the network" if taken.evaluations else ""
    several = f"{taken.processes} processes, " if taken.processes > 1 else ""
    heads = ("seconds", "CPU seconds", "images/s", "G operations", "of the rate", "GB in, out", "of copying")
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
    lines.append(f"    memory {taken.memory / 1e9:.2f} GB; the best here: {rates}")
    lines.append("    operations, and GB read and written, of matrix products, attention and convolutions alone")
    if whole := taken.stages["step"].whole_operations:
        lines.append(
            f"    besides {whole / 1e9:.1f} G operations in whole numbers a step: not in the share of the rate"
        )
    return lines
