"""True pictures of the scenes world, for suites that compare a policy with a reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.formulas.noise import generator
from burnish.types import Prompt
from burnish.worlds.scenes.render import draw_scene, render

TOKENIZER = "burnish:worlds/scenes/weights/tokenizer"


def pictures(prompts: Sequence[Prompt], seed: int) -> Float[Tensor, "n 3 64 64"]:
    """One random rendered scene for each prompt, of which the prompt is true."""
    return render([draw_scene(p.facts, generator(seed, "scenes", "reference", i)) for i, p in enumerate(prompts)])


@torch.no_grad()
def shown(prompts: Sequence[Prompt], seed: int) -> Float[Tensor, "n 3 64 64"]:
    """The same pictures as the world's tokenizer shows them: the best that a model which draws its tokens can do."""
    from burnish.models.llamagen.files import load_vq
    from burnish.models.llamagen.vq import decode_in_chunks
    from burnish.models.places import fetch

    vq = load_vq(fetch(TOKENIZER), None).eval()
    ids = torch.cat([vq.encode(part) for part in pictures(prompts, seed).split(64)])
    return decode_in_chunks(vq, ids)
