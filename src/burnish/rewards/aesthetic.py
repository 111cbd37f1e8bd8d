"""LAION aesthetic score, about 1 to 10. Schuhmann 2022, improved-aesthetic-predictor; the reward of DDPO, 2305.13301.

A chain of linear layers (768-1024-128-64-16-1, dropouts between them and, in the release, no non-linearity) on the unit
picture vector of CLIP ViT-L/14. The prompt is not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from burnish.core import Reward, Scorer
from burnish.models.clip_towers import ClipTowers, load_towers
from burnish.models.released import Dtype, find_file, read_state
from burnish.types import Prompt, Scores


@dataclass(frozen=True)
class Aesthetic(Reward):
    """How good a picture looks, whatever it shows."""

    weights: str = "openai/clip-vit-large-patch14"  # hub id or local folder of a transformers CLIP
    head: str = (
        "trl-lib/ddpo-aesthetic-predictor:aesthetic-model.pth"  # the same weights as sac+logos+ava1-l14-linearMSE.pth
    )
    dtype: Dtype = "float32"  # of CLIP's weights; the head is float32
    batch: int = 64  # pictures in one forward pass

    differentiable: ClassVar[bool] = True

    def load(self, device: torch.device) -> Scorer:
        """Read CLIP and the head. Raises ValueError that names a key of the head that does not fit."""
        towers = load_towers(self.weights, "", "reward.aesthetic.weights", device, self.dtype, self.batch)
        where = "reward.aesthetic.head"
        head = _head(read_state(find_file(self.head, where), where), towers.model.config.projection_dim, where)
        return _AestheticScorer(towers, head.to(device).eval().requires_grad_(False))


class _AestheticScorer(Scorer):
    def __init__(self, towers: ClipTowers, head: nn.Module) -> None:
        self.towers = towers
        self._head = head

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        vectors = self.towers.pictures(images)
        with torch.set_grad_enabled(vectors.requires_grad):
            return Scores.of("aesthetic", self._head(vectors)[:, 0].to(images.device))


def _head(state: dict[str, Tensor], width: int, where: str) -> nn.Module:
    """The linear layers `layers.{i}` in order, with the widths of the file. Dropouts hold the missing numbers."""
    numbers = sorted(
        {int(found[1]) for name in state if (found := re.fullmatch(r"layers\.(\d+)\.(weight|bias)", name))}
    )
    expected = {f"layers.{i}.{part}" for i in numbers for part in ("weight", "bias")}
    if not numbers or state.keys() != expected:
        odd = sorted(state.keys() ^ expected)[:4] or ["layers.0.weight"]
        raise ValueError(
            f"{where}: expected a weight and a bias for every layers.N; missing or surplus: {', '.join(odd)}"
        )
    layers = []
    for i in numbers:
        weight, bias = state[f"layers.{i}.weight"].float(), state[f"layers.{i}.bias"].float()
        outputs = 1 if i == numbers[-1] else len(bias)
        if weight.shape != (outputs, width) or bias.shape != (outputs,):
            shapes = f"{tuple(weight.shape)} with a bias of {tuple(bias.shape)}"
            raise ValueError(f"{where}: layers.{i}.weight is {shapes}, expected ({outputs}, {width})")
        layer = nn.Linear(width, outputs)
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
        width = outputs
    return nn.Sequential(*layers)
