"""What a step of a flow costs (drawing and the gradient) against a plain loop, and the evaluations that plans promise.

    python benchmarks/flow.py                         # the world's flow: 4 prompts, groups of 8, 8 steps, one thread
    python benchmarks/flow.py --compile               # all steps also by a compiled network: minutes more, uncounted
    python benchmarks/flow.py --steps 4 --repeats 1   # seconds
    python benchmarks/flow.py --released 256 --prompts 1 --group 2 --steps 2 --micro 1      # minutes a round, 20 GiB

released     Stable Diffusion 3.5 medium with adapters, in bfloat16, of random weights: its three text encoders whole,
             128 tokens of a text as in Flow-GRPO, pictures of so many pixels. All steps only
plain        the loop below over the same weights: texts encoded for every sample in every step, the empty one beside
             each for guidance, every sample on its own, one forward and backward pass a step; it draws our pictures
cpu          processor seconds; ratios are medians over rounds in which all take their turn
evaluations  states that the network is asked about, counted, beside what the plan promises
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from burnish.core import LatentPlan
from burnish.formulas.noise import Noise
from burnish.making.released import sd3
from burnish.models.denoiser import DenoisingPolicy
from burnish.models.diffusers_parts import Texts
from burnish.models.lora import Lora
from burnish.models.places import locate
from burnish.plans.single_branch import SingleBranch
from burnish.plans.tree import Tree
from burnish.plans.window import Window
from burnish.policies.sd3 import SD3
from burnish.transitions.flow_sde import FlowSDE
from burnish.types import Prompt, take
from burnish.worlds.scenes.grammar import heldout

NOISE = 0.7  # Flow-GRPO's
CPU = torch.device("cpu")
WORLD = SD3(str(locate("burnish:worlds/scenes/weights/flow")), pixels=64, t5=False, text_length=1, shift=3.0)
WHOLE: Mapping[str, Mapping[str, int]] = {  # what `burnish bench --random` leaves out of the released text encoders
    "text_encoder": {"num_hidden_layers": 12},
    "text_encoder_2": {"num_hidden_layers": 32},
    "text_encoder_3": {"num_layers": 24, "d_ff": 10240},
}


def released(pixels: int, folder: Path) -> DenoisingPolicy:
    """Stable Diffusion 3.5 medium with Flow-GRPO's adapters, all of random weights."""
    asked = SD3("", pixels=pixels, text_length=128, precision="bf16", lora=Lora(rank=32, alpha=64))
    policy = sd3(asked, folder).load(CPU)
    pipeline = policy.network.pipeline
    torch.set_default_dtype(torch.bfloat16)
    for name, shape in WHOLE.items():
        part = getattr(pipeline, name)
        whole = type(part)(type(part.config)(**{**part.config.to_dict(), **shape}))
        setattr(pipeline, name, whole.eval().requires_grad_(False))
    torch.set_default_dtype(torch.float32)
    return policy


