"""What each step adds to the value of a state, where the value begins as the reward of the expected picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from burnish.core import Advantage, Denoiser, Large, LatentPlan, Memory, Policy, Scorer, Stirred
from burnish.formulas import gaussian, steps, values
from burnish.formulas.groups import exact
from burnish.formulas.noise import generator
from burnish.looking import looked
from burnish.models.critic import TimeValue, linear, text_vectors
from burnish.types import Latents, Rollout, Scores


@dataclass(frozen=True)
class RewardShapedValue(Advantage):
    """q dt = V(next) - V(state) - cost for every step. Zhao et al. 2025, 'Score as Action', arXiv:2502.01819.

        V      c_skip(t) r(x - t v) + c_out(t) F(x, t, text): r is the run's reward, of the decoded clean state; at
               the end V is the reward. After the last step drawn at random V is the sample's score.
        F      a small network with its own AdamW, 0 at first, regressed on what was still to come of each state. It
               learns after it was asked, so that no state is compared with its own return.
        cost   beta g^2 |a - a_ref|^2 dt / 2, of the actions a of a `score_action`, a_ref the reference's: nats a
               dimension. Of another transition the same with its own noise, which is KL and a constant.

    Samples are not weighed by their scores alone. The weight beta, the curves of c_skip and c_out and the network are
    ours; the paper is known from notes. Needs all steps from the first recorded one on; no group is needed. Reads the
    steps of a denoiser. Settings that are called themselves, without a reward, have V = c_out F.

    Metrics:
        value_error   mean (V - what was still to come)^2, before F learned from this step
        value         mean V, before
        cost          mean over samples of the running cost of all steps, beta included
        look_invalid  share of states whose expected picture has no score; V takes the mean of the others' at that step
    """

    reads: ClassVar[tuple[Large, ...]] = ("states",)
    reads_reference: ClassVar[bool] = True

    beta: float = 0.1  # weight of the running cost, in units of the reward a nat and dimension
    text_encoder: str = ""  # hub id or local folder of a CLIP that reads the prompt; empty: fixed vectors of its words
    width: int = 256  # units of a hidden layer of F
    lr: float = 1e-4  # learning rate of F
    weight_decay: float = 0.01  # of its AdamW
    updates: int = 10  # batches it learns from in a step
    batch: int = 256  # states in a batch
    centre: bool = False  # take the mean over the samples off each step: a baseline, besides that of the state
    normalise: bool = False  # divide by the root of the mean square over all states of the step
    rows: int = 16  # states decoded and scored at once. Changes memory, not the result
    seed: int = 0  # of the first weights and the choice of batches

    def __post_init__(self) -> None:
        counts = {"width": self.width, "updates": self.updates, "batch": self.batch, "rows": self.rows}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"advantage.reward_shaped_value.{name}: expected 1 or more, got {value}")
        if not self.beta >= 0 or not self.lr > 0:
            raise ValueError(
                f"advantage.reward_shaped_value: beta must be 0 or more and lr above 0, not {self.beta}, {self.lr}"
            )

    def begin(self, policy: Policy | None) -> _Valued:
        return _Valued(self, policy, None)

    def looking(self, policy: Policy, scorer: Scorer) -> _Valued:
        """Raises ValueError for a policy that has no states to decode."""
        if not isinstance(policy, Denoiser):
            raise ValueError("advantage.reward_shaped_value: only a run of a denoiser has states to look at")
        return _Valued(self, policy, scorer)

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, "b k"]:
        return self.begin(None)(scores, rollout)


class _Valued(Advantage, Memory):
    def __init__(self, settings: RewardShapedValue, policy: Policy | None, scorer: Scorer | None) -> None:
        self._settings, self._policy, self._scorer = settings, policy, scorer
        self._device = policy.parameters()[0][1].device if policy else torch.device("cpu")
        self._texts = text_vectors(settings.text_encoder, "advantage.reward_shaped_value.text_encoder", self._device)
        self._net: TimeValue | None = None  # made for the shape of the first states that it sees
        self._rounds = 0
        self._told = {"value_error": torch.nan, "value": torch.nan, "cost": torch.nan, "look_invalid": 0.0}

    def __call__(self, scores: Scores, rollout: Rollout) -> Float[Tensor, "b k"]:
        known = steps.latents_of(rollout, "advantage.reward_shaped_value")
        if (known.step.diff(dim=1) != 1).any():
            raise ValueError("advantage.reward_shaped_value: needs steps without gaps between them (train_share: 1)")
        order = torch.tensor(rollout.ids).argsort()  # so that nothing depends on the order of samples
        valid = scores.valid.cpu()[order]
        final = torch.where(valid, exact(scores.total).cpu()[order], 0.0)
        cost = self._settings.beta * self._strayed(known, rollout)[order]
        t = known.time[..., 0].cpu().double()[order]
        text = self._texts([prompt.text for prompt in rollout.prompts])
        states = known.before.detach().flatten(2).float().cpu()
        inputs = torch.cat([states, text.unsqueeze(1).expand(-1, states.shape[1], -1)], 2)[order]
        if self._net is None:
            self._make(inputs.shape[-1])
        skip, out = values.shares(t)
        base = skip * self._looked(known, rollout)[order]
        value = base + out * self._own(inputs, t)
        coming = values.to_go(final, cost)
        self._told |= {
            "value_error": float((value - coming)[valid].square().mean()),
            "value": float(value[valid].mean()),
            "cost": float(cost[valid].sum(1).mean()),
        }
        if valid.any():
            self._learn(*(part[valid].flatten(0, 1) for part in (inputs, t, base, out, coming)))
        found = values.added(value, final, cost)
        if self._settings.centre and valid.any():
            found = found - found[valid].mean(0)
        found = torch.where(valid.unsqueeze(1), found, 0.0)
        if self._settings.normalise and valid.any():
            found = found / (found[valid].square().mean().sqrt() + 1e-8)
        return found[order.argsort()].to(scores.total)

    def _strayed(self, known: Latents, rollout: Rollout) -> Float[Tensor, "b k"]:
        """The running cost of every step, float64 on the CPU, before it is weighed."""
        if self._settings.beta == 0:
            return torch.zeros(known.logp.shape, dtype=torch.float64)
        plan = rollout.plan
        assert rollout.reference is not None, "reads_reference is set, so the engine scores the reference"
        assert isinstance(plan, LatentPlan)
        own = gaussian.logp(known.after.flatten(0, 1), known.mean.flatten(0, 1), known.std.flatten())
        if not torch.allclose(own.view_as(known.logp), known.logp, atol=1e-3, rtol=1e-3):
            raise ValueError("advantage.reward_shaped_value.beta: this transition scores no density (cps has density)")
        std = known.std.detach().cpu().double()
        noise = std
        if isinstance(plan.transition, Stirred):
            t, s = known.time.cpu().double().flatten(0, 1).unbind(1)
            noise = plan.transition.stir(t, s).view_as(std)
        return values.strayed(rollout.reference.detach().cpu().double(), std, noise)

    def _looked(self, known: Latents, rollout: Rollout) -> Float[Tensor, "b k"]:
        """r of the clean state expected before every step, float64 on the CPU."""
        plan, (b, k) = rollout.plan, known.step.shape
        if self._scorer is None:
            return torch.zeros(b, k, dtype=torch.float64)
        assert isinstance(self._policy, Denoiser) and isinstance(plan, LatentPlan)
        clean = steps.clean_of(steps.moving(plan, known.step), known).flatten(0, 1).float()
        prompts = [prompt for prompt in rollout.prompts for _ in range(k)]
        found = looked(self._policy, self._scorer, clean, prompts, self._settings.rows)
        valid = found.valid.cpu().view(b, k)
        total = torch.where(valid, exact(found.total).cpu().view(b, k), 0.0)
        self._told["look_invalid"] = float((~valid).double().mean())
        usual = total.sum(0, keepdim=True) / valid.sum(0, keepdim=True).clamp(min=1)
        return torch.where(valid, total, usual)

    def _make(self, inputs: int) -> None:
        own = self._settings
        self._net = TimeValue(inputs, own.width, own.seed).to(self._device)
        self._adam = torch.optim.AdamW(self._net.parameters(), lr=own.lr, weight_decay=own.weight_decay)

    @torch.no_grad()
    def _own(self, inputs: Float[Tensor, "b k d"], t: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """F of every state, float64."""
        assert self._net is not None
        rows = zip(inputs.flatten(0, 1).split(1024), t.float().flatten().split(1024), strict=True)
        return (
            torch.cat([self._net(x.to(self._device), u.to(self._device)).cpu() for x, u in rows]).view(t.shape).double()
        )

    def _learn(
        self,
        inputs: Float[Tensor, "n d"],
        t: Float[Tensor, " n"],
        base: Float[Tensor, " n"],
        out: Float[Tensor, " n"],
        coming: Float[Tensor, " n"],
    ) -> None:
        own, net = self._settings, self._net
        assert net is not None
        for update in range(own.updates):
            random = generator("reward shaped value", own.seed, self._rounds, update)
            some = torch.from_numpy(random.permutation(len(t))[: own.batch])
            x, u, known, share, target = (
                part[some].float().to(self._device) for part in (inputs, t, base, out, coming)
            )
            self._adam.zero_grad(set_to_none=True)
            F.mse_loss(known + share * net(x, u), target).backward()
            self._adam.step()
        self._rounds += 1

    def state(self) -> dict[str, Any]:
        if self._net is None:
            return {}
        inputs = linear(self._net.layers)[0].in_features - 2 * self._net.waves
        return {
            "inputs": inputs,
            "rounds": self._rounds,
            "net": self._net.state_dict(),
            "adam": self._adam.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        if not state:
            return
        self._make(state["inputs"])
        assert self._net is not None
        self._net.load_state_dict(state["net"])
        self._adam.load_state_dict(state["adam"])
        self._rounds = state["rounds"]

    def metrics(self) -> dict[str, float]:
        return dict(self._told)
