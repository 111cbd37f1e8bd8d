"""`burnish config`: every value of a recipe, and where it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping

from burnish.cli.words import Changes, RecipeName


def config(recipe: RecipeName, changes: Changes = None) -> None:
    """Print every value and its origin: a default, a recipe (and its bases), the command line."""
    from burnish.recipe.decode import decode
    from burnish.recipe.encode import encode
    from burnish.recipe.layers import spelled
    from burnish.recipe.read import draft, leaves
    from burnish.recipe.recipe import Recipe

    written = draft(recipe, changes or ())
    values = leaves(spelled(Recipe, encode(decode(Recipe, written.data))))
    bare = {path: {} for path in written.origin if path not in values}  # a component named without settings
    rows = [
        (path, json.dumps(value), written.origin.get(path, "default"))
        for path, value in sorted({**bare, **values}.items(), key=lambda item: _order(item[0], values))
    ]
    paths, texts = (max(len(row[i]) for row in rows) for i in (0, 1))
    for path, text, origin in rows:
        print(f"{path:<{paths}}  {'' if text == '{}' else text:<{min(texts, 48)}}  {origin}".rstrip())


def _order(path: str, values: Mapping[str, object]) -> int:
    """Where a path stands among the values: before its settings, or else before what lies under the same parent."""
    while path:
        for number, known in enumerate(values):
            if known == path or known.startswith(f"{path}."):
                return number
        path = path.rpartition(".")[0]
    return len(values)
