"""Toy runs in several processes.

    torchrun --nproc-per-node 2 tests/several.py NAME FOLDER [resume]

Started without arguments it imports everything once, and forks the processes of a run for every line on its standard
input, a JSON object {"name", "folder", "processes", "resume"}; it answers with their exit statuses. What they say is in
said-0.txt, said-1.txt, ... beside the folder.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import toy_denoiser
import toys
from torch import Tensor
from toy_run import everything, recipe

from burnish.advantages.critic import Critic
from burnish.advantages.diverse import Diverse
from burnish.advantages.global_norm import GlobalNorm
from burnish.advantages.prompt_history import PromptHistory
from burnish.advantages.tree import Tree
from burnish.core import Advantage, Evaluation, Policy, PolicySpec, Scorer, Suite
from burnish.engine.bench import bench
from burnish.engine.loop import train
from burnish.engine.reporter import Reporter
from burnish.formulas.noise import Noise
from burnish.models.lora import Lora
from burnish.objectives.dgpo import DGPO
from burnish.objectives.diffusion_nft import DiffusionNFT
from burnish.objectives.gardo import GARDO
from burnish.objectives.ppo_clip import PPOClip
from burnish.objectives.reward_gradient import RewardGradient
from burnish.objectives.step_clip import StepClip
from burnish.plans.all_steps import AllSteps
from burnish.plans.every_token import EveryToken
from burnish.plans.ode import ODE
from burnish.plans.tree import Tree as TreePlan
from burnish.policies.llamagen import LlamaGen
from burnish.policies.sd3 import SD3
from burnish.recipe.recipe import Average, Optim, Recipe
from burnish.sources.on_policy import OnPolicy
from burnish.transitions.flow_sde import FlowSDE
from burnish.types import Plan, Prompt, Rollout, Scores

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Exact(PolicySpec):
    """A toy policy in float64."""

    inner: PolicySpec

    def load(self, device: torch.device) -> Policy:
        policy = self.inner.load(device)
        for _, weight in policy.parameters():
            weight.data = weight.data.double()
        return policy


@dataclass(frozen=True)
class Bright(toys.Reward):
    """Mean gray level, in steps, so that some groups are flat."""

    steps: int = 0  # levels; 0: as it is
    fails: int = -1  # the process that raises at the second call; -1: none
    differentiable = True

    def load(self, device: torch.device) -> Scorer:
        return BrightScorer(self)


class BrightScorer(Scorer):
    def __init__(self, spec: Bright) -> None:
        self.spec, self.calls = spec, 0

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        self.calls += 1
        if self.calls == 2 and self.spec.fails == int(os.environ.get("RANK", "0")):
            raise KeyError("no such endpoint")
        values = images.double().mean((1, 2, 3))
        return Scores.of("bright", (values * self.spec.steps).round() if self.spec.steps else values)


@dataclass(frozen=True)
class Drawn(Suite):
    """Brightness of a few samples, and what the run's reward says of them."""

    def run(self, policy: Policy, plan: Plan, reward: Scorer | None, seed: int) -> Evaluation:
        asked = toy_denoiser.asked(1, 3)
        drawn = policy.sample(asked, plan, Noise(seed, 0, (0, 1, 2), "evaluate"))
        assert reward is not None and drawn.group.tolist() == [0, 1, 2]
        bright = drawn.media.mean((1, 2, 3))
        told = reward(drawn.media, asked).total
        return Evaluation({"bright": float(bright.mean())}, {"told": told}, tuple(asked), drawn.media)


@dataclass(frozen=True)
class Peeks(Advantage):
    """Reads pictures and does not say so."""

    def __call__(self, scores: Scores, rollout: Rollout) -> Tensor:
        return rollout.media.mean((1, 2, 3))


def things() -> list[Prompt]:
    """For sources: prompts of the toy flow."""
    return toy_denoiser.asked(1, 4)


def raster(**changes: Any) -> Recipe:
    """Three groups, in float64."""
    fields: dict[str, Any] = {
        "policy": Exact(toys.ToyRaster()),
        "steps": 3,
        "checkpoint_every": 2,
        "samples_every": 2,
        "reward": Bright(),
        "measures": {"again": Bright()},
        "optim": Optim(lr=0.03, epochs=2, minibatches=2, micro=5),
    }
    return recipe(**{**fields, **changes})


