"""Scenes that move: prompts that ask for a motion, and videos of eight frames of which they are true.

    motion    "a circle moving right"                    beside   "a star moving up and a blue square"
    painted   "a red circle moving right"                both     "a circle moving left and a star moving up"
    towards   "a circle moving towards a star", "a circle moving away from a star"

An object that is not said to move stands still. No single frame tells any of this: reversed in time, every video is of
another sentence. The split is by combination, as in grammar.py: a prompt is held out if it has a moving shape and a
direction of `HELD_MOTIONS`, or a colour or a pair of shapes that is held out there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import permutations, product
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from burnish.types import Prompt
from burnish.worlds.scenes import grammar
from burnish.worlds.scenes.grammar import COLOURS, HELD_COLOURS, HELD_PAIRS, SHAPES, Split, required
from burnish.worlds.scenes.render import BACKGROUNDS, GAP, SIDE, Object, Scene, paired, render

FRAMES = 8  # of a video, unless another number is asked for
MOTIONS: Mapping[str, tuple[int, int]] = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}  # y is down
APPROACHES: Mapping[str, int] = {"towards": 1, "away from": -1}
OF_TWO = ("beside", "both", "towards")
CATEGORIES = ("motion", "painted", *OF_TWO)
HELD_MOTIONS = frozenset(
    {("circle", "left"), ("square", "up"), ("triangle", "right"), ("star", "down"), ("cross", "left")}
)
TRAVEL = (14.0, 28.0)  # pixels that a moving object goes from the first frame to the last
DRIFT = 2.0  # pixels that it strays to the side on its way
TRIES = 32  # places that are tried at once; with two objects up to 99 in 100 do not fit

Moving = tuple[Scene, ...]  # a frame each


def everything() -> tuple[Prompt, ...]:
    """Every prompt, in a fixed order. facts["motions"] has a direction, "still" or an approach for each object."""
    return _everything()


def train() -> tuple[Prompt, ...]:
    """Every prompt without a held-out combination."""
    return tuple(p for p in _everything() if not is_heldout(p.facts))


def evenly() -> tuple[Prompt, ...]:
    """Prompts to train on with the categories taking turns. A prompt that returns has a number in its id."""
    return grammar.in_turns(train(), CATEGORIES)


def of_two() -> tuple[Prompt, ...]:
    """The same of the categories of two objects, which can be taken for each other."""
    return grammar.in_turns(train(), OF_TWO)


def heldout(n: int | None = None, seed: int = 0) -> tuple[Prompt, ...]:
    """Every prompt with a held-out combination; or `n` of them, categories taking turns, as grammar.heldout has it."""
    prompts = tuple(p for p in _everything() if is_heldout(p.facts))
    return prompts if n is None else grammar.balanced(prompts, n, seed, CATEGORIES)


def is_heldout(facts: Mapping[str, Any]) -> bool:
    """Whether these facts contain a held-out combination."""
    objects, motions = facts["objects"], facts["motions"]
    if any((o["shape"], motion) in HELD_MOTIONS for o, motion in zip(objects, motions, strict=True)):
        return True
    if any((o["colour"], o["shape"]) in HELD_COLOURS for o in objects):
        return True
    return len(objects) == 2 and frozenset(o["shape"] for o in objects) in HELD_PAIRS


def prompt(text: str) -> Prompt:
    """The prompt with this text, of these or of the scenes that stand still. ValueError as grammar.prompt raises it."""
    known = _by_text().get(" ".join(text.lower().split()).rstrip(".").rstrip())
    return known or grammar.prompt(text)


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word of these prompts, sorted."""
    return tuple(sorted({word for p in _everything() for word in p.text.split()}))


@cache
def _by_text() -> Mapping[str, Prompt]:
    return {p.text: p for p in _everything()}


