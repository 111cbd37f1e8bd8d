"""The classes of the class-conditional model: one object of every colour and shape, 30 in all."""

from __future__ import annotations

from burnish.types import Prompt
from burnish.worlds.scenes.grammar import COLOURS, SHAPES, required

CLASSES: tuple[tuple[str, str], ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)


def class_prompts() -> tuple[Prompt, ...]:
    """One prompt a class, in the order of `CLASSES`; `facts["class_id"]` is its number."""
    return tuple(
        Prompt(
            id=f"class/{colour}-{shape}",
            text=f"a {colour} {shape}",
            facts={
                "world": "scenes",
                "category": "class",
                "objects": (required(shape, colour),),
                "relation": None,
                "class_id": number,
            },
        )
        for number, (colour, shape) in enumerate(CLASSES)
    )
