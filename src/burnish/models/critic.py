"""Small networks that learn what a state will be worth, and their upkeep. First weights depend on a seed alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from burnish.formulas.noise import generator
from burnish.models.clip_towers import load_towers

WORDS = 64  # length of the vector of a text, where no model reads it


def linear(*modules: nn.Module) -> list[nn.Linear]:
    """All linear layers, in order."""
    return [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)]


class StepValue(nn.Module):
    """V(x, step): three hidden layers, whose units have a gain of their own at every step. DPOK, reward_model.py."""

    def __init__(self, inputs: int, steps: int, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = [inputs, width, width, width]
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
            self.gains = nn.ParameterList(torch.rand(steps, width) for _ in self.layers)
            self.last = nn.Linear(width, 1)
            for layer in linear(self.layers, self.last):
                nn.init.xavier_normal_(layer.weight)

    def forward(self, x: Float[Tensor, "n d"], step: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        for layer, gain in zip(self.layers, self.gains, strict=True):
            x = F.relu(gain[step] * layer(x))
        return self.last(x).squeeze(-1)


class TimeValue(nn.Module):
    """F(x, t): three hidden layers that see sines and cosines of the time, so that any grid of times will do.

    It begins as 0 everywhere.
    """

    def __init__(self, inputs: int, width: int, seed: int, waves: int = 6) -> None:
        super().__init__()
        self.waves = waves
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = [inputs + 2 * waves, width, width, width]
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
            self.last = nn.Linear(width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Float[Tensor, "n d"], t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        angle = math.pi / 2 * t.unsqueeze(1) * 2.0 ** torch.arange(self.waves, device=t.device)
        x = torch.cat([x, angle.sin().to(x), angle.cos().to(x)], 1)
        for layer in self.layers:
            x = F.silu(layer(x))
        return self.last(x).squeeze(-1)


class PictureValue(nn.Module):
    """V of a picture's features: layers of 1024, 128, 64 and 16 units, without nonlinearity. TDPO-R, critic_model.py.

    The released one drops units at random while it learns; this one does not, so that a run can be resumed.
    """

    def __init__(self, inputs: int, seed: int) -> None:
        super().__init__()
        self.deviation = 1 / (inputs + 1)  # of the first weights of all layers, as released
        sizes = [inputs, 1024, 128, 64, 16, 1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
            for layer in linear(self.layers):
                nn.init.normal_(layer.weight, std=self.deviation)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return self.units(x)[-1].squeeze(-1)

    def units(self, x: Float[Tensor, "n d"]) -> list[Tensor]:
        """What every layer puts out."""
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return found


def clipped_value_loss(
    value: Float[Tensor, " n"], old: Float[Tensor, " n"], target: Float[Tensor, " n"], clip: float
) -> Float[Tensor, ""]:
    """mean max((V - R)^2, (clip(V, V_old +- clip) - R)^2) / 2, as in PPO's released code; clip 0 does not clip."""
    error = (value - target).square()
    if clip > 0:
        near = torch.minimum(torch.maximum(value, old - clip), old + clip)
        error = torch.maximum(error, (near - target).square())
    return error.mean() / 2


@torch.no_grad()
def dormant(units: Float[Tensor, "n u"], threshold: float) -> Bool[Tensor, " u"]:
    """Units whose mean rectified output is no more than `threshold` times that of their layer. Sokar et al. 2023."""
    score = units.relu().mean(0)
    return score / (score.mean() + 1e-9) <= threshold


@torch.no_grad()
def reset(
    net: PictureValue,
    adam: torch.optim.Optimizer,
    x: Float[Tensor, "n d"],
    which: Literal["active", "dormant"],
    threshold: float,
    key: tuple[object, ...],
) -> int:
    """Begin anew with the active, or the dormant, hidden units, as the pictures `x` show them; how many there were.

    Weights into them are drawn again and their biases 0. Weights out of them are drawn again for active units, as
    released, and 0 for dormant ones. Their moments in the optimiser are 0.
    """
    count = 0
    hidden = list(enumerate(zip(net.units(x), pairwise(linear(net.layers)), strict=False)))
    for number, (units, (into, out)) in reversed(hidden):  # so that ways out are 0 also into a unit that begins anew
        asleep = dormant(units, threshold)
        chosen = asleep if which == "dormant" else ~asleep
        count += int(chosen.sum())
        random = generator("reset", *key, number)
        into.weight[chosen] = _drawn(random, into.weight[chosen], net.deviation)
        into.bias[chosen] = 0.0
        fresh = _drawn(random, out.weight[:, chosen], net.deviation)
        out.weight[:, chosen] = fresh if which == "active" else 0.0
        for moment in ("exp_avg", "exp_avg_sq"):
            for weight, rows in ((into.weight, chosen), (into.bias, chosen), (out.weight, (slice(None), chosen))):
                if weight in adam.state:
                    adam.state[weight][moment][rows] = 0.0
    return count


def _drawn(random: np.random.Generator, like: Tensor, deviation: float) -> Tensor:
    return torch.from_numpy(random.normal(scale=deviation, size=tuple(like.shape))).to(like)


def text_vectors(weights: str, where: str, device: torch.device) -> Callable[[Sequence[str]], Float[Tensor, "n d"]]:
    """Texts as vectors: of a CLIP, or of empty `weights` the mean over the words of a fixed random vector of each."""
    if not weights:
        return lambda texts: torch.stack([_of_words(text) for text in texts])
    towers = load_towers(weights, "", where, device, "float32", 64)
    return lambda texts: towers.texts(texts).cpu()


def _of_words(text: str) -> Float[Tensor, " d"]:
    words = text.lower().split() or [""]
    return torch.stack([torch.from_numpy(generator("word", word).normal(size=WORDS)) for word in words]).mean(0).float()
