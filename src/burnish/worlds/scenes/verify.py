"""Is a picture what was asked for? Exact, as the world is: `read` finds the objects, and every requirement is checked.

What counts, by GenEval's categories (Ghosh et al. 2023), where they leave a choice:

- The picture shows what was asked for and nothing else. An object too many fails in every category (GenEval tolerates
  it outside counting); so does a blob that cannot be read, because it is an object that fits nothing.
- A count is exact. A colour belongs to its shape: a blue circle and a red star are not "a red circle and a blue star".
- Position compares centres: at least `MARGIN` pixels along the right axis, and `LEAN` times as far as along the other.

`python -m burnish.worlds.scenes.verify --scenes 5000` prints how often it is right, by category;
with `--tokenizer FOLDER` also on what a tokenizer makes of the pictures.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from burnish.formulas.noise import generator
from burnish.types import Prompt
from burnish.worlds.scenes.grammar import CATEGORIES, NUMBERS, parse, plural
from burnish.worlds.scenes.read import UNREADABLE, read
from burnish.worlds.scenes.render import Object, captions, render

MARGIN = 8.0  # pixels between two centres; drawn ones have at least 14
LEAN = 0.6  # the direction may be up to 59 degrees off; drawn ones are at most 40


@dataclass(frozen=True)
class Requirement:
    """One thing a prompt asks for."""

    met: bool
    reason: str  # what is missing; empty if it is met


@dataclass(frozen=True)
class Verdicts:
    """What became of a batch of pictures."""

    right: Bool[Tensor, " b"]  # every requirement is met
    share: Float[Tensor, " b"]  # of the requirements that are met
    reasons: tuple[str, ...]  # the first unmet requirement; "" where right
    seen: tuple[tuple[Object, ...], ...]  # the objects that were read


def verify(images: Float[Tensor, "b 3 64 64"], prompts: Sequence[Prompt]) -> Verdicts:
    """Read the pictures (float in [0, 1]) and check them against their prompts. Raises ValueError, naming the prompt,
    for one that is not of the scenes world."""
    if len(images) != len(prompts):
        raise ValueError(
            f"the scenes verifier got {len(images)} pictures for {len(prompts)} prompts; it needs one for each"
        )
    facts = [facts_of(p) for p in prompts]
    seen = tuple(read(images))
    checked = [requirements(objects, f) for objects, f in zip(seen, facts, strict=True)]
    return Verdicts(
        right=torch.tensor([all(r.met for r in some) for some in checked], dtype=torch.bool),
        share=torch.tensor([sum(r.met for r in some) / len(some) for some in checked], dtype=torch.float32),
        reasons=tuple(next((r.reason for r in some if not r.met), "") for some in checked),
        seen=seen,
    )


def facts_of(prompt: Prompt) -> Mapping[str, Any]:
    """The facts of a scenes prompt; of one that carries none, what its text says. Raises ValueError for any other."""
    if prompt.facts.get("world") == "scenes":
        return prompt.facts
    try:
        return parse(prompt.text)
    except ValueError as error:
        raise ValueError(f"prompt {prompt.id!r} cannot be verified, it is not of the scenes world: {error}") from None


def satisfies(objects: Sequence[Object], facts: Mapping[str, Any]) -> bool:
    """Whether these objects, and no others, are what `facts` ask for."""
    return all(r.met for r in requirements(objects, facts))


def requirements(objects: Sequence[Object], facts: Mapping[str, Any]) -> tuple[Requirement, ...]:
    """Everything that `facts` ask for, and whether it is there: shapes and counts, colours, relation, nothing else."""
    checks = []
    for want in facts["objects"]:
        shape, colour, count = want["shape"], want["colour"], want["count"]
        same = [o for o in objects if o.shape == shape and o.colour != UNREADABLE]
        checks.append(_check(len(same) == count, f"wants {_some(count, shape)}, sees {_some(len(same), shape)}"))
        if colour is not None:
            painted = sum(o.colour == colour for o in same)
            others = ", ".join(o.colour for o in same) or "none"
            checks.append(_check(painted == count, f"wants {_some(count, shape, colour)}, sees {others}"))
    if facts["relation"] is not None:
        checks.append(_related(objects, facts))
    total = sum(want["count"] for want in facts["objects"])
    checks.append(
        _check(len(objects) == total, f"wants {_some(total, 'object')} in all, sees {_some(len(objects), 'object')}")
    )
    return tuple(checks)


def _related(objects: Sequence[Object], facts: Mapping[str, Any]) -> Requirement:
    first, second = (want["shape"] for want in facts["objects"])
    relation = facts["relation"]
    pairs = [(a, b) for a in objects if a.shape == first for b in objects if b.shape == second]
    met = any(stands(a, b, relation) for a, b in pairs)
    return _check(met, f"wants the {first} {relation} the {second}" + ("" if pairs else ", does not see both"))


def stands(a: Object, b: Object, relation: str) -> bool:
    """Whether `a` is clearly "left of", "right of", "above" or "below" `b`."""
    right, down = b.x - a.x, b.y - a.y
    along, across = {
        "left of": (right, down),
        "right of": (-right, down),
        "above": (down, right),
        "below": (-down, right),
    }[relation]
    return along >= MARGIN and along >= LEAN * abs(across)


def _check(met: bool, reason: str) -> Requirement:
    return Requirement(met, "" if met else reason)


def _some(count: int, thing: str, colour: str | None = None) -> str:
    """ "no circles", "1 red star", "three squares"."""
    number = {0: "no", 1: "1", **NUMBERS}.get(count, str(count))
    return " ".join(w for w in (number, colour, thing if count == 1 else plural(thing)) if w)


def damaged(images: Float[Tensor, "b 3 64 64"], how: str, rng: np.random.Generator) -> Float[Tensor, "b 3 64 64"]:
    """Pictures after "none", "blur" (Gaussian, sigma 0.7 pixels, and noise of 0.02) or "jpeg" (quality 80)."""
    if how == "none":
        return images
    if how == "blur":
        from scipy import ndimage

        soft = ndimage.gaussian_filter(images.numpy(), (0, 0, 0.7, 0.7), mode="nearest")
        noisy = soft + 0.02 * rng.standard_normal(soft.shape, dtype=np.float32)
        return torch.from_numpy(noisy.clip(0, 1)).to(torch.bfloat16).float()
    if how == "jpeg":
        return torch.stack([_jpeg(image) for image in images])
    raise ValueError(f"no damage is called {how!r}; choose none, blur or jpeg")


def _jpeg(image: Float[Tensor, "3 64 64"]) -> Float[Tensor, "3 64 64"]:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)).save(file, "JPEG", quality=80)
    return torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1).float() / 255


def reconstructed(images: Float[Tensor, "b 3 64 64"], tokenizer: Path) -> Float[Tensor, "b 3 64 64"]:
    """Pictures after they were tokens of the VQ tokenizer in this folder. Raises ValueError if it holds none."""
    from burnish.models.llamagen.files import load_vq
    from burnish.models.llamagen.vq import decode_in_chunks

    model = load_vq(tokenizer, None).eval()
    with torch.inference_mode():
        ids = torch.cat([model.encode(some) for some in images.split(64)])
        return decode_in_chunks(model, ids).clone()


def accuracy(scenes: int, damage: Callable[[Tensor], Tensor], seed: int = 0) -> tuple[dict[str, float], list[str]]:
    """Share of damaged pictures, by category and over "all", of which the verifier says what is true: that the picture
    meets the prompt it was drawn for, and, "mismatched", what `satisfies` says of the scene and another prompt. Also
    the mistakes, in words."""
    pairs = captions(scenes, generator(seed, "scenes verifier"))
    prompts, records = [p for p, _ in pairs], [s for _, s in pairs]
    images = damage(render(records))
    right: dict[str, list[bool]] = {category: [] for category in (*CATEGORIES, "mismatched", "all")}
    mistakes = []
    for start in range(0, scenes, 250):
        rows = range(start, min(start + 250, scenes))
        verdicts = verify(images[rows.start : rows.stop], [prompts[i] for i in rows])
        for i, right_now, seen, reason in zip(
            rows, verdicts.right.tolist(), verdicts.seen, verdicts.reasons, strict=True
        ):
            right[str(prompts[i].facts["category"])].append(right_now)
            right["all"].append(right_now)
            other = prompts[(i + 1) % scenes].facts
            right["mismatched"].append(satisfies(seen, other) == satisfies(records[i].objects, other))
            if not right_now:
                mistakes.append(f"{prompts[i].text}: {reason}")
    return {name: float(np.mean(some)) if some else float("nan") for name, some in right.items()}, mistakes


def print_table(tables: Mapping[str, tuple[Mapping[str, float], Sequence[str]]]) -> None:
    """Print a table, one column a kind of damage: what share is right, and the first mistakes."""
    print(f"{'right, percent':16}" + "".join(f"{how:>9}" for how in tables))
    for name in next(iter(tables.values()))[0]:
        print(f"{name:16}" + "".join(f"{100 * table[name]:9.2f}" for table, _ in tables.values()))
    for how, (_, mistakes) in tables.items():
        for line in mistakes[:5]:
            print(f"{how}: {line}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: a table of `accuracy`, one column a kind of damage."""
    parser = argparse.ArgumentParser(prog="python -m burnish.worlds.scenes.verify", description=main.__doc__)
    parser.add_argument("--scenes", type=int, default=5000, help="pictures to render and read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, help="folder of a VQ tokenizer: read its reconstructions too")
    options = parser.parse_args(arguments)
    kinds = {how: partial(damaged, how=how, rng=generator(options.seed, how)) for how in ("none", "blur", "jpeg")}
    if options.tokenizer:
        kinds["tokens"] = partial(reconstructed, tokenizer=options.tokenizer)
    print_table({how: accuracy(options.scenes, damage, options.seed) for how, damage in kinds.items()})


if __name__ == "__main__":
    main()
