"""The consistency model is distilled from what the paper says, by numbers worked out in DDPM's own states; it begins as
its teacher, nothing but it learns, and it is read as the policy reads it."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_diffusers import TEXTS as ASKED
from tiny_diffusers import prompts, sd
from torch import nn

from burnish.core import LatentPlan
from burnish.formulas.gaussian import clean
from burnish.formulas.noise import Noise
from burnish.making.command import main
from burnish.making.consistency import Consistency, Distillation
from burnish.making.denoisers import Settings, fit
from burnish.policies.sd import SD
from burnish.transitions.consistency import Consistency as Fresh
from burnish.worlds.scenes.grammar import heldout

CPU = torch.device("cpu")
RULES = Distillation(guidance=(1.0, 5.0), huber=0.1, told=12)
TEXTS = ["a red circle", "star", "star", "a red circle", "star"]
SHAPE = (5, 4, 8, 8)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    sd(folder)
    return folder


@pytest.fixture
def pupil(teacher):
    return Consistency(teacher, RULES)


class Linear(nn.Module):
    """A network that says `rate` times its state, and with a prompt `more` of it besides."""

    def __init__(self, rate: float, more: float = 0.0, nothing: torch.Tensor | None = None) -> None:
        super().__init__()
        self.rate, self.more, self.nothing = nn.Parameter(torch.tensor(rate)), more, nothing
        self.config = type("Config", (), {"time_cond_proj_dim": 12})

    def forward(self, x, step, features, timestep_cond=None):
        rate = self.rate
        if self.nothing is not None:
            asked = (features != self.nothing).flatten(1).any(1).view(-1, 1, 1, 1)
            rate = rate + self.more * asked
        return type("Output", (), {"sample": rate * x})


def by_hand(x, place, guidance, noise, abar, rates):
    """Algorithm 1 of Luo et al. for linear networks: everything a multiple of DDPM's state z at timestep n + k.

    DDIM        z' = a' (z - b eps) / a + b' eps
    consistency f = c_skip z + c_out (z - b eps) / a
    """
    student, target, plain, more = rates
    upper = 20 * place + 19
    lower = (upper - 20).clamp(min=0)
    a, b, a_, b_ = (
        values.sqrt().view(-1, 1, 1, 1) for values in (abar[upper], 1 - abar[upper], abar[lower], 1 - abar[lower])
    )
    z = a * x + b * noise
    eps = (plain + guidance.view(-1, 1, 1, 1) * more) * z  # eps(nothing) + g (eps(prompt) - eps(nothing))
    earlier = a_ * (z - b * eps) / a + b_ * eps

    def named(z, rate, a, b, step):
        r = (10.0 * step).view(-1, 1, 1, 1)
        return 0.25 / (r**2 + 0.25) * z + r / (r**2 + 0.25) ** 0.5 * (1 - b * rate) / a * z

    gap = named(z, student, a, b, upper) - named(earlier, target, a_, b_, lower)
    return ((gap**2 + 0.1**2) ** 0.5 - 0.1).mean(), upper, earlier


def test_the_loss_by_hand_for_linear_networks(pupil):
    pupil.network, pupil.target = Linear(0.3), Linear(0.45)
    pupil.teacher = Linear(0.2, 0.15, pupil._texts([""])[0])
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    draws, same = (torch.Generator().manual_seed(20) for _ in range(2))  # one place is the lowest
    place = torch.randint(50, (5,), generator=same)
    guidance = 1 + 4 * torch.rand(5, generator=same)
    noise = torch.randn(SHAPE, generator=same)
    abar = pupil.pipeline.scheduler.alphas_cumprod.double()
    expected, upper, _ = by_hand(x.double(), place, guidance.double(), noise.double(), abar, (0.3, 0.45, 0.2, 0.15))
    assert torch.equal(pupil.grid[place], upper) and (place == 0).any()
    loss = pupil.loss(x, TEXTS, draws)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    assert pupil.network.rate.grad.abs() > 0 and pupil.target.rate.grad is None and pupil.teacher.rate.grad is None


def test_the_last_step_ends_where_the_state_itself_is_named(pupil):
    """At timestep 0 c_skip is 1 and c_out is 0, whatever the network says."""
    t = torch.sigmoid(pupil._steps.table)[[0, 0]]
    x = torch.randn(2, 4, 8, 8)
    features = pupil._texts(["star", "star"])[0]
    length = ((1 - t[0]).square() + t[0].square()).sqrt().float()
    with torch.no_grad():
        named = pupil.named(pupil.network, x, t, features, torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(named, x / length, atol=1e-5, rtol=0)


def test_it_begins_as_the_teacher_whatever_it_is_told(pupil):
    x, step = torch.randn(2, 4, 8, 8), torch.tensor([19, 799])
    features = pupil._texts(["star", "a red circle"])[0]
    with torch.no_grad():
        said = pupil.teacher(x, step, features).sample
        for told in (torch.zeros(2, 12), torch.randn(2, 12)):
            for network in (pupil.network, pupil.target):
                assert torch.equal(network(x, step, features, timestep_cond=told).sample, said)


def test_only_the_student_learns_and_the_target_follows(pupil):
    before = [weight.clone() for weight in pupil.teacher.parameters()]
    words = [weight.clone() for weight in pupil.pipeline.text_encoder.parameters()]
    decoder = [weight.clone() for weight in pupil.pipeline.vae.parameters()]
    targets = [weight.clone() for weight in pupil.target.parameters()]
    pupil.network.requires_grad_(True)
    pupil.loss(torch.randn(SHAPE), TEXTS, torch.Generator().manual_seed(0)).backward()
    still = {name for name, weight in pupil.network.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert not still, "every weight of the student, and what it is told, has a gradient"
    for frozen in (pupil.teacher, pupil.target, pupil.pipeline.text_encoder, pupil.pipeline.vae):
        assert all(weight.grad is None for weight in frozen.parameters())
    with torch.no_grad():
        for weight in pupil.network.parameters():
            weight.add_(1.0)
    pupil.follow()
    for old, new in zip(targets, pupil.target.parameters(), strict=True):
        torch.testing.assert_close(new - old, torch.full_like(old, 0.05))
    pairs = [(before, pupil.teacher), (words, pupil.pipeline.text_encoder), (decoder, pupil.pipeline.vae)]
    for old, module in pairs:
        assert all(torch.equal(a, b) for a, b in zip(old, module.parameters(), strict=True))


def test_every_step_is_followed_and_the_student_frozen_at_the_end(pupil):
    followed = []
    settings = Settings(seconds=0.3, batch=4, dropout=0.0)
    log = fit(pupil, torch.randn(SHAPE), TEXTS, settings, lambda: followed.append(pupil.network.training))
    assert log["steps"] == len(followed) >= 1 and all(followed)
    assert not any(weight.requires_grad for weight in pupil.network.parameters())


def test_the_loss_falls_on_one_batch(pupil):
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    optimiser = torch.optim.AdamW(pupil.network.requires_grad_(True).parameters(), lr=3e-4)
    losses = []
    for _ in range(12):
        loss = pupil.loss(x, TEXTS, torch.Generator().manual_seed(2))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_the_command_writes_a_model_that_a_policy_draws_from(teacher, tmp_path):
    out = tmp_path / "consistency"
    asked = ["--seconds", "0.3", "--scenes", "4", "--seed", "1", "--mistakes", "0.5", "--batch", "4", "--out", str(out)]
    main(["consistency", "--teacher", str(teacher), *asked])
    assert json.loads((out / "log.json").read_text())["steps"] >= 1
    assert json.loads((out / "model_index.json").read_text())["_class_name"] == "LatentConsistencyModelPipeline"
    policy = SD(str(out), pixels=16).load(CPU)
    plan = LatentPlan(steps=4, guidance=3.0, stochastic=(0, 1, 2), transition=Fresh())
    rollout = policy.sample(heldout(2), plan, Noise(0, 0, (0, 1)))
    assert rollout.media.shape == (2, 3, 16, 16) and rollout.media.isfinite().all()
    assert (policy.logp(rollout) - rollout.logp).abs().max() < 1e-5
    assert Consistency(teacher, RULES, out).network.config.time_cond_proj_dim == 64, "it goes on from a folder"


def test_what_is_trained_is_what_the_policy_draws_with(pupil, tmp_path):
    """The clean state that the policy's steps are taken from, the guidance it is told and all."""
    torch.nn.init.normal_(pupil.network.time_embedding.cond_proj.weight)
    pupil.pipeline.save_pretrained(tmp_path)
    policy, p, features = SD(str(tmp_path), pixels=16).load(CPU), prompts(1), pupil._texts(list(ASKED))[0]
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    for step, guidance in ((0, 1.0), (1, 3.0), (3, 5.5)):
        t = policy.times(4)[step].expand(3)
        with torch.no_grad():
            drawn = clean(x, policy.velocity(x, t, p, guidance), t)
            trained = pupil.named(pupil.network, x, t, features, torch.full((3,), guidance))
        torch.testing.assert_close(trained, drawn, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_distilled_gets_a_sentence(teacher, tmp_path):
    with pytest.raises(ValueError, match="the lesser first"):
        Distillation(guidance=(4.0, 2.0))
    pupil = Consistency(teacher, RULES)
    pupil.pipeline.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="LatentConsistencyModelPipeline"):
        Consistency(tmp_path, RULES)
