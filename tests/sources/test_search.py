"""Starting noise that is searched for: the fit by hand, and a search whose reward is concave in what it looks for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy_denoiser import ToyFlow

from burnish.core import Scorer
from burnish.formulas.cross_entropy import refitted
from burnish.formulas.noise import Noise
from burnish.plans.all_steps import AllSteps
from burnish.plans.every_token import EveryToken
from burnish.searching import Search
from burnish.sources.on_policy import OnPolicy
from burnish.transitions.flow_sde import FlowSDE
from burnish.types import Scores

CPU = torch.device("cpu")
PLAN = AllSteps(FlowSDE(), group=4, steps=4)
SEARCH = Search(rounds=4, candidates=16, elites=4)


class Near(Scorer):
    """-|latent - 1|^2, a mean over dimensions: concave. Remembers what it was asked; the first `unknown` have none."""

    def __init__(self, unknown: int = 0) -> None:
        self.asked: list[torch.Tensor] = []
        self.unknown = unknown

    def __call__(self, images, prompts) -> Scores:
        worth = -(images.logit() - 1).square().mean((1, 2, 3))
        self.asked.append(worth)
        return Scores.of("near", torch.where(torch.arange(len(images)) < self.unknown, torch.nan, worth))


def source(tmp_path, **fields) -> OnPolicy:
    (tmp_path / "asked.jsonl").write_text(
        "".join(f'{{"id": "{i}", "text": "thing {i}", "facts": {{"number": {i}}}}}\n' for i in range(4))
    )
    return OnPolicy(str(tmp_path / "asked.jsonl"), **{"plan": PLAN, "per_step": 3, "search": SEARCH, **fields})


def test_a_fit_by_hand():
    """The best two of 1, 2, 5, 9 by worth are 5 and 1: mean 3, deviation 2. Of one elite there is nothing to fit."""
    drawn = torch.tensor([[1.0, 2.0, 5.0, 9.0], [1.0, 2.0, 5.0, 9.0]]).unsqueeze(-1)
    worth = torch.tensor([[0.7, 0.1, 0.9, torch.nan], [torch.nan, torch.nan, -torch.inf, 3.0]])
    start = torch.zeros(2, 1), torch.ones(2, 1)
    mean, std = refitted(drawn, worth, 2, *start)
    assert mean.flatten().tolist() == [3.0, 0.0] and std.flatten().tolist() == [2.0, 1.0]
    mean, std = refitted(drawn, worth, 2, *start, keep=0.25)
    assert mean.flatten().tolist() == [2.25, 0.0] and std.flatten().tolist() == [1.75, 1.0]
    mean, _ = refitted(drawn, worth, 3, *start)
    assert mean.flatten().tolist() == [pytest.approx(8 / 3), 0.0]  # three ask, and the fourth is no candidate


def test_a_gaussian_keeps_the_second_moment_of_its_elites():
    drawn = torch.randn(5, 8, 3, generator=torch.Generator().manual_seed(0))
    mean, std = refitted(drawn, torch.zeros(5, 8), 8, torch.zeros(5, 3), torch.ones(5, 3))
    torch.testing.assert_close(mean.square() + std.square(), drawn.square().mean(1))


# invariant (d)
def test_elites_are_worth_more_in_every_round(tmp_path):
    near, policy = Near(), ToyFlow().load(CPU)
    source(tmp_path).draw(policy, 1, 0, scorer=near)
    assert [len(worth) for worth in near.asked] == [3 * 16] * 4
    elites = torch.stack([worth.view(3, 16).topk(4).values.mean(1) for worth in near.asked])
    assert (elites.diff(dim=0) > 0).all() and (elites[-1] - elites[0]).min() > 0.5


def test_a_group_starts_from_what_was_found(tmp_path):
    near, policy = Near(), ToyFlow().load(CPU)
    found = source(tmp_path)
    prompts, plan = found.prompts_at(1, 0), replace(PLAN.at(1), waypoint=0)
    mean, std = SEARCH(policy, prompts, plan, near, Noise(0, 1, (0, 1, 2), "attempt 0"), 0)
    assert (std < 1).float().mean() > 0.9 and mean.abs().max() > 0.5
    start = Noise(0, 1, tuple(range(12))).normal(policy.network.shape, "start")
    drawn = found.draw(policy, 1, 0, scorer=Near())
    rollout = policy.sample(
        drawn.prompts, plan, Noise(0, 1, tuple(range(12))).starting(*(p.repeat_interleave(4, 0) for p in (mean, std)))
    )
    expected = mean.repeat_interleave(4, 0) + std.repeat_interleave(4, 0) * start
    torch.testing.assert_close(rollout.waypoint, expected)
    assert torch.equal(rollout.final, drawn.final)
    torch.testing.assert_close(policy.logp(drawn), drawn.logp)


def test_what_is_searched_for_is_a_function_of_seed_and_step(tmp_path):
    policy = ToyFlow().load(CPU)
    whole = source(tmp_path).draw(policy, 2, 5, scorer=Near())
    assert torch.equal(source(tmp_path).draw(policy, 2, 5, scorer=Near()).final, whole.final)
    parts = source(tmp_path, rows=5).draw(policy, 2, 5, scorer=Near())
    torch.testing.assert_close(parts.final, whole.final, atol=1e-5, rtol=1e-5)
    others = [source(tmp_path).draw(policy, *key, scorer=Near()).final for key in ((2, 6), (3, 5), (2, 5, 1))]
    assert all(not torch.allclose(other, whole.final, atol=1e-2) for other in others)


def test_evaluations_count_the_previews(tmp_path):
    policy = ToyFlow().load(CPU)
    policy.network.evaluations = 0
    drawn = source(tmp_path).draw(policy, 1, 0, scorer=Near())
    assert policy.network.evaluations == 3 * (4 * 16 + 4 * 4)
    assert float(drawn.evaluations.sum()) == pytest.approx(policy.network.evaluations)


def test_a_preview_that_cannot_be_scored_is_no_elite(tmp_path):
    """Sixteen candidates of the first prompt have no score: its noise stays standard normal."""
    policy, prompts = ToyFlow().load(CPU), source(tmp_path).prompts_at(1, 0)
    mean, std = SEARCH(policy, prompts, PLAN.at(1), Near(unknown=16), Noise(0, 1, tuple(range(len(prompts)))), 0)
    assert (mean[0] == 0).all() and (std[0] == 1).all() and (std[1:] != 1).all()


def test_a_preview_that_would_not_begin_at_noise_is_refused(tmp_path, monkeypatch):
    """Schedules of eps models with leading times begin a draw of one step beside the picture."""
    policy = ToyFlow().load(CPU)
    monkeypatch.setattr(policy, "times", lambda steps: torch.tensor([0.04, 0.0]))
    with pytest.raises(ValueError, match=r"a draw of 1 begins at time 0.04 in this model's schedule"):
        source(tmp_path).draw(policy, 1, 0, scorer=Near())


def test_what_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"search: looks at rewards|source.on_policy.search: looks at rewards"):
        source(tmp_path).draw(ToyFlow().load(CPU), 1, 0)
    with pytest.raises(ValueError, match="a plan of tokens has none"):
        source(tmp_path, plan=EveryToken())
    for fields, sentence in (
        ({"rounds": 0}, "rounds and steps must be at least 1, got 0 and 1"),
        ({"elites": 1}, "elites must be from 2 to 16, the candidates, got 1"),
        ({"elites": 17}, "elites must be from 2 to 16, the candidates, got 17"),
        ({"keep": 1.0}, "keep must be from 0 to below 1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Search(**fields)
