"""The order of prompts, and that a draw in chunks is the draw."""

from __future__ import annotations

import pytest
import torch
from toys import ToyRaster

from burnish.plans.every_token import EveryToken
from burnish.sources.on_policy import OnPolicy
from burnish.types import TokenPlan


@pytest.fixture
def seven(tmp_path) -> str:
    path = tmp_path / "seven.txt"
    path.write_text("".join(f"prompt {i}\n" for i in range(7)))
    return str(path)


def test_an_epoch_holds_no_prompt_twice(seven):
    source = OnPolicy(seven, EveryToken(), per_step=2)
    for epoch in range(3):
        asked = [p.id for step in range(3 * epoch, 3 * epoch + 3) for p in source.prompts_at(step, seed=5)]
        assert len(set(asked)) == 6


def test_the_order_depends_on_seed_and_epoch_alone(seven):
    source = OnPolicy(seven, EveryToken(), per_step=7)
    orders = {(seed, epoch): tuple(p.id for p in source.prompts_at(epoch, seed)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(set(orders.values())) == 4
    assert orders[1, 1] == tuple(p.id for p in OnPolicy(seven, EveryToken(), per_step=7, rows=3).prompts_at(1, 1))


def test_more_prompts_a_step_than_there_are(seven):
    with pytest.raises(ValueError, match="holds 7 prompts, fewer than per_step: 8"):
        OnPolicy(seven, EveryToken(), per_step=8).prompts_at(0, 0)


@pytest.mark.parametrize("rows", [1, 3, 4, 11, 12, 50])
def test_a_draw_in_chunks_is_the_draw(rows):
    policy = ToyRaster().load(torch.device("cpu"))
    plan = EveryToken(group=4, guidance=2.0)
    whole = OnPolicy("toys:prompts", plan, per_step=3).draw(policy, step=2, seed=9)
    parts = OnPolicy("toys:prompts", plan, per_step=3, rows=rows).draw(policy, step=2, seed=9)
    assert torch.equal(parts.decisions[0].ids, whole.decisions[0].ids)
    assert torch.allclose(parts.logp, whole.logp, atol=1e-6)
    assert torch.equal(parts.media, whole.media)
    assert parts.prompts == whole.prompts and parts.ids == whole.ids == tuple(range(12))
    assert parts.group.tolist() == whole.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_another_attempt_asks_the_same_prompts_with_other_noise():
    policy = ToyRaster().load(torch.device("cpu"))
    source = OnPolicy("toys:prompts", EveryToken(group=8), per_step=2)
    first, second = (source.draw(policy, 0, 0, attempt) for attempt in (0, 1))
    assert first.prompts == second.prompts
    assert second.ids == tuple(range(16, 32))
    assert not torch.equal(first.decisions[0].ids, second.decisions[0].ids)


@pytest.mark.parametrize(("field", "value"), [("per_step", 0), ("rows", -1)])
def test_settings_out_of_range(field, value):
    with pytest.raises(ValueError, match=field):
        OnPolicy("x.txt", EveryToken(), **{field: value})


def test_every_token_writes_the_plan_it_is():
    assert EveryToken().at(0) == TokenPlan()
    every = EveryToken(3, 2.0, 0.9, 5, 0.8, "guided", True)
    assert every.at(7) == TokenPlan(3, 2.0, 0.9, 5, 0.8, "guided", True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("group", 0), ("guidance", -0.1), ("guidance", float("nan")), ("temperature", 0.0), ("top_k", -1),
        ("top_p", 0.0), ("top_p", 1.01), ("law", "sample"),
    ],
)  # fmt: skip
def test_a_plan_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be"):
        EveryToken(**{field: value})
