"""How a denoiser draws pictures that are only looked at."""

from __future__ import annotations

from burnish.core import LatentPlan


def viewed(plan: LatentPlan, steps: int, guidance: float | None) -> LatentPlan:
    """One picture of each prompt, along the ODE alone. `steps` 0 and `guidance` None: as many, and as much, as `plan`.

    Flow-GRPO (arXiv:2505.05470) trains on 10 steps and looks at 40.
    """
    if steps < 0:
        raise ValueError(f"evaluation_steps must be 0 (as many as in training) or more, got {steps}")
    guidance = plan.guidance if guidance is None else guidance
    return LatentPlan(group=1, guidance=guidance, steps=steps or plan.steps, solver=plan.solver)