@cache
def _everything() -> tuple[Prompt, ...]:
    pairs = list(permutations(SHAPES, 2))
    prompts = [_prompt("motion", f"a {s} moving {m}", [required(s)], m) for s, m in product(SHAPES, MOTIONS)]
    prompts += [
        _prompt("painted", f"a {c} {s} moving {m}", [required(s, c)], m)
        for c, s, m in product(COLOURS, SHAPES, MOTIONS)
    ]
    prompts += [
        _prompt("beside", f"a {s} moving {m} and a {c} {t}", [required(s), required(t, c)], m, "still")
        for (s, t), m, c in product(pairs, MOTIONS, COLOURS)
    ]
    prompts += [
        _prompt("both", f"a {s} moving {m} and a {t} moving {n}", [required(s), required(t)], m, n)
        for (s, t), (m, n) in product(pairs, permutations(MOTIONS, 2))
    ]
    prompts += [
        _prompt("towards", f"a {s} moving {a} a {t}", [required(s), required(t)], a, "still")
        for (s, t), a in product(pairs, APPROACHES)
    ]
    return tuple(prompts)


def _prompt(category: str, text: str, objects: Sequence[Mapping[str, Any]], *motions: str) -> Prompt:
    facts = {
        "world": "scenes",
        "category": category,
        "objects": tuple(objects),
        "relation": None,
        "phrase": None,
        "motions": motions,
    }
    return Prompt(id=f"{category}/{text.replace(' ', '-')}", text=text, facts=facts)


# --- videos -----------------------------------------------------------------------------------------------------------


def draw_moving(facts: Mapping[str, Any], rng: np.random.Generator, frames: int = FRAMES) -> Moving:
    """A random video of which `facts` are true: every object goes straight, at one pace. The rest is uniform."""
    wanted = facts["objects"]
    colours = [o["colour"] or COLOURS[rng.integers(len(COLOURS))] for o in wanted]
    background = list(BACKGROUNDS.values())[rng.integers(len(BACKGROUNDS))]
    paths, sizes = _paths(facts["motions"], rng, frames)
    return tuple(
        Scene(
            tuple(
                Object(o["shape"], colour, float(path[frame, 0]), float(path[frame, 1]), float(size))
                for o, colour, path, size in zip(wanted, colours, paths, sizes, strict=True)
            ),
            background,
        )
        for frame in range(frames)
    )


def captions(
    n: int, rng: np.random.Generator, split: Split = "all", frames: int = FRAMES
) -> list[tuple[Prompt, Moving]]:
    """`n` pairs of a prompt and a video it is true of; the category is drawn first, then a prompt of it, uniformly."""
    if split not in ("train", "heldout", "all"):
        raise ValueError(f"moving prompts have no split {split!r}; choose train, heldout or all")
    prompts = {"train": train, "heldout": heldout, "all": everything}[split]()
    return paired(n, prompts, CATEGORIES, partial(draw_moving, frames=frames), rng)


def render_moving(videos: Sequence[Moving]) -> Float[Tensor, "b f 3 64 64"]:
    """Videos of equal length, in [0, 1]."""
    return render([frame for video in videos for frame in video]).unflatten(0, (len(videos), -1))


def _paths(motions: Sequence[str], rng: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres (n, frames, 2) and sizes (n) of objects that move so, and keep their distance in every frame."""
    n, at = len(motions), np.linspace(0, 1, frames)[:, None]
    while True:  # of TRIES at once, the first that is possible
        sizes = rng.uniform(18, 24 if n == 1 else 20, (TRIES, n))
        room = np.ceil(sizes / 2 + 2)[..., None]
        begin = rng.uniform(room, SIDE - room, (TRIES, n, 2))
        end = begin + np.stack([_way(i, motion, begin, rng) for i, motion in enumerate(motions)], 1)
        paths = begin[:, :, None] + at * (end - begin)[:, :, None]
        good = ((end >= room) & (end <= SIDE - room)).all((1, 2))
        if n == 2:
            good &= abs(paths[:, 0] - paths[:, 1]).max(-1).min(-1) >= sizes.mean(1) + GAP
        if good.any():
            return paths[good.argmax()], sizes[good.argmax()]


def _way(i: int, motion: str, begin: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How far object i goes, x and y, in each try."""
    if motion == "still":
        return np.zeros((TRIES, 2))
    travel = rng.uniform(*TRAVEL, (TRIES, 1))
    if motion in APPROACHES:
        line = begin[:, 1 - i] - begin[:, i]
        return APPROACHES[motion] * travel * line / np.linalg.norm(line, axis=1, keepdims=True)
    along = np.array(MOTIONS[motion], float)
    return travel * along + rng.uniform(-DRIFT, DRIFT, (TRIES, 1)) * along[::-1]
