"""A recipe: everything that decides what a run does. YAML and Python are the same object (`decode` and `encode`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from burnish.core import Advantage, Copy, Objective, PolicySpec, Reward, Source, Suite
from burnish.crew import Workers


@dataclass(frozen=True)
class Average:
    """A moving average of the trained weights, average <- d average + (1 - d) weights, after all updates of a step."""

    decay: float  # d
    every: int = 1  # training steps from one move to the next
    warmup: bool = True  # d is (1 + i) / (10 + i) at most in step i; in Flow-GRPO and diffusers i counts updates

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1 or self.every < 1:
            raise ValueError(
                "optim.ema: expected a decay from 0 to below 1 and every 1 or more, "
                f"got decay {self.decay:g} and every {self.every}"
            )


@dataclass(frozen=True)
class Optim:
    """AdamW, of which weights, and how a rollout is cut into updates."""

    only: tuple[str, ...] = ()  # patterns: of the weights a policy trains, those in whose name one is found; none: all
    lr: float = 1e-5  # learning rate after warm-up
    betas: tuple[float, float] = (0.9, 0.999)  # decay of the moment averages
    eps: float = 1e-8  # added to the denominator of the update
    weight_decay: float = 0.0  # decoupled weight decay
    moments: Literal[32, 8] = 32  # bits in which the moment averages are kept; 8 (torchao) saves 6 bytes a weight
    clip_norm: float = 1.0  # largest norm of the gradient of one update; 0 does not clip
    warmup: int = 0  # updates over which the learning rate rises from 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after warm-up, down to 0 at the last step
    epochs: int = 1  # passes over each rollout
    minibatches: int = 1  # updates in one pass; each takes an equal share of the samples
    by_step: bool = False  # an update takes one step of each sample: a minibatch is as many updates as there are steps
    ema: Average | None = None  # an average of the weights: suites look at it, and a run is opened with it
    micro: int = 0  # samples in one forward pass; 0 takes the whole minibatch. Changes memory, not the update


@dataclass(frozen=True)
class Learners:
    """Processes that learn together on a Ray cluster, and what Ray sets aside for each."""

    count: int = 1  # processes
    cpus: float = 1.0  # processor cores of each
    gpus: float | None = None  # of each: 1 or 0; None: 1 if the cluster has GPUs and the device is not the processor
    restarts: int = 3  # how often they may be started again, from the last checkpoint, when one of them dies

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"learners.count: expected 1 or more, got {self.count}")
        if self.gpus not in (None, 0, 1):
            raise ValueError(f"learners.gpus: expected 0 or 1 for each process, got {self.gpus:g}")
        if self.cpus < 0 or self.restarts < 0:
            raise ValueError(f"learners: expected 0 or more, got cpus {self.cpus:g} and restarts {self.restarts}")


@dataclass(frozen=True)
class Recipe:
    """What a run does: which samples it draws, what it makes of them, and when it looks at itself."""

    policy: PolicySpec
    source: Source
    reward: Reward
    objective: Objective
    advantage: Advantage
    steps: int  # updates of the outer loop: draw, score, weigh, update
    optim: Optim = field(default_factory=Optim)
    seed: int = 0  # of everything random in the run
    flat_groups: Literal["keep", "drop", "refill"] = (
        "keep"  # groups whose scores are all equal: count in the loss, do not, or are replaced by new draws
    )
    measures: Mapping[str, Reward] = field(default_factory=dict)  # scored and reported, never trained on
    suites: Mapping[str, Suite] = field(
        default_factory=dict
    )  # run before the first step, every `evaluate_every` and at the end
    evaluate_every: int = 0  # steps between evaluations; 0 evaluates before and after only
    checkpoint_every: int = 50  # steps between checkpoints; one is always written at the end
    keep_checkpoints: int = 2  # older ones are removed
    samples_every: int = 10  # steps between saved sample grids
    learners: Learners | None = None  # processes on a Ray cluster; None: this one, or those of torchrun
    drawers: Workers | None = None  # on a Ray cluster, of each process; None: each draws itself
    scorers: Workers | None = None  # on a Ray cluster, of each process, who load the reward; None: each scores itself
    device: str = "auto"  # auto takes the accelerator if there is one
    overlap: bool = False  # score a part of a step (the source's rows) while the next one is drawn
    rewards_rest: bool = False  # reward models are in main memory but while they score; on an accelerator
    shard: bool = False  # divide weights, moments and copies among the processes of the run (FSDP2); alone: do not

    def copies(self) -> Mapping[str, Copy]:
        """The copies of the trained weights that a run keeps, by name: what its components compare with, and "ema"."""
        reference = {"reference": Copy()} if self.advantage.reads_reference else {}
        kept = {**reference, **self.objective.needs().copies}
        if (ema := self.optim.ema) is not None:
            kept["ema"] = Copy(ema.decay, warmup=ema.warmup, every="step", interval=ema.every)
        return kept

    @property
    def evaluated(self) -> str:
        """The weights that suites look at, and that a run is opened with: "ema" if it is kept, or "live"."""
        return "live" if self.optim.ema is None else "ema"