def flow(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "policy": toy_denoiser.ToyFlow(),
        "source": OnPolicy("several:things", AllSteps(group=4, steps=4, transition=FlowSDE()), per_step=3),
        "objective": StepClip(),
        "suites": {"drawn": Drawn()},
        "optim": Optim(lr=0.01, minibatches=2),
    }
    return raster(**{**fields, **changes})


# With a small eps the first updates are signs of gradients, and those of nothing are the signs of rounding errors.
GENTLE = Optim(lr=0.01, eps=1e-3, minibatches=2)


def sd3(lora: Lora | None = None, **changes: Any) -> Recipe:
    """A tiny Stable Diffusion 3, whose folder the environment tells."""
    policy = SD3(os.environ["TINY_SD3"], pixels=16, text_length=7, t5=False, lora=lora)
    source = OnPolicy("several:things", AllSteps(group=2, steps=3, transition=FlowSDE()), per_step=4)
    return flow(**{"policy": policy, "source": source, "optim": GENTLE, **changes})


def llamagen(**changes: Any) -> Recipe:
    """A tiny LlamaGen, whose folder the environment tells."""
    model = os.environ["TINY_LLAMAGEN"]
    policy = LlamaGen(model, model, vq="", pixels=8, **changes)
    source = OnPolicy("several:classes", EveryToken(group=2, guidance=2.0), per_step=4)
    objective = PPOClip(kl=0.1, anchor="recomputed")
    return raster(policy=policy, source=source, objective=objective, optim=replace(GENTLE, lr=1e-3), suites={})


def classes() -> list[Prompt]:
    """For sources: classes of the tiny LlamaGen."""
    return [Prompt(str(i), "", {"class_id": i}) for i in range(4)]


NAMED: Mapping[str, Callable[[], Recipe]] = {
    "raster": raster,
    "float32": lambda: raster(policy=toys.ToyRaster()),
    "batch": lambda: raster(advantage=GlobalNorm("batch"), optim=Optim(lr=0.03, minibatches=3)),
    "history": lambda: raster(advantage=PromptHistory(buffer=30, least=10)),
    "leashed": lambda: raster(objective=PPOClip(kl=0.1, anchor="recomputed")),
    "drop": lambda: raster(reward=Bright(steps=2), flat_groups="drop", source=_tokens(2)),
    "refill": lambda: raster(reward=Bright(steps=2), flat_groups="refill", source=_tokens(2)),
    "flow": flow,
    "gardo": lambda: flow(objective=GARDO(StepClip())),
    "dgpo": lambda: flow(objective=DGPO()),
    "ode": lambda: flow(objective=DGPO(), source=OnPolicy("several:things", ODE(group=4, steps=4), per_step=3)),
    "critic": lambda: flow(advantage=Critic(updates=2, batch=8)),
    "diverse": lambda: flow(advantage=Diverse(GlobalNorm())),
    "tree": lambda: flow(advantage=Tree(), source=_tree()),
    "by_step": lambda: flow(optim=Optim(lr=0.01, minibatches=2, by_step=True)),
    "gradient": lambda: flow(objective=RewardGradient(), reward=Bright()),
    # a real pipeline, in float32; with "+shard" after the name its weights are divided
    "grpo": lambda: sd3(objective=StepClip(kl=0.1, kl_form="gaussian")),
    "nft": lambda: sd3(objective=DiffusionNFT(), optim=replace(GENTLE, micro=3)),
    "lora": lambda: sd3(
        lora=Lora(rank=2, alpha=4), objective=StepClip(kl=0.1), optim=replace(GENTLE, ema=Average(0.5))
    ),
    "llamagen": llamagen,
    "recomputing": lambda: llamagen(recompute=True, logp_tokens=20),
    "detached": lambda: replace(llamagen(), source=_detached()),
    "llamagen_lora": lambda: llamagen(lora=Lora(rank=2, alpha=4)),
    "uneven": lambda: sd3(reward=Bright(steps=300), flat_groups="drop", optim=replace(GENTLE, micro=1)),
    "lasting": lambda: replace(sd3(objective=StepClip()), steps=500),
    "sd3_fails": lambda: sd3(objective=StepClip(), reward=Bright(fails=0)),
    "benched": flow,
    "peeks": lambda: raster(advantage=Peeks()),
    "fails": lambda: raster(reward=Bright(fails=1)),
    "leader_fails": lambda: raster(reward=Bright(fails=0)),
    "everything": lambda: _keyed(everything()),
    "longer": lambda: replace(_keyed(everything()), samples_every=5, optim=Optim(lr=0.03, epochs=2, minibatches=2)),
}


