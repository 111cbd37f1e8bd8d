"""What a step of a recipe costs here, beside what the machine can do: `burnish bench`.

Steps are those of a run, by the run's own code, with nothing written down. The first one warms up, some are timed, and
for each plan that they were drawn by one more is counted, operation by operation.

Counted are matrix products, attention and convolutions, and the bytes that they read and write: to draw a token these
are the weights once, the keys and values that it attends to, what goes from layer to layer, and the logits. Elementwise
work between them (norms, casts, the law of a token, the optimiser) can be fused, and compiled code does so: its bytes
are left out, as the counted step is not compiled and would tell of bytes that the timed ones never move.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from burnish.engine.interruption import Interruption
from burnish.engine.layouts.chosen import layout
from burnish.engine.layouts.local import Place
from burnish.engine.loop import Run
from burnish.engine.reporter import Nowhere
from burnish.laps import recorded
from burnish.machine import forget_peak, held, matrix_rate, memory_rate, peak
from burnish.models.denoiser import DenoisingPolicy
from burnish.recipe.recipe import Recipe
from burnish.types import Plan

NEAR = 64  # steps in which a plan is looked for again
Clocked = dict[str, dict[str, float]]  # of each stage, what each clock counted
STAGES = {  # the laps of each; decoding is within drawing
    "draw": ("draw",),
    "decode": ("decode",),
    "score": ("score",),
    "weigh": ("weigh",),
    "update": ("recompute", "update"),  # with what samples are compared with: reference, anchor
}
WHOLE = ("draw", "score", "weigh", "update")


@dataclass(frozen=True)
class Stage:
    """A part of a step. All but seconds are sums over processes."""

    seconds: float  # of the slowest process, the median of the timed steps
    cpu_seconds: float  # of all cores; the same
    operations: float  # of floating matrix products, convolutions and attention; a multiply-add is two. The same
    whole_operations: float  # of products of whole numbers (int8), whose rate is not measured: in no share. The same
    traffic: float  # bytes that all of these read and write, as if no cache kept them from one to the next. The same


@dataclass(frozen=True)
class Bench:
    """A recipe on a machine."""

    device: str
    threads: int  # of torch, in each process
    processes: int
    images: int  # drawn in a step
    steps: int  # timed
    stages: Mapping[str, Stage]  # and "step", which is drawing, scoring, weighing and updating
    evaluations: float  # of a denoiser's network, a step; 0 of a raster model
    memory: int  # bytes: the most that was held, of the process that held most, less what was held before it loaded
    state: int  # numbers in a state of a denoiser; 0 of a raster model
    arithmetic: str  # floating type of most of its matrix products
    matrix_rate: float  # operations a second of the best matrix products of that type here, of all processes together
    memory_rate: float  # bytes a second of copying

    def images_per_second(self, stage: Stage) -> float:
        """0 for a stage that took no time."""
        return self.images / stage.seconds if stage.seconds else 0.0

    def share_of_rate(self, stage: Stage) -> float:
        """Of the time, what floating products would take at the measured rate."""
        return stage.operations / self.matrix_rate / stage.seconds if stage.seconds else 0.0

    def share_of_traffic(self, stage: Stage) -> float:
        """Of the time, what copying as many bytes as `traffic` would take; above 1 if caches kept some."""
        return stage.traffic / self.memory_rate / stage.seconds if stage.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        told = {
            name: {
                **asdict(stage),
                "images_per_second": self.images_per_second(stage) or None,
                "share_of_matrix_rate": self.share_of_rate(stage),
                "share_of_memory_rate": self.share_of_traffic(stage),
            }
            for name, stage in self.stages.items()
        }
        return {**asdict(self), "stages": told}


class Work(TorchDispatchMode):
    """Counts matrix products, attention and convolutions of this thread while it is entered, backward passes too.

    Other operations are not counted: they can be fused into these (see the head of this file).
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_type: dict[torch.dtype, float] = {}  # operations
        self.traffic = 0.0  # bytes of inputs and outputs

    @property
    def operations(self) -> float:
        """Of floating numbers."""
        return sum(count for dtype, count in self.by_type.items() if dtype.is_floating_point)

    @property
    def whole_operations(self) -> float:
        return sum(self.by_type.values()) - self.operations

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = func._overloadpacket in COUNTED
        if not known and func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if known:
            dtype = next(one.dtype for one in tree_leaves(args) if isinstance(one, Tensor))
            count = float(COUNTED[func._overloadpacket](*args, **kwargs, out_val=out))
            self.by_type[dtype] = self.by_type.get(dtype, 0.0) + count
            seen = {id(one): one for one in tree_leaves((args, kwargs, out)) if isinstance(one, Tensor)}
            self.traffic += sum(map(_bytes, seen.values()))
        return out


def _bytes(tensor: Tensor) -> int:
    """Of the numbers that lie in memory: what an expanded tensor repeats is there once."""
    if tensor.layout != torch.strided:  # packed weights
        return tensor.numel() * tensor.element_size()
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in sides if stride) * tensor.element_size()


