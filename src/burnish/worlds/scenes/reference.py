"""True pictures of the scenes world, for suites that compare a policy with a reference."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from burnish.formulas.noise import generator
from burnish.types import Prompt
from burnish.worlds.scenes.render import draw_scene, render


def pictures(prompts: Sequence[Prompt], seed: int) -> Float[Tensor, "n 3 64 64"]:
    """One random rendered scene for each prompt, of which the prompt is true."""
    return render([draw_scene(p.facts, generator(seed, "scenes", "reference", i)) for i, p in enumerate(prompts)])