def in_float32(name: str) -> bool:
    return not isinstance(NAMED[name]().policy, Exact)


def _tokens(group: int) -> OnPolicy:
    return OnPolicy("toys:prompts", EveryToken(group=group), per_step=3)


def _detached() -> OnPolicy:
    return OnPolicy("several:classes", EveryToken(group=2, guidance=2.0, detach_null=True), per_step=4)


def _tree() -> OnPolicy:
    return OnPolicy("several:things", TreePlan(steps=4, transition=FlowSDE(), forks=(0, 2), group=4), per_step=3)


def _keyed(whole: Recipe) -> Recipe:
    """The run of test_resume without noise from torch's own stream, which every process has to itself."""
    reward = toys.Brightness(pause=0.02)
    policy = Exact(toys.ToyRaster())
    return replace(whole, reward=reward, measures={"again": toys.Brightness()}, policy=policy)


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node")
# "--multi_gpu" starts processes and looks for no GPU; for processes on the CPU accelerate wants MPI.
ACCELERATE = (
    *("accelerate.commands.launch", "--multi_gpu", "--mixed_precision=no", "--dynamo_backend=no"),
    *("--num_machines=1", "--num_processes"),
)


def start(name: str, folder: Path, processes: int, launcher: Sequence[str] = TORCHRUN) -> subprocess.Popen[str]:
    """A toy run under a launcher, or by itself if it is one process."""
    program = [str(HERE / "several.py"), name, str(folder)]
    python = [sys.executable]
    if processes > 1:
        python += ["-m", *launcher, str(processes)]
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return subprocess.Popen(
        [*python, *program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, "OMP_NUM_THREADS": "1"},
    )


def done(program: subprocess.Popen[str], within: float = 240) -> tuple[int, str]:
    """(exit status, what it said)."""
    try:
        out, said = program.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        program.send_signal(signal.SIGKILL)
        raise
    return program.returncode, out + said


def main(name: str, folder: str, *resume: str) -> int:
    torch.set_num_threads(1)
    home = Path(folder)
    home.parent.mkdir(parents=True, exist_ok=True)
    (home.parent / f"pid-{os.environ.get('RANK', '0')}").write_text(str(os.getpid()))
    name, _, shard = name.partition("+")
    name, _, until = name.partition(":")
    whole = replace(NAMED[name](), shard=bool(shard))
    try:
        if name == "benched":
            if found := bench(whole, steps=1):
                home.with_suffix(".json").write_text(json.dumps(found.as_dict()))
            return 0
        train(replace(whole, steps=int(until)) if until else whole, home, bool(resume), Reporter(home, quiet=True))
        left = [name for name in _threads() if "gloo" in name]
        if left and not shard:  # torch's caches of DTensors keep them
            raise AssertionError(f"threads are left that may abort the exit: {left}")
    except ValueError as problem:
        print(f"process {os.environ.get('RANK', '0')}: {problem}", flush=True)
        return 2
    except SystemExit as stopped:
        return int(stopped.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _threads() -> list[str]:
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


def _fork(rank: int, processes: int, port: int, name: str, folder: str, resume: bool) -> int:
    if pid := os.fork():
        return pid
    if processes > 1:
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in told.items()}, MASTER_ADDR="127.0.0.1")
    with Path(f"{folder}-said-{rank}.txt").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    status = main(name, folder, *(["resume"] if resume else []))
    sys.stdout.flush()
    os._exit(status)


def _serve() -> None:
    for name in ("torch.utils.tensorboard", "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3"):
        importlib.import_module(name)  # once, for all that are forked
    for line in sys.stdin:
        asked = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pids = [_fork(rank, port=port, **asked) for rank in range(asked["processes"])]
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)


if __name__ == "__main__":
    sys.modules["several"] = sys.modules["__main__"]
    if len(sys.argv) == 1:
        _serve()
    else:
        sys.exit(main(*sys.argv[1:]))
