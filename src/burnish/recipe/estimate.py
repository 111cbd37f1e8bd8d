"""What a run will take, from sizes alone: lower bounds, so that a run that cannot fit is not started."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from burnish.core import Copy, Footprint, Sized
from burnish.machine import matrix_rate
from burnish.recipe.check import samples
from burnish.recipe.recipe import Recipe
from burnish.types import Plan, TokenPlan

FLOAT = 4  # bytes of a float32
KEPT_A_LAYER = (
    22  # numbers of hidden width that a token and a layer keep for the backward pass (attention 8, SwiGLU 14)
)


@dataclass(frozen=True)
class Estimate:
    """Bytes by what they are for, and seconds. Rewards and the decoding of pictures are not in it."""

    memory: dict[str, int]
    seconds_a_step: float  # at the measured rate of matrix products; at least this
    rate: float  # measured, in 1e9 multiply-adds a second

    @property
    def total(self) -> int:
        return sum(self.memory.values())


def estimate(recipe: Recipe) -> Estimate | None:
    """Memory and time of a recipe on this machine; None for a policy that does not tell its size."""
    if not isinstance(recipe.policy, Sized):
        return None
    size = recipe.policy.footprint()
    rate = matrix_rate(torch.bfloat16 if size.bytes_per_number == 2 else torch.float32)
    return Estimate(memory(recipe, size), multiply_adds(recipe, size) / rate, rate / 1e9)


def memory(recipe: Recipe, size: Footprint) -> dict[str, int]:
    """Bytes of the largest things a run holds at once."""
    prompts, group = samples(recipe)
    b, plan = prompts * group, recipe.source.plan_at(1)
    copies = recipe.copies()
    adapters = size.trainable if size.trainable < size.parameters else 0
    if adapters and not copies.get("reference", Copy()).renewed:
        copies = copies.keys() - {"reference"}  # it is the network with the adapters switched off
    rows = min(rows for rows in (_rows_at_once(recipe), b) if rows)
    micro = recipe.optim.micro or b // recipe.optim.minibatches
    kept = 2 if size.recompute else KEPT_A_LAYER
    trained = micro * _trained_branches(plan) * size.tokens
    return {
        "weights": (size.parameters + size.frozen + adapters) * FLOAT,
        "gradient": size.trainable * FLOAT,
        "optimiser": 2 * size.trainable * recipe.optim.moments // 8,
        "copies": len(copies) * size.trainable * FLOAT,
        "cache": rows * _drawn_branches(plan) * size.tokens * size.layers * 2 * size.width * size.bytes_per_number,
        "activations": trained * size.layers * kept * size.width * size.bytes_per_number,
    }


def multiply_adds(recipe: Recipe, size: Footprint) -> float:
    """Multiply-adds of one step in the network: a token costs one for each parameter, its backward pass two more."""
    prompts, group = samples(recipe)
    plan, tokens = recipe.source.plan_at(1), prompts * group * size.tokens
    drawn = tokens * _drawn_branches(plan)
    scored = tokens * _trained_branches(plan)
    passes = ("reference" in recipe.copies()) + (4 if size.recompute else 3) * recipe.optim.epochs
    return float(size.parameters) * (drawn + scored * passes)


def _drawn_branches(plan: Plan) -> int:
    return 1 if plan.guidance == 1 else 2


def _trained_branches(plan: Plan) -> int:
    return 1 if isinstance(plan, TokenPlan) and plan.law == "conditional" else _drawn_branches(plan)


def _rows_at_once(recipe: Recipe) -> int:
    """Samples drawn at once, where the source has that setting; 0 is all."""
    from burnish.recipe.encode import encode

    data = encode(recipe.source)
    return next(iter(data.values())).get("rows", 0) if isinstance(data, dict) else 0
