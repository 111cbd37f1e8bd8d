"""Times of networks that predict velocities, as diffusers' schedulers for flow matching space them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.formulas.gaussian import clean

EULER, DPM = "FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"
UNIPC = "UniPCMultistepScheduler"
SHIFTS = {EULER: "shift", DPM: "flow_shift", UNIPC: "flow_shift"}  # what each calls the shift of its times
NEARLY_NOISE = 1 - 1e-5  # UniPC begins at 1 - 1e-6 to keep its logarithms finite; that time is 1


class FlowTimes:
    """The times of a scheduler. A state at t is (1 - t) clean + t noise already: nothing is to be translated.

    where   the folder it was read from, for errors
    shift   of the times towards noise; None: the scheduler's own
    tokens  of a picture, by whose number a dynamic shift grows; None for a pipeline that does not tell the scheduler
    even    evenly spaced times from 1 to 1 / steps are asked for, and then shifted, as FLUX's pipeline does

    Raises ValueError for a scheduler of something else than a flow, or one whose shift cannot be known.
    """

    def __init__(
        self, scheduler: Any, where: Path, shift: float | None, tokens: int | None = None, even: bool = False
    ) -> None:
        kind, config = type(scheduler).__name__, scheduler.config
        self._whole = kind in (DPM, UNIPC)  # they tell the network whole timesteps
        if self._whole and not (config.use_flow_sigmas and config.final_sigmas_type == "zero"):
            raise ValueError(f"{where}: a {kind} of something else than a flow that ends at 0 (use_flow_sigmas)")
        if kind == UNIPC and config.prediction_type != "flow_prediction":
            raise ValueError(f"{where}: its prediction_type is not that of a flow")
        if shift is not None:
            scheduler = scheduler.from_config(config, **{SHIFTS[kind]: shift}, use_dynamic_shifting=False)
        if scheduler.config.use_dynamic_shifting and tokens is None:
            raise ValueError(f"{where}: its shift grows with the picture, but this pipeline tells no size; set a shift")
        self.scheduler, self._tokens, self._even = scheduler, tokens, even
        self.changed: Mapping[str, Any] = {} if shift is None else {"scheduler": scheduler}

    def velocity(
        self, x: Float[Tensor, "n *d"], t: Float[Tensor, " n"], predicted: Callable[[Tensor, Tensor], Tensor]
    ) -> Float[Tensor, "n *d"]:
        return predicted(x, t)

    def timestep(self, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """t among the training timesteps, cut to a whole one below the last where DPM-Solver and UniPC do so.

        Where t is a whole one up to rounding, the scheduler may say one less (0.333 at shift 1).
        """
        number = self.scheduler.config.num_train_timesteps
        steps = t.float() * number
        return steps.floor().clamp(max=number - 1) if self._whole else steps

    def times(self, steps: int) -> Float[Tensor, " {steps}+1"]:
        """The scheduler's own, and 0 at the end."""
        asked: dict[str, Any] = {"num_inference_steps": steps}
        if self._even:
            asked = {"sigmas": torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist()}
        if self.scheduler.config.use_dynamic_shifting:
            asked["mu"] = self._mu()
        self.scheduler.set_timesteps(**asked)
        times = self.scheduler.sigmas.double().cpu()
        return torch.where(times > NEARLY_NOISE, 1.0, times)

    def _mu(self) -> float:
        """Logarithm of the shift: on the line through the two sizes that the scheduler knows."""
        assert self._tokens is not None
        config = self.scheduler.config
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        return self._tokens * slope + (config.base_shift - slope * config.base_image_seq_len)

    def finished(
        self, x: Float[Tensor, "n *d"], velocity: Float[Tensor, "n *d"], t: Float[Tensor, " n"]
    ) -> Float[Tensor, "n *d"]:
        return clean(x, velocity, t)

    def start(self, noise: Float[Tensor, "n *d"], steps: int) -> Float[Tensor, "n *d"]:
        return noise
