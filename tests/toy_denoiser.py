"""A flow model small enough for closed forms: its velocity is linear in the state, with one row of weights a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from burnish.core import PolicySpec
from burnish.models.denoiser import DenoisingPolicy, Network
from burnish.types import Prompt


@dataclass(frozen=True)
class ToyFlow(PolicySpec):
    """v(x, t, p) = x A + g b_p + t c, over latents of `shape`; a picture is the sigmoid of its latent."""

    shape: tuple[int, ...] = (3, 4, 4)
    prompts: int = 4  # prompts are told apart by facts["number"]
    seed: int = 0
    spread: float = 0.3  # of the weights

    def load(self, device: torch.device) -> DenoisingPolicy:
        return DenoisingPolicy(ToyNetwork(self, device))


class ToyNetwork(Network):
    def __init__(self, spec: ToyFlow, device: torch.device) -> None:
        self.device, self.shape, self.evaluations = device, spec.shape, 0
        random = torch.Generator().manual_seed(spec.seed)
        channels = spec.shape[0]
        shapes = {"mix": (channels, channels), "prompt": (spec.prompts, channels), "time": (channels,)}
        self.weights = {
            name: torch.nn.Parameter(torch.randn(shape, generator=random).to(device) * spec.spread)
            for name, shape in shapes.items()
        }

    def conditions(self, prompts: Sequence[Prompt]) -> Tensor:
        return torch.tensor([p.facts["number"] for p in prompts], device=self.device)

    def velocity(
        self, x: Float[Tensor, "n c h w"], t: Float[Tensor, " n"], conditions: Tensor, guidance: float
    ) -> Float[Tensor, "n c h w"]:
        self.evaluations += len(x)
        shift = guidance * self.weights["prompt"][conditions] + t.unsqueeze(1).to(x.dtype) * self.weights["time"]
        return torch.einsum("nchw,cd->ndhw", x, self.weights["mix"]) + shift[..., None, None]

    def times(self, steps: int) -> Float[Tensor, " steps+1"]:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    def start(self, noise: Float[Tensor, "n c h w"], steps: int) -> Float[Tensor, "n c h w"]:
        return noise

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return latents.sigmoid()

    def latents(self, pictures: Sequence[Float[Tensor, "c h w"]]) -> Float[Tensor, "n c h w"]:
        return torch.stack(list(pictures)).logit(eps=1e-6)

    def trained(self) -> Sequence[tuple[str, torch.nn.Parameter]]:
        return list(self.weights.items())

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: weight.detach() for name, weight in self.weights.items()}, folder / "model.safetensors")


def asked(each: int, prompts: int = 2) -> list[Prompt]:
    """`each` samples of every prompt, after one another."""
    return [Prompt(f"toy/{i}", f"thing {i}", {"number": i}) for i in range(prompts) for _ in range(each)]