class Plain:
    """Flow-GRPO's sampler and its gradient, one step after another."""

    def __init__(self, policy: DenoisingPolicy, guidance: float, times: Tensor, micro: int) -> None:
        self.network, self.pipeline, self.shape = policy.network, policy.network.pipeline, policy.network.shape
        self.guidance, self.times, self.micro = guidance, times.double(), micro

    def velocity(self, x: Tensor, t: Tensor, texts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            features, empty, pooled, none = self.pipeline.encode_prompt(
                list(texts), None, None, negative_prompt=[""] * len(texts), do_classifier_free_guidance=True,
                max_sequence_length=self.network.spec.text_length,
            )  # fmt: skip
        both = torch.cat([x, x]), torch.cat([empty, features]), torch.cat([none, pooled])
        with self.network.autocast():
            v = self.pipeline.transformer(*both, (t.float() * 1000).expand(2 * len(x))).sample
        away, there = v.float().chunk(2)
        return away + self.guidance * (there - away)

    def move(self, x: Tensor, t: Tensor, s: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Mean and deviation of a step of the stochastic equation (arXiv:2505.05470, eq. 9)."""
        v = self.velocity(x, t, texts)
        sigma = NOISE * (t / (1 - torch.where(t < 1, t, s))).sqrt()
        drift = v + sigma**2 / (2 * t) * (x + (1 - t) * v)
        return (x + drift * (s - t)).float(), (sigma * (t - s).sqrt()).float()

    @torch.no_grad()
    def draw(self, texts: Sequence[str], noise: Noise) -> tuple[list[Tensor], Tensor]:
        """Every state on the way, and the pictures."""
        states = [noise.normal(self.shape, "start")]
        for i, (t, s) in enumerate(pairwise(self.times)):
            mean, std = self.move(states[-1], t, s, texts)
            states.append(mean + std * noise.normal(self.shape, f"step {i}"))
        vae = self.pipeline.vae
        latents = states[-1] / vae.config.scaling_factor + vae.config.shift_factor
        return states, (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)

    def learn(self, texts: Sequence[str], states: Sequence[Tensor], advantage: Tensor) -> None:
        """The gradient of the ratios' mean, on the weights."""
        for (before, after), (t, s) in zip(pairwise(states), pairwise(self.times), strict=True):
            for some in torch.arange(len(texts)).split(self.micro):
                mean, std = self.move(before[some], t, s, [texts[i] for i in some])
                logp = (-(after[some] - mean).square() / (2 * std**2) - std.log()).flatten(1).mean(1)
                total = (-(logp - logp.detach()).exp() * advantage[some]).sum()
                total.div(len(texts) * (len(states) - 1)).backward()


def step(policy: DenoisingPolicy, prompts: Sequence[Prompt], plan: LatentPlan, advantage: Tensor, micro: int) -> Tensor:
    """The same by a policy, which has not read the texts before. Returns the pictures."""
    policy.network.texts = Texts(policy.network.encode, CPU)
    rollout = policy.sample(prompts, plan, Noise(0, 1, tuple(range(len(prompts)))))
    for some in torch.arange(len(prompts)).split(micro):
        part = take(rollout, some)
        total = (-(policy.logp(part) - part.logp).exp() * advantage[some, None] * part.weight).sum()
        total.div(rollout.weight.sum()).backward()
    return rollout.media


def cpu_seconds(jobs: Mapping[str, Callable[[], object]], repeats: int, weights: Sequence[Tensor]) -> dict[str, list]:
    """Of each job in each round, after one that does not count."""
    took: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            for weight in weights:
                weight.grad = None
            began = time.process_time()
            job()
            if turn:
                took[name].append(time.process_time() - began)
    return took


def evaluations(policy: DenoisingPolicy, prompts: Sequence[Prompt], plan: LatentPlan) -> dict[str, float]:
    """Of drawing and of scoring, a sample."""
    rollout = policy.sample(prompts, plan, Noise(0, 1, tuple(range(len(prompts)))))
    assert rollout.evaluations is not None
    before = policy.evaluations
    with torch.no_grad():
        policy.logp(rollout)
    each = (policy.evaluations - before) / len(prompts)
    return {"draw": float(rollout.evaluations.mean()), "update": each}


def promised(name: str, plan: LatentPlan) -> dict[str, float]:
    """What the papers count on: one path until samples part, and one evaluation for all that start from one state."""
    t, g, first = plan.steps, plan.group, plan.learned[0]
    if name == "all steps":
        return {"draw": t, "update": t}
    if name == "tree":  # two leaves a fork
        second = plan.learned[1]
        before = first + 1 + 2 * (second - first)
        return {"draw": (before + 4 * (t - second - 1)) / 4, "update": (1 + 2) / 4}
    return {"draw": (first + 1) / g + t - first - 1, "update": 1 / g + len(plan.learned) - 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--micro", type=int, default=0, help="samples in one backward pass; 0: all")
    parser.add_argument("--released", type=int, default=0, metavar="PIXELS")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    known = parser.parse_args()
    torch.set_num_threads(known.threads)
    with tempfile.TemporaryDirectory() as folder:
        policy = released(known.released, Path(folder)) if known.released else WORLD.load(CPU)
    weights = [weight for _, weight in policy.parameters()]
    prompts = [prompt for prompt in heldout(known.prompts) for _ in range(known.group)]
    advantage = torch.linspace(-1, 1, len(prompts))
    shared = {"group": known.group, "steps": known.steps, "guidance": known.guidance, "transition": FlowSDE(NOISE)}
    every = LatentPlan(stochastic=tuple(range(known.steps)), **shared)
    micro = known.micro or len(prompts)
    plain = Plain(policy, known.guidance, policy.times(known.steps), micro)
    texts, noise = [prompt.text for prompt in prompts], Noise(0, 1, tuple(range(len(prompts))))

    def by_plain() -> Tensor:
        states, pictures = plain.draw(texts, noise)
        plain.learn(texts, states, advantage)
        return pictures

    gap = float((by_plain() - step(policy, prompts, every, advantage, micro)).abs().max())
    assert gap < (0.05 if known.released else 1e-3), f"the plain loop draws other pictures: {gap}"
    plans = {"all steps": every}
    if not known.released:
        plans["window"] = Window(width=2, **shared).at(1)
        plans["single branch"] = SingleBranch(until=known.steps // 2, **shared).at(1)
        plans["tree"] = Tree(forks=(0, known.steps // 2), between="ode", **{**shared, "group": 4}).at(1)
    jobs: dict[str, Callable[[], object]] = {"plain": by_plain}
    jobs |= {name: (lambda plan=plan: step(policy, prompts, plan, advantage, micro)) for name, plan in plans.items()}
    if known.compile:
        quick = replace(policy.network.spec, compile=True).load(CPU)
        weights += [weight for _, weight in quick.parameters()]
        jobs["all steps, compiled"] = lambda: step(quick, prompts, every, advantage, micro)
    took = cpu_seconds(jobs, known.repeats, weights)
    told = {
        "setting": {name: value for name, value in vars(known).items() if name != "json"},
        "largest difference of a pixel": gap,
        "cpu seconds": {name: round(statistics.median(rounds), 3) for name, rounds in took.items()},
        "plain / it, cpu": {
            name: round(statistics.median(a / b for a, b in zip(took["plain"], rounds, strict=True)), 2)
            for name, rounds in took.items()
            if name != "plain"
        },
        "evaluations a sample": {
            name: {"counted": evaluations(policy, prompts, plan), "promised": promised(name, plan)}
            for name, plan in plans.items()
        },
    }
    print(json.dumps(told, indent=1))
    for name, count in told["evaluations a sample"].items():
        assert count["counted"] == count["promised"], f"{name}: {count}"
    if known.json:
        known.json.write_text(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
