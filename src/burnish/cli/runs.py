"""What the command line and `import burnish` share: starting a run, and opening what one left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL.Image import Image, fromarray
from torch import Tensor

from burnish.core import Evaluation, Policy, Suite
from burnish.engine import checkpoint
from burnish.engine.evaluate import evaluate
from burnish.engine.layouts.local import device_of, trained
from burnish.formulas.noise import Noise
from burnish.models.weights import Copies
from burnish.prompts import read_prompts
from burnish.recipe import find, read
from burnish.recipe.check import require
from burnish.recipe.decode import decode
from burnish.recipe.encode import encode
from burnish.recipe.recipe import Recipe
from burnish.types import Prompt


def folder_for(name: str, asked: Path | None, resume: bool) -> Path:
    """Where the run of a recipe goes: where it was asked to, or the first free of runs/NAME, runs/NAME-2, ...

    A recipe that is the folder of a run is resumed in place.
    """
    if asked is not None:
        return asked
    if resume and (Path(name) / "recipe.yaml").is_file():
        return Path(name)
    if resume:
        raise ValueError("which run is to go on? Give its folder: burnish train runs/NAME --resume")
    stem = Path(name).with_suffix("").name if Path(name).exists() else name.replace("/", "-")
    return next(path for path in _numbered(Path("runs") / stem) if not path.exists())


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    yield from (path.with_name(f"{path.name}-{n}") for n in count(2))


def train_into(recipe: Recipe, folder: Path, resume: bool, warn: Callable[[str], None]) -> Path:
    """Check a recipe, run it into a folder and write its report, also when the run was asked to stop."""
    from burnish.engine.loop import train
    from burnish.engine.reporter import Reporter
    from burnish.machine import leads
    from burnish.report import page

    warnings = require(recipe)
    for warning in warnings if leads() else ():
        warn(warning)
    try:
        if recipe.learners is not None:
            from burnish.engine.layouts.on_ray import train_on_ray

            train_on_ray(recipe, folder, resume, warnings)
        else:
            folder = train(recipe, folder, resume, Reporter(folder, warnings=warnings))
    except SystemExit:
        if leads():
            page.write(folder)
        raise
    if leads():
        page.write(folder)
    return folder


@dataclass(frozen=True)
class Model:
    """A policy with its weights, ready to draw."""

    recipe: Recipe
    policy: Policy  # its weights are those that suites looked at: the run's average of them, if it kept one
    step: int | None  # training step of its weights; None for those the recipe starts from

    @property
    def weights(self) -> str:
        """Which weights these are, in words."""
        if self.step is None:
            return "before training"
        return f"after step {self.step}" + ("" if self.recipe.evaluated == "live" else ", average of the weights")

    def sample(
        self, prompts: Sequence[str | Prompt], seed: int = 0, rows: int = 64, **plan: Any
    ) -> list[Image] | list[list[Image]]:
        """One picture for each prompt, drawn as in training; `plan` changes how (`guidance=4.0`, `top_k=100`).

        Of a policy that draws videos: the frames of one, in a list, for each prompt.
        A text that is among the prompts of the recipe brings what is known about it, such as its class.
        The same seed gives the same pictures, however many are drawn at once (`rows`).
        """
        asked = self._prompts(prompts)
        drawn = _plan(self.recipe, plan)
        media = []
        for start in range(0, len(asked), rows):
            some = asked[start : start + rows]
            noise = Noise(seed, 0, tuple(range(start, start + len(some))), "sample")
            media.extend(self.policy.sample(some, drawn, noise).media)
        if self.recipe.policy.videos:
            return [[_picture(frame) for frame in video] for video in media]
        return [_picture(picture) for picture in media]

    def evaluate(self, suites: Mapping[str, Suite], seed: int, reward: bool) -> dict[str, Evaluation]:
        """Each suite in turn; with `reward`, what the recipe's reward says of the pictures too."""
        scorer = self.recipe.reward.load(device_of(self.recipe.device)) if reward else None
        return dict(evaluate(suites, self.policy, self.recipe.source.evaluation(), scorer, seed))

    def export(self, folder: str | PathLike[str]) -> None:
        """Write the model into a new folder, in the format that it was read from; adapters are merged.

        Raises ValueError for a folder with something in it.
        """
        place = Path(folder)
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise ValueError(f"{place}: expected a new or an empty folder")
        self.policy.export(place)

    def _prompts(self, prompts: Sequence[str | Prompt]) -> list[Prompt]:
        if isinstance(prompts, (str, Prompt)):
            raise ValueError("sample takes a list of prompts; for one, write [prompt]")
        known = _known_prompts(self.recipe)
        plain = [p if isinstance(p, Prompt) else known.get(p, Prompt(f"asked/{p}", p)) for p in prompts]
        if not plain:
            raise ValueError("sample needs one prompt at least")
        return plain


def _picture(media: Float[Tensor, "c h w"]) -> Image:
    import numpy as np

    pixels = (media.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return fromarray(np.ascontiguousarray(pixels))


def _known_prompts(recipe: Recipe) -> dict[str, Prompt]:
    """Prompts of the recipe by their text; none where its source has none, or their file is not on this machine."""
    data = encode(recipe.source)
    name = next(iter(data.values())).get("prompts", "") if isinstance(data, dict) else ""
    try:
        return {prompt.text: prompt for prompt in read_prompts(name)}
    except ValueError:
        return {}


def _plan(recipe: Recipe, changes: Mapping[str, Any]) -> Any:
    """How the recipe draws what is only looked at, with changes. Raises ValueError for one it does not know."""
    plan = recipe.source.evaluation()
    known = {field.name: getattr(plan, field.name) for field in fields(plan) if field.name != "group"}
    return decode(type(plan), {**encode(known), **changes}, "plan")


def open_model(name: str, overrides: Sequence[str] = ()) -> Model:
    """The model of a run, with the weights of its newest checkpoint; or that of a recipe, as it starts out.

    Raises ValueError for a name that is neither, and a run without a checkpoint or with a damaged one.
    """
    recipe = read.read(name, overrides)
    device = device_of(recipe.device)
    run = read.locate(name).parent
    is_run = Path(name).expanduser().is_dir()
    newest = checkpoint.latest(run) if is_run else None
    if is_run and newest is None:
        raise ValueError(f"{name}: this run has no checkpoint yet; `burnish train {name} --resume` goes on with it")
    if newest is None:
        return Model(recipe, recipe.policy.load(device), None)
    policy, kept = trained(recipe, device), checkpoint.read(newest)
    weights = Copies.part(kept.weights, recipe.evaluated)
    if not weights:
        raise ValueError(f"{name}: this run kept no average of its weights; optim.ema=null opens those it has")
    policy.restore(weights)
    return Model(recipe, policy, kept.step)


def suites_of(recipe: Recipe, name: str = "") -> dict[str, Suite]:
    """The suites of a recipe; or the one of them that has this name; or a suite component, with its defaults."""
    if not name and recipe.suites:
        return dict(recipe.suites)
    if not name:
        known = ", ".join(find.names(_SUITE))
        raise ValueError(f"the recipe has no suites; name one (choices: {known})")
    if name in recipe.suites:
        return {name: recipe.suites[name]}
    return {name: decode(Suite, name, "suite")}


_SUITE = next(kind for kind in find.KINDS if kind.word == "suite")
