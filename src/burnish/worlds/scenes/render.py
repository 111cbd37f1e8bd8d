"""Scenes: drawn at random so that a prompt is true of them, and rendered to 64x64 pictures.

A picture is painted from signed distances: a pixel's coverage by a shape is `clip(1/2 - distance in pixels, 0, 1)`,
which is an anti-aliased edge one pixel wide. Everything is numpy on small patches: a core draws and renders over two
thousand scenes a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from burnish.formulas.noise import generator
from burnish.types import Prompt
from burnish.worlds.scenes.grammar import CATEGORIES, COLOURS, SHAPES, Split, choose

S = TypeVar("S")
SIDE = 64  # pixels of a picture's side
PATCH = 32  # pixels of the square that an object is painted in; the largest object fits with its soft edge
GAP = 4  # pixels left free between the boxes of two objects, and at least two at the border
RGB: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (38, 158, 70),
    "blue": (40, 92, 216),
    "yellow": (246, 196, 20),
    "purple": (152, 56, 186),
    "black": (32, 32, 38),
}
BACKGROUNDS: Mapping[str, tuple[int, int, int]] = {
    "ivory": (246, 242, 230),
    "mist": (228, 237, 245),
    "mint": (230, 243, 232),
    "rose": (247, 232, 232),
    "pearl": (236, 236, 238),
}


@dataclass(frozen=True)
class Object:
    """One thing in a scene. Pixels; x grows to the right and y downwards."""

    shape: str
    colour: str
    x: float  # centre of the shape's box
    y: float
    size: float  # side of that box
    shade: float = 1.0  # brightness, as a factor on the colour


@dataclass(frozen=True)
class Scene:
    """Everything a picture shows."""

    objects: tuple[Object, ...]
    background: tuple[float, float, float]  # 0 to 255


def draw_scene(facts: Mapping[str, Any], rng: np.random.Generator) -> Scene:
    """A random scene of which `facts` (of a scenes prompt) are true. What they leave open is drawn uniformly."""
    wanted = [o for o in facts["objects"] for _ in range(o["count"])]
    colours = [o["colour"] or COLOURS[rng.integers(len(COLOURS))] for o in wanted]
    centres, sizes = _arrangement(len(wanted), facts["relation"], rng)
    objects = tuple(
        Object(o["shape"], c, float(x), float(y), float(s))
        for o, c, (x, y), s in zip(wanted, colours, centres, sizes, strict=True)
    )
    return Scene(objects, list(BACKGROUNDS.values())[rng.integers(len(BACKGROUNDS))])


def captions(n: int, rng: np.random.Generator, split: Split = "all") -> list[tuple[Prompt, Scene]]:
    """`n` pairs of a prompt and a scene it is true of. The category is drawn first, then a prompt of it, uniformly.

    The held-out combinations concern reinforcement learning, so a base model may be trained on `split="all"`. With
    "train", no *prompt* has a held-out combination; a colour that the prompt leaves open is still any colour.
    """
    return paired(n, choose(split), CATEGORIES, draw_scene, rng)


def pictures() -> list[tuple[Prompt, Float[Tensor, "3 64 64"]]]:
    """500 captions to train on with pictures that they are true of, always the same (objectives/pretraining.py)."""
    pairs = captions(500, generator(0, "pictures"), "train")
    return list(zip([prompt for prompt, _ in pairs], render([scene for _, scene in pairs]), strict=True))


def paired(
    n: int,
    prompts: Sequence[Prompt],
    categories: Sequence[str],
    draw: Callable[[Mapping[str, Any], np.random.Generator], S],
    rng: np.random.Generator,
) -> list[tuple[Prompt, S]]:
    """`n` pairs of a prompt and what `draw` makes of its facts. The category is drawn first, then a prompt of it."""
    kinds = [[p for p in prompts if p.facts["category"] == category] for category in categories]
    pairs = []
    for _ in range(n):
        kind = kinds[rng.integers(len(kinds))]
        prompt = kind[rng.integers(len(kind))]
        pairs.append((prompt, draw(prompt.facts, rng)))
    return pairs


def render(scenes: Sequence[Scene]) -> Float[Tensor, "b 3 64 64"]:
    """Pictures of scenes, in [0, 1]."""
    pad = PATCH // 2  # a patch may reach over the border; the canvas is cut afterwards
    canvas = np.empty((len(scenes), SIDE + 2 * pad, SIDE + 2 * pad, 3), np.float32)
    canvas[:] = np.array([s.background for s in scenes], np.float32).reshape(-1, 1, 1, 3)
    placed = [(i, o) for i, scene in enumerate(scenes) for o in scene.objects]
    for shape in SHAPES:
        mine = [(i, o) for i, o in placed if o.shape == shape]
        if not mine:
            continue
        corner = np.array([(round(o.x), round(o.y)) for _, o in mine])
        offset = corner - np.array([(o.x, o.y) for _, o in mine])
        cover = coverage(shape, offset, np.array([o.size for _, o in mine]))
        for (i, o), (left, top), alpha in zip(mine, corner, cover, strict=True):
            patch = canvas[i, top : top + PATCH, left : left + PATCH]
            patch += alpha[..., None] * (np.array(RGB[o.colour], np.float32) * o.shade - patch)
    pictures = canvas[:, pad:-pad, pad:-pad].clip(0, 255) / 255
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))


def coverage(shape: str, offset: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Share of every pixel that a shape covers, (n, PATCH, PATCH). `offset` (n, 2) is minus its centre's place in the
    patch, counted from the patch's middle; `size` (n) the side of its box, pixels."""
    grid = np.arange(PATCH, dtype=np.float32) + 0.5 - PATCH / 2
    half = (size / 2).astype(np.float32).reshape(-1, 1, 1)
    u = (grid.reshape(1, 1, -1) + offset[:, 0].astype(np.float32).reshape(-1, 1, 1)) / half
    v = (grid.reshape(1, -1, 1) + offset[:, 1].astype(np.float32).reshape(-1, 1, 1)) / half
    return np.clip(0.5 - _distance(shape, u, v) * half, 0, 1)


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the shape's edge, negative inside, in half sides of its box, whose middle is (0, 0)."""
    if shape == "circle":
        return np.sqrt(u * u + v * v) - 1
    if shape == "square":
        return np.maximum(abs(u), abs(v)) - 0.92
    if shape == "triangle":  # apex (0, -1), base from (-1, 1) to (1, 1)
        return np.maximum((2 * abs(u) - (v + 1)) / np.sqrt(5), v - 1)
    if shape == "cross":
        arm = 0.38
        return np.minimum(np.maximum(abs(u) - arm, abs(v) - 1), np.maximum(abs(u) - 1, abs(v) - arm))
    if shape == "star":
        return _star(u, v)
    raise ValueError(f"the scenes world has no shape {shape!r}; choose one of {', '.join(SHAPES)}")


