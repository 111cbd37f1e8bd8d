"""Does a video show what was asked for? Every frame is read as a picture, and every object is followed through them.

What counts, beside what verify.py asks of each single frame:

- An object keeps its colour through all frames, also where the prompt leaves the colour open.
- "moving right" is at least `WAY` pixels to the right between the first frame and the last, and `LEAN` times as far as
  up or down, without a step back of more than `BACK` pixels and without a step of more than half the way, which would
  be a jump. Towards and away from count the distance of the two centres in the same manner.
- What is not said to move is never more than `STILL` pixels from where it was.

The two objects of a prompt have different shapes, so that an object is followed by its shape.

`python -m burnish.worlds.scenes.motion --scenes 2000` prints how often it is right, by category.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from burnish.formulas.frames import is_video, pictures_of
from burnish.formulas.noise import generator
from burnish.types import Prompt
from burnish.worlds.scenes.moving import APPROACHES, CATEGORIES, MOTIONS, captions, prompt, render_moving
from burnish.worlds.scenes.read import read
from burnish.worlds.scenes.render import Object
from burnish.worlds.scenes.verify import Requirement, Verdicts, damaged, print_table, requirements, verify

WAY = 9.0  # pixels; drawn objects go 14 or more
LEAN = 1.5  # the direction may be up to 34 degrees off; drawn ones are at most 8
BACK = 1.5  # pixels
JUMP = 0.5  # of the way; drawn objects go a seventh of it in a step
STILL = 4.0  # pixels; what is read of a drawn one strays by less than 1


def judge(media: Float[Tensor, "b *f 3 64 64"], prompts: Sequence[Prompt]) -> Verdicts:
    """Check pictures, or videos, against their prompts. Of a video, `seen` is what its last frame shows.

    Raises ValueError, naming the prompt, for one that is not of the scenes world, and for pictures of a motion.
    """
    if len(media) != len(prompts):
        raise ValueError(f"the scenes verifier got {len(media)} samples for {len(prompts)} prompts")
    facts = [_facts(p) for p in prompts]
    if not is_video(media):
        moving = next((p for p, f in zip(prompts, facts, strict=True) if "motions" in f), None)
        if moving is not None:
            raise ValueError(f"prompt {moving.id!r} asks for a motion, which a picture cannot show; draw videos")
        return verify(media, prompts)
    videos = read_videos(media)
    checked = [checks(video, f) for video, f in zip(videos, facts, strict=True)]
    return Verdicts(
        right=torch.tensor([all(r.met for each in some for r in each) for some in checked], dtype=torch.bool),
        share=torch.tensor([np.mean([np.mean([r.met for r in each]) for each in some]) for some in checked]).float(),
        reasons=tuple(next((r.reason for each in some for r in each if not r.met), "") for some in checked),
        seen=tuple(video[-1] for video in videos),
    )


def read_videos(videos: Float[Tensor, "b f 3 64 64"]) -> list[list[tuple[Object, ...]]]:
    """The objects of every frame of every video."""
    frames, objects = videos.shape[1], read(pictures_of(videos))
    return [objects[start : start + frames] for start in range(0, len(objects), frames)]


def shows(video: Sequence[Sequence[Object]], facts: Mapping[str, Any]) -> bool:
    """Whether these objects, frame by frame, are what `facts` ask for."""
    return all(r.met for each in checks(video, facts) for r in each)


def checks(video: Sequence[Sequence[Object]], facts: Mapping[str, Any]) -> list[tuple[Requirement, ...]]:
    """Everything that `facts` ask for, one entry each: what all frames must show, frame by frame, and what happens."""
    every = list(zip(*(requirements(objects, facts) for objects in video), strict=True))
    tracks = [_track(video, want["shape"]) for want in facts["objects"]]
    for want, motion, track in zip(facts["objects"], facts.get("motions", ()), tracks, strict=False):
        every.append((_kept(want["shape"], track),))
        every.append((_moved(want["shape"], motion, track, [t for t in tracks if t is not track]),))
    return every


def _facts(asked: Prompt) -> Mapping[str, Any]:
    if asked.facts.get("world") == "scenes":
        return asked.facts
    try:
        return prompt(asked.text).facts
    except ValueError as error:
        raise ValueError(f"prompt {asked.id!r} cannot be verified, it is not of the scenes world: {error}") from None


Track = tuple[Object, ...]  # one object, frame by frame; empty if it was lost


def _track(video: Sequence[Sequence[Object]], shape: str) -> Track:
    found = [[o for o in objects if o.shape == shape] for objects in video]
    return tuple(some[0] for some in found) if all(len(some) == 1 for some in found) else ()


def _kept(shape: str, track: Track) -> Requirement:
    colours = list(dict.fromkeys(o.colour for o in track))
    met = len(colours) == 1
    return Requirement(met, "" if met else f"wants one {shape} throughout, sees {' then '.join(colours) or 'none'}")


def _moved(shape: str, motion: str, track: Track, others: Sequence[Track]) -> Requirement:
    if not track or not all(others):
        return Requirement(False, f"cannot follow the {shape}")
    path = _path(track)
    gone = path[-1] - path[0]
    if motion == "still":
        far = float(np.linalg.norm(path - path[0], axis=1).max())
        return _requirement(far <= STILL, f"wants the {shape} to stand still, it goes {far:.0f} pixels")
    if motion in APPROACHES:
        distance = np.linalg.norm(path - _path(others[0]), axis=1)
        along = -APPROACHES[motion] * distance
        way = along[-1] - along[0]
        met = _steady(along)
        return _requirement(met, f"wants the {shape} {motion} the other, it comes {way:.0f} pixels that way")
    direction = np.array(MOTIONS[motion], float)
    along, across = path @ direction, abs(gone @ direction[::-1])
    met = _steady(along) and along[-1] - along[0] >= LEAN * across
    return _requirement(met, f"wants the {shape} moving {motion}, it goes {gone[0]:+.0f} right, {gone[1]:+.0f} down")


def _steady(along: np.ndarray) -> bool:
    """Whether a coordinate goes up far enough, without going back and without a jump."""
    way, steps = along[-1] - along[0], np.diff(along)
    return bool(way >= WAY and steps.min() >= -BACK and steps.max() <= JUMP * way)


def _path(track: Track) -> np.ndarray:
    return np.array([(o.x, o.y) for o in track])


def _requirement(met: bool, reason: str) -> Requirement:
    return Requirement(bool(met), "" if met else reason)


# --- how often it is right --------------------------------------------------------------------------------------------


def accuracy(scenes: int, damage: Callable[[Tensor], Tensor], seed: int = 0) -> tuple[dict[str, float], list[str]]:
    """Share of damaged videos, by category and over "all", that are found to show what they were drawn for.

    Beside them the share of which the truth is told otherwise: "reversed" and "frozen" (the first frame throughout),
    which no prompt is true of, are refused; "mismatched", what `shows` says of the objects drawn and another prompt.
    Also the mistakes, in words.
    """
    pairs = captions(scenes, generator(seed, "moving verifier"))
    right: dict[str, list[bool]] = {name: [] for name in (*CATEGORIES, "all", "reversed", "frozen", "mismatched")}
    mistakes = []
    for start in range(0, scenes, 50):
        some = pairs[start : start + 50]
        clean = render_moving([frames for _, frames in some])
        seen = read_videos(damage(clean.flatten(0, 1)).view_as(clean))
        for i, (video, (asked, frames)) in enumerate(zip(seen, some, strict=True)):
            reasons = [r.reason for each in checks(video, asked.facts) for r in each if not r.met]
            right[str(asked.facts["category"])].append(not reasons)
            right["all"].append(not reasons)
            mistakes += [f"{asked.text}: {reason}" for reason in reasons[:1]]
            right["reversed"].append(not shows(video[::-1], asked.facts))
            right["frozen"].append(not shows(video[:1] * len(video), asked.facts))
            other, truth = some[i - 1][0].facts, [frame.objects for frame in frames]
            right["mismatched"].append(shows(video, other) == shows(truth, other))
    return {name: float(np.mean(some)) if some else float("nan") for name, some in right.items()}, mistakes


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: a table of `accuracy`, one column a kind of damage."""
    parser = argparse.ArgumentParser(prog="python -m burnish.worlds.scenes.motion", description=main.__doc__)
    parser.add_argument("--scenes", type=int, default=2000, help="videos to render and read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--damage", nargs="+", default=["none", "blur", "jpeg"], help="as verify.damaged has it")
    options = parser.parse_args(arguments)
    kinds = {how: partial(damaged, how=how, rng=generator(options.seed, how)) for how in options.damage}
    print_table({how: accuracy(options.scenes, damage, options.seed) for how, damage in kinds.items()})


if __name__ == "__main__":
    main()
