"""Groups that teach nothing: kept, dropped, or drawn again."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from toys import Brightness, BrightnessScorer, ToyPolicy, ToyRaster

from burnish.core import Scorer
from burnish.engine.scoring import ATTEMPTS, scored, settled
from burnish.plans.every_token import EveryToken
from burnish.sources.on_policy import OnPolicy
from burnish.types import Scores

SOURCE = OnPolicy("toys:prompts", EveryToken(group=4), per_step=3)


@dataclass
class FlatAtFirst(Scorer):
    """Brightness, but group 0 is flat in the first `dull` calls."""

    dull: int
    calls: int = 0

    def __call__(self, images, prompts_asked) -> Scores:
        self.calls += 1
        scores = BrightnessScorer(Brightness())(images, prompts_asked)
        total = scores.total.clone()
        if self.calls <= self.dull:
            total[:4] = 0.5
        return replace(scores, total=total, parts={"brightness": total}, notes={})


@pytest.fixture
def policy() -> ToyPolicy:
    return ToyRaster().load(torch.device("cpu"))


def settle(policy: ToyPolicy, scorer: Scorer, how: str):
    rollout = SOURCE.draw(policy, 1, 0)
    return rollout, settled((rollout, scored(rollout, scorer, "reward", 1)), how, SOURCE, policy, scorer, 1, 0)


@pytest.mark.parametrize(("how", "kept"), [("keep", 12), ("drop", 8)])
def test_flat_groups_are_kept_or_do_not_count(policy: ToyPolicy, how: str, kept: int) -> None:
    rollout, found = settle(policy, FlatAtFirst(9), how)
    assert found.flat == 1 and int(found.keep.sum()) == kept
    assert found.rollout is rollout and found.drawn == 12
    assert how == "keep" or not found.keep[:4].any()


def test_a_flat_group_is_replaced_by_a_later_draw_of_its_prompt(policy: ToyPolicy) -> None:
    scorer = FlatAtFirst(2)
    rollout, found = settle(policy, scorer, "refill")
    assert scorer.calls == 3 and found.drawn == 12 + 4 + 4, "the first draw and two refills of its group"
    assert found.keep.all() and found.flat == 1
    assert found.rollout.group.tolist() == rollout.group.tolist() and found.rollout.prompts == rollout.prompts
    assert found.rollout.ids == (24, 25, 26, 27, *rollout.ids[4:]), "other samples, with noise of their own"
    again = SOURCE.draw(policy, 1, 0, attempt=2)
    assert torch.equal(found.rollout.media[:4], again.media[:4])
    assert torch.equal(found.scores.total, found.rollout.media.mean((1, 2, 3)))


def test_refilling_gives_up(policy: ToyPolicy) -> None:
    scorer = FlatAtFirst(99)
    _, found = settle(policy, scorer, "refill")
    assert scorer.calls == ATTEMPTS and int(found.keep.sum()) == 8 and not found.keep[:4].any()
