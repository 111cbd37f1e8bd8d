"""What can be said about a scene: six categories of plain English, in the spirit of GenEval (Ghosh et al. 2023).

    single        "a circle", "one star"                  two        "a circle and a star"
    counting      "three squares"                         colours    "a red circle"
    position      "a circle left of a star"               attribution "a red circle and a blue star"

The split is by combination. `HELD_PHRASES`, `HELD_COUNTS`, `HELD_COLOURS` and `HELD_PAIRS` name combinations of two
words; a prompt that contains one of them, in whatever category, is held out, and every other prompt is for training.
So no training prompt mentions a yellow circle, or a circle together with a triangle, while every word is trained on.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import permutations, product
from typing import Any, Literal

from burnish.formulas.noise import generator
from burnish.types import Prompt

Split = Literal["train", "heldout", "all"]

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "black")
RELATIONS = ("left of", "right of", "above", "below")
CATEGORIES = ("single", "two", "counting", "colours", "position", "attribution")
PHRASES = ("a {}", "one {}", "a single {}", "a picture of a {}")  # a single object combines with nothing but its phrase
NUMBERS = {2: "two", 3: "three", 4: "four"}

HELD_PHRASES = frozenset(
    {
        ("one {}", "circle"),
        ("a single {}", "square"),
        ("a picture of a {}", "triangle"),
        ("one {}", "star"),
        ("a {}", "cross"),
    }
)
HELD_COUNTS = frozenset({(3, "circle"), (2, "star"), (4, "cross"), (3, "triangle"), (4, "square")})
HELD_COLOURS = frozenset(
    {
        ("red", "star"),
        ("green", "cross"),
        ("blue", "triangle"),
        ("yellow", "circle"),
        ("purple", "square"),
        ("black", "star"),
    }
)
HELD_PAIRS = frozenset(
    {frozenset({"circle", "triangle"}), frozenset({"square", "star"}), frozenset({"circle", "cross"})}
)


def required(shape: str, colour: str | None = None, count: int = 1) -> dict[str, Any]:
    """One entry of `facts["objects"]`: how many of which shape, in which colour (None leaves it open)."""
    return {"shape": shape, "colour": colour, "count": count}


def everything() -> tuple[Prompt, ...]:
    """Every prompt of the grammar, in a fixed order."""
    return _everything()


def train() -> tuple[Prompt, ...]:
    """Every prompt without a held-out combination."""
    return tuple(p for p in _everything() if not is_heldout(p.facts))


def evenly() -> tuple[Prompt, ...]:
    """Prompts to train on with the six categories taking turns, as an evaluation asks them; two in three of all
    prompts are attributions, and would be two in three of what is learned.

    A prompt that returns has a number in its id.
    """
    return in_turns(train(), CATEGORIES)


def in_turns(prompts: Sequence[Prompt], categories: Sequence[str]) -> tuple[Prompt, ...]:
    """64 of these prompts for every category, which take turns. A prompt that returns has a number in its id."""
    asked: Counter[str] = Counter()
    found = []
    for prompt in balanced(prompts, 64 * len(categories), 0, categories):
        asked[prompt.id] += 1
        turn = asked[prompt.id]
        found.append(prompt if turn == 1 else replace(prompt, id=f"{prompt.id}#{turn}"))
    return tuple(found)


def heldout(n: int | None = None, seed: int = 0) -> tuple[Prompt, ...]:
    """Every prompt with a held-out combination; or `n` of them with the six categories taking turns.

    Within a category the prompts come in a shuffled order that depends on `seed` alone and starts over when it is used
    up (a few categories hold only five), so a prompt may occur more than once. A smaller `n` is a prefix of a larger.
    """
    prompts = tuple(p for p in _everything() if is_heldout(p.facts))
    return prompts if n is None else balanced(prompts, n, seed)


def balanced(
    prompts: Sequence[Prompt], n: int, seed: int, categories: Sequence[str] = CATEGORIES
) -> tuple[Prompt, ...]:
    """`n` of these prompts, categories taking turns, each category shuffled by `seed` and cycled."""
    if n < 0:
        raise ValueError(f"a number of prompts cannot be {n}; use 0 or more")
    queues = []
    for category in categories:
        mine = [p for p in prompts if p.facts["category"] == category]
        order = generator(seed, "scenes prompts", category).permutation(len(mine))
        if mine:
            queues.append([mine[i] for i in order])
    if not queues:
        return ()
    turns = ((queues[i % len(queues)], i // len(queues)) for i in range(n))
    return tuple(queue[turn % len(queue)] for queue, turn in turns)


def choose(split: Split) -> tuple[Prompt, ...]:
    """The prompts of a split by its name. ValueError for a name that is none."""
    if split == "train":
        return train()
    if split == "heldout":
        return heldout()
    if split == "all":
        return _everything()
    raise ValueError(f"scenes prompts have no split {split!r}; choose train, heldout or all")


def is_heldout(facts: Mapping[str, Any]) -> bool:
    """Whether these facts contain a held-out combination."""
    objects = facts["objects"]
    first = objects[0]
    if facts["category"] == "single":
        return (facts["phrase"], first["shape"]) in HELD_PHRASES
    if (first["count"], first["shape"]) in HELD_COUNTS:
        return True
    if any((o["colour"], o["shape"]) in HELD_COLOURS for o in objects):
        return True
    return len(objects) == 2 and frozenset(o["shape"] for o in objects) in HELD_PAIRS


def parse(text: str) -> Mapping[str, Any]:
    """The facts of a sentence; case, outer spaces and a final full stop do not matter. The inverse of `Prompt.text`.

    Raises ValueError that names the word or the nearest sentence for text outside the grammar.
    """
    return prompt(text).facts


def prompt(text: str) -> Prompt:
    """The prompt with this text. Raises ValueError as `parse` does."""
    plain = " ".join(text.lower().split()).rstrip(".").rstrip()
    known = _by_text()
    if plain in known:
        return known[plain]
    strange = [word for word in plain.split() if word not in vocabulary()]
    if strange:
        near = difflib.get_close_matches(strange[0], vocabulary(), 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"{text!r}: the scenes world does not know the word {strange[0]!r}; {hint}"
            f"(shapes: {', '.join(SHAPES)}; colours: {', '.join(COLOURS)}; relations: {', '.join(RELATIONS)}; "
            f"numbers: {', '.join(NUMBERS.values())})"
        )
    near = difflib.get_close_matches(plain, known, 1, 0) or ["a red circle"]
    raise ValueError(f"{text!r} is not a sentence of the scenes world; the nearest one is {near[0]!r}")


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word of the grammar, sorted."""
    return tuple(sorted({word for p in _everything() for word in p.text.split()}))


