"""Which weights do a method's updates agree about? The mean cosine of the gradients of two steps, by kind of layer.

    python benchmarks/agreement.py scenes/flow_grpo --steps 24 reward.scenes_verified.partial=true

Steps are drawn and their gradients taken, but nothing is learned: every gradient is one draw of one law. With g its
mean and S its variance the cosine is g^2 / (g^2 + S), so (1 / cosine - 1) is how many such steps an update should hold
before its error is as long as itself (the simple noise scale of McCandlish et al. 2018, arXiv:1812.06162, in steps).
The share is that of the squared length. Layers of all blocks count as one kind.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

import burnish
from burnish.engine.layouts.local import trained
from burnish.recipe.read import read


def gradients(name: str, overrides: list[str], steps: int) -> dict[str, Tensor]:
    """The gradients of `steps` steps by name of weight, each (steps, size)."""
    stay = ["optim.lr=1e-30", "optim.weight_decay=0", "optim.clip_norm=0", f"steps={steps}"]
    recipe = read(name, [*overrides, *stay, "evaluate_every=0", "samples_every=0", "suites.heldout=null"])
    names = [weight_name for weight_name, _ in trained(recipe, torch.device("cpu")).parameters()]
    found: dict[str, list[Tensor]] = defaultdict(list)

    def keep(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        weights = optimiser.param_groups[0]["params"]
        if len(weights) == len(names):  # a critic has an optimiser of its own
            for weight_name, weight in zip(names, weights, strict=True):
                gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
                found[weight_name].append(gradient.flatten().float().cpu())

    handle = register_optimizer_step_pre_hook(keep)
    try:
        with tempfile.TemporaryDirectory() as folder:
            burnish.train(recipe, Path(folder) / "run")
    finally:
        handle.remove()
    return {weight_name: torch.stack(each) for weight_name, each in found.items()}


def kind(name: str) -> str:
    """The name of a weight without numbers of blocks, and without what of its layer it is."""
    return re.sub(r"\.\d+\.", ".*.", re.sub(r"\.(weight|bias)$", "", name))


def table(found: dict[str, Tensor]) -> list[tuple[str, float, float, int]]:
    """(kind, mean cosine of two steps, share of the squared length, number of weights), the most agreeing first."""
    products: dict[str, Tensor] = {}
    sizes: dict[str, int] = defaultdict(int)
    for name, each in found.items():
        for key in (kind(name), "all"):
            product = each.double() @ each.double().T
            products[key] = products[key] + product if key in products else product
            sizes[key] += each.shape[1]
    n = len(products["all"])
    length = {key: float(product.diagonal().mean()) for key, product in products.items()}
    rows = []
    for key, product in products.items():
        between = float(product.sum() - product.diagonal().sum()) / (n * (n - 1))
        if length[key]:
            rows.append((key, between / length[key], length[key] / length["all"], sizes[key]))
    return sorted(rows, key=lambda row: -row[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    known = parser.parse_intermixed_args()
    torch.set_num_threads(known.threads)
    print("| weights | cosine | share | number |\n|---|---|---|---|")
    for key, cosine, share, size in table(gradients(known.recipe, known.overrides, known.steps)):
        print(f"| `{key}` | {cosine:.4f} | {share:.3f} | {size} |")


if __name__ == "__main__":
    main()