def _star(u: np.ndarray, v: np.ndarray, tip: float = 1.14, dent: float = 0.56) -> np.ndarray:
    """Five points of radius `tip`, and between them dents of radius `dent`. Folded onto one half of one point."""
    v = v - 0.1  # the box of a star with a point upwards is not centred on the star
    radius = np.sqrt(u * u + v * v)
    angle = abs((np.arctan2(u, -v) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    x, y = radius * np.sin(angle), radius * np.cos(angle)
    edge = np.array([dent * np.sin(np.pi / 5), dent * np.cos(np.pi / 5) - tip])
    return ((y - tip) * edge[0] - x * edge[1]) / np.hypot(*edge)


def _arrangement(n: int, relation: str | None, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Centres (n, 2) and sizes (n) of objects that keep their distance, the first two standing in `relation`."""
    while True:
        sizes = rng.uniform(18, 24 if n <= 2 else 21, n)
        centres: list[np.ndarray] = []
        free = np.zeros((SIDE, SIDE), bool)
        for i, size in enumerate(sizes):
            low = int(np.ceil(size / 2 + 2))
            free[:] = False
            free[low : SIDE - low + 1, low : SIDE - low + 1] = True
            for (x, y), other in zip(centres, sizes, strict=False):
                away = (size + other) / 2 + GAP
                y0, y1 = max(0, int(np.ceil(y - away))), int(np.floor(y + away)) + 1
                x0, x1 = max(0, int(np.ceil(x - away))), int(np.floor(x + away)) + 1
                free[y0:y1, x0:x1] = False
            if i == 1 and relation is not None:
                free &= _stands(centres[0], relation)
            places = np.flatnonzero(free)
            if len(places) == 0:
                break  # the earlier ones left no room: start again
            place = places[rng.integers(len(places))]
            centres.append(np.array([place % SIDE, place // SIDE]) + rng.uniform(-0.5, 0.5, 2))
        else:
            return np.array(centres), sizes


def _stands(first: np.ndarray, relation: str) -> np.ndarray:
    """Where the second object may be so that the first clearly stands in `relation` to it. (SIDE, SIDE), rows are y."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    right, down = x - first[0], y - first[1]
    along, across = {
        "left of": (right, down),
        "right of": (-right, down),
        "above": (down, right),
        "below": (-down, right),
    }[relation]
    return (along >= 15) & (along >= 1.2 * abs(across))