@cache
def _by_text() -> Mapping[str, Prompt]:
    return {p.text: p for p in _everything()}


@cache
def _everything() -> tuple[Prompt, ...]:
    pairs = list(permutations(SHAPES, 2))
    painted = list(permutations(COLOURS, 2))
    prompts = [_prompt("single", t.format(s), [required(s)], phrase=t) for t, s in product(PHRASES, SHAPES)]
    prompts += [_prompt("two", f"a {s} and a {t}", [required(s), required(t)]) for s, t in pairs]
    prompts += [
        _prompt("counting", f"{word} {plural(s)}", [required(s, count=n)])
        for n, word in NUMBERS.items()
        for s in SHAPES
    ]
    prompts += [_prompt("colours", f"a {c} {s}", [required(s, c)]) for c, s in product(COLOURS, SHAPES)]
    prompts += [
        _prompt("position", f"a {s} {r} a {t}", [required(s), required(t)], r)
        for (s, t), r in product(pairs, RELATIONS)
    ]
    prompts += [
        _prompt("attribution", f"a {c} {s} and a {d} {t}", [required(s, c), required(t, d)])
        for (s, t), (c, d) in product(pairs, painted)
    ]
    return tuple(prompts)


def plural(shape: str) -> str:
    """ "crosses", "circles", ..."""
    return shape + ("es" if shape.endswith("s") else "s")


def _prompt(
    category: str,
    text: str,
    objects: Sequence[Mapping[str, Any]],
    relation: str | None = None,
    phrase: str | None = None,
) -> Prompt:
    facts = {"world": "scenes", "category": category, "objects": tuple(objects), "relation": relation, "phrase": phrase}
    return Prompt(id=f"{category}/{text.replace(' ', '-')}", text=text, facts=facts)
