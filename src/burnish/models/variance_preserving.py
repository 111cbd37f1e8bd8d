"""Networks trained on DDPM's timesteps, seen as the velocity of a rectified flow. Song et al. 2021, arXiv:2010.02502.

Whatever a network predicts is turned into noise - clean, and DDIM's states into states of that flow:

    t / (1 - t) = sqrt(1 - abar) / sqrt(abar)        x = x_vp sqrt((1 - t)^2 + t^2)

Both say x = (1 - t) x_0 + t noise, so an Euler step along the velocity is a step of DDIM with eta 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.formulas import gaussian
from burnish.formulas.gaussian import rows, variance_preserving

PREDICTIONS = ("epsilon", "v_prediction", "sample")
STOPPING = ("DDIMScheduler", "PNDMScheduler")  # those that read set_alpha_to_one; the others end without noise
DISTILLED = "LCMScheduler"  # of models whose prediction is not a mean over clean states but one of them


class Timesteps:
    """The timesteps of a scheduler of DDPM's family as times of a flow.

    Raises ValueError, naming the folder `where`, for a scheduler of another family or one that does not fit.
    """

    def __init__(self, scheduler: Any, where: Path, device: torch.device) -> None:
        self.scheduler, self.table = _ddim(scheduler, where)  # DDIM's, and log t / (1 - t) of each timestep
        kind = type(scheduler).__name__
        self.distilled = scheduler if kind == DISTILLED else None
        self.end = float(scheduler.final_alpha_cumprod) if kind in STOPPING else 1.0  # abar of what is decoded
        self._nearest = ((self.table[1:] + self.table[:-1]) / 2).to(device)
        self.changed: Mapping[str, Any] = {}  # the scheduler of the pipeline stays what it is

    def velocity(
        self, x: Float[Tensor, "n *d"], t: Float[Tensor, " n"], predicted: Callable[[Tensor, Tensor], Tensor]
    ) -> Float[Tensor, "n *d"]:
        """The network is asked at the training timestep nearest to t in log signal-to-noise.

        predicted  what the network makes of DDIM's state and a timestep, guidance and all

        The times of `times` are such timesteps; between two the network is told a noise level that is wrong by half
        their distance at most (0.006 in log t / (1 - t) at 1000 timesteps, away from the ends). Above the noisiest (t
        0.936 for 1.5) it was not trained, and predictions of noise say nothing there: the velocity is infinite at 1.
        """
        t = t.double()
        x_vp = x / rows(torch.sqrt((1 - t).square() + t.square()), x)
        step = self.nearest(t)
        v = _velocity(self.scheduler.config.prediction_type, predicted(x_vp, step), x, x_vp, t)
        return v if self.distilled is None else self._bounded(v, x, x_vp, t, step)

    def _bounded(
        self, v: Float[Tensor, "n *d"], x: Tensor, x_vp: Tensor, t: Float[Tensor, " n"], step: Int[Tensor, " n"]
    ) -> Float[Tensor, "n *d"]:
        """The velocity of a consistency model: x - t v is c_skip x_vp + c_out clean, which is x_vp at timestep 0.

        Latent Consistency Models, Luo et al. 2023, arXiv:2310.04378, with the constants of diffusers' LCMScheduler:
        c_skip = 0.25 / (r^2 + 0.25), c_out = r / sqrt(r^2 + 0.25), r the timestep x timestep_scaling.
        """
        assert self.distilled is not None
        r = step.double() * self.distilled.config.timestep_scaling
        skip, out = 0.25 / (r.square() + 0.25), r / (r.square() + 0.25).sqrt()
        return (x - rows(skip, x) * x_vp - rows(out, x) * (x - rows(t, x) * v)) / rows(t, x)

    def nearest(self, t: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
        return torch.bucketize(torch.log(t / (1 - t)), self._nearest, right=True)

    def times(self, steps: int) -> Float[Tensor, " {steps}+1"]:
        """Those of the scheduler's timesteps, as DDIM spaces them, and then 0.

        Where the spacing is uneven (linspace; trailing with steps that do not divide 1000) diffusers' own DDIM steps by
        an even spacing and evaluates beside where it arrived; ours arrives where it evaluates next.

        Of a consistency model, those that LCMScheduler picks of the timesteps it was distilled on.
        """
        if self.distilled is not None:
            most = self.distilled.config.original_inference_steps
            if steps > most:
                raise ValueError(f"plan.steps: {steps} is more than the {most} steps this model was distilled from")
            self.distilled.set_timesteps(steps)
            return self._at(self.distilled.timesteps.cpu())
        number = self.scheduler.config.num_train_timesteps
        if steps > number:
            raise ValueError(f"plan.steps: {steps} is more than the {number} timesteps this model was trained on")
        self.scheduler.set_timesteps(steps)
        places = self.scheduler.timesteps.cpu()
        if places.max() >= number:  # steps_offset pushes the first one out where every timestep is used
            raise ValueError(
                f"plan.steps: {steps} with this scheduler's steps_offset begin beyond timestep {number - 1}"
            )
        return self._at(places)

    def _at(self, places: Int[Tensor, " k"]) -> Float[Tensor, " k+1"]:
        return torch.cat([torch.sigmoid(self.table[places]), torch.zeros(1, dtype=torch.float64)])

    def finished(
        self, x: Float[Tensor, "n *d"], velocity: Float[Tensor, "n *d"], t: Float[Tensor, " n"]
    ) -> Float[Tensor, "n *d"]:
        """The clean state; of DDIM and PNDM without set_alpha_to_one, one of timestep 0, as a variance-preserving one.

        So 1.5 is released: sqrt(abar_0) clean + sqrt(1 - abar_0) noise is decoded, with abar_0 = 0.9991. What DDPO's
        code draws at random in that last step (a deviation of 0.02 at 50 steps) is not a decision here.
        """
        clean = gaussian.clean(x, velocity, t)
        if self.end == 1:
            return clean
        return math.sqrt(self.end) * clean + math.sqrt(1 - self.end) * gaussian.noise(x, velocity, t)

    def start(self, noise: Float[Tensor, "n *d"], steps: int) -> Float[Tensor, "n *d"]:
        """Noise of the length that a state of the flow has at the first time, if it is all noise."""
        t = self.times(steps)[0]
        return noise * float(torch.sqrt((1 - t).square() + t.square()))


def _velocity(
    kind: str, predicted: Float[Tensor, "n *d"], x: Tensor, x_vp: Tensor, t: Float[Tensor, " n"]
) -> Float[Tensor, "n *d"]:
    """noise - clean, from what the network predicted of x_vp = signal clean + noise_level noise.

    epsilon      the noise
    v            signal noise - noise_level clean (Salimans & Ho 2022, arXiv:2202.00512)
    sample       the clean state
    """
    if kind == "epsilon":
        return (predicted - x) / rows(1 - t, x)
    if kind == "sample":
        return (x - predicted) / rows(t, x)
    signal, level = variance_preserving(t)
    return rows(signal + level, x) * predicted + rows(level - signal, x) * x_vp


def _ddim(scheduler: Any, where: Path) -> tuple[Any, Float[Tensor, " timesteps"]]:
    """DDIM's scheduler with the settings of another (1.5 ships PNDM), and log t / (1 - t) of its timesteps."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    kind = type(scheduler).__name__
    if kind not in [DISTILLED, *(known.__name__ for known in DDIMScheduler().compatibles)]:
        raise ValueError(f"{where}: a {kind}, whose settings are not those of a scheduler for DDIM")
    ddim: Any = DDIMScheduler.from_config(scheduler.config)
    if ddim.config.prediction_type not in PREDICTIONS:
        raise ValueError(f"{where}: predicts {ddim.config.prediction_type!r}; known are {', '.join(PREDICTIONS)}")
    if ddim.config.thresholding:
        raise ValueError(f"{where}: thresholding is for diffusion of pixels; it changes what is drawn but not its law")
    if scheduler.config.get("final_sigmas_type", "zero") != "zero":
        raise ValueError(f"{where}: its draws end before there is no noise (final_sigmas_type), where ours do not")
    abar = ddim.alphas_cumprod.double()
    if ddim.config.prediction_type == "epsilon" and abar[-1] == 0:
        raise ValueError(
            f"{where}: at its last timestep there is no signal, so a prediction of noise says nothing there"
        )
    return ddim, 0.5 * torch.log((1 - abar) / abar)