def _packed(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * x.numel() * len(weight)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_back(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


COUNTED = {
    **flop_registry,
    torch.ops.aten._int_mm: flop_registry[torch.ops.aten.mm],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_back,
}
if torch.backends.mkldnn.is_available():
    COUNTED[torch.ops.mkldnn._linear_pointwise] = _packed


def bench(recipe: Recipe, steps: int = 5) -> Bench | None:
    """Measure a recipe: `steps` of its steps are timed, after one. None in a process that does not lead.

    Raises ValueError for weights and rewards that are not what they should be.
    """
    recipe = replace(recipe, steps=steps + 1)
    with layout() as chosen:
        before = held(chosen.device(recipe.device))
        place = chosen.build(recipe)
        run = Run(recipe, Path(), Nowhere(), Interruption())
        one_step(run, place, 1, {})
        forget_peak(place.device)
        clocks = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
        numbers = range(2, steps + 2)
        timed = [one_step(run, place, step, clocks) for step in numbers]
        most = peak(place.device) - before
        did, dtype = _counted(recipe, place, numbers)
        mine = [{name: laps[name] | done[name] for name in STAGES} for (laps, _), done in zip(timed, did, strict=True)]
        place.ranks.gathered(None)  # all measure the machine together
        rates = 2 * matrix_rate(dtype, place.device), memory_rate(place.device)
        found = place.ranks.gathered((most, rates, mine))
        if not place.ranks.leads:
            return None
    most, rates, everyones = zip(*found, strict=True)

    def median(names: Sequence[str], what: str, over: Callable[[Iterable[float]], float]) -> float:
        """Of the timed steps: of the slowest process, or of all together."""
        each = [[sum(step[name][what] for name in names) for step in one] for one in everyones]
        return statistics.median(over(step) for step in zip(*each, strict=True))

    def reported(name: str) -> float:
        return statistics.median(metrics.get(name, 0.0) for _, metrics in timed)

    cuda = place.device.type == "cuda"
    return Bench(
        device=torch.cuda.get_device_name(place.device) if cuda else str(place.device),
        threads=torch.get_num_threads(),
        processes=place.ranks.count,
        images=round(reported("draw/samples")),
        steps=steps,
        stages={
            name: Stage(
                seconds=median(names, "seconds", max),
                cpu_seconds=median(names, "cpu_seconds", sum),
                operations=median(names, "operations", sum),
                whole_operations=median(names, "whole_operations", sum),
                traffic=median(names, "traffic", sum),
            )
            for name, names in {**{stage: (stage,) for stage in STAGES}, "step": WHOLE}.items()
        },
        evaluations=reported("draw/evaluations") + reported("update/evaluations"),
        memory=max(most),
        state=math.prod(place.policy.network.shape) if isinstance(place.policy, DenoisingPolicy) else 0,
        arithmetic=str(dtype).removeprefix("torch."),
        matrix_rate=sum(rate for rate, _ in rates),
        memory_rate=sum(rate for _, rate in rates),
    )


def _counted(recipe: Recipe, place: Place, timed: range) -> tuple[list[Clocked], torch.dtype]:
    """Work of each of the timed steps, counted once for each plan; and the floating type of most of their products.

    Counted is a step of that plan that was not made, whose prompts are in no cache; if none is near, the step itself.
    """
    alone = Run(replace(recipe, overlap=False), Path(), Nowhere(), Interruption())  # other threads are not counted
    later, known, found = range(timed.stop, timed.stop + NEAR), list[tuple[Plan, Clocked]](), list[Clocked]()
    with torch.compiler.set_stance("force_eager"), Work() as work:  # inside compiled code nothing is seen
        clocks = {name: partial(getattr, work, name) for name in ("operations", "whole_operations", "traffic")}
        for step in timed:
            plan = recipe.source.plan_at(step)
            did = next((did for other, did in known if other == plan), None)
            if did is None:
                another = next((number for number in later if recipe.source.plan_at(number) == plan), step)
                did = one_step(alone, place, another, clocks)[0]
                known.append((plan, did))
            found.append(did)
    floating = [dtype for dtype in work.by_type if dtype.is_floating_point]
    return found, max(floating, key=work.by_type.__getitem__, default=torch.float32)


def one_step(
    run: Run, place: Place, step: int, clocks: Mapping[str, Callable[[], float]]
) -> tuple[Clocked, dict[str, float]]:
    """A step: what each clock counted in each stage here, and the metrics."""
    with ExitStack() as stack:
        kept = {name: stack.enter_context(recorded(place.device, clock)) for name, clock in clocks.items()}
        laps = stack.enter_context(recorded(place.device))
        metrics = run.learn(place, step, laps)[2]
    return {
        stage: {name: sum(map(laps.spent, names)) for name, laps in kept.items()} for stage, names in STAGES.items()
    }, metrics


def growth(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The exponent p of seconds = c * size^p that fits best, in logarithms. Raises ValueError for too few sizes."""
    if len(set(sizes)) < 2 or min(*sizes, *seconds) <= 0:
        raise ValueError(f"growth needs two sizes at least, and all above 0; got {list(sizes)} and {list(seconds)}")
    x, y = ([math.log(value) for value in values] for values in (sizes, seconds))
    return statistics.linear_regression(x, y).slope
