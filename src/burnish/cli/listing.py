"""`burnish list`: what there is, by kind. Imports none of it."""

from __future__ import annotations

import csv
import json
from typing import Annotated

import typer

from burnish.recipe import find, read

SHELVES = {kind.folder: kind for kind in find.KINDS}


def show(
    what: Annotated[
        str, typer.Argument(help=f"{', '.join(SHELVES)}, recipes or systems; nothing: all but those.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List components by kind, recipes, or the systems of the field and which of them are built."""
    if what == "systems":
        _print_systems(systems(), as_json)
        return
    shelves = {folder: find.listing(kind) for folder, kind in SHELVES.items()} | {"recipes": read.shipped()}
    words = {kind.word: kind.folder for kind in find.KINDS} | {"recipe": "recipes"}
    wanted = [name for name in shelves if what in ("", name) or words.get(what) == name]
    if not wanted:
        raise ValueError(f"there is no list of {what!r}{find.choices(what, [*shelves, 'systems'])}")
    if as_json:
        print(json.dumps({name: dict(shelves[name]) for name in wanted}, indent=1))
        return
    width = max(len(item) for name in wanted for item, _ in shelves[name])
    for name in wanted:
        print(name)
        for item, about in shelves[name]:
            print(f"    {item:<{width}}  {about}")


def systems() -> list[dict[str, str]]:
    """One row for each system of the field, with its status: built, experimental or missing.

    A system is built if a recipe of its name ships, and experimental if that recipe says so in its first line.
    """
    recipes = dict(read.shipped())
    with (find.ROOT / "systems.csv").open(encoding="utf-8", newline="") as file:
        return [{**row, "status": _status(recipes.get(row["recipe"]))} for row in csv.DictReader(file)]


def _status(about: str | None) -> str:
    if about is None:
        return "missing"
    return "experimental" if "experimental" in about.lower() else "built"


def _print_systems(rows: list[dict[str, str]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    width = max(len(row["recipe"]) for row in rows)
    for row in rows:
        print(f"{row['status']:<12}  {row['recipe']:<{width}}  {row['year']}  {row['title']}")
    built = sum(row["status"] == "built" for row in rows)
    print(f"{built} of {len(rows)} built")
