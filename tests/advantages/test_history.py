"""The history of a prompt, against numbers worked by hand and a queue that is told straight through."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import pytest
import torch

from burnish.advantages.prompt_history import PromptHistory
from burnish.types import Prompt, Rollout, Scores, TokenPlan, Tokens


def rollout_of(prompts: list[str], ids: list[int] | None = None) -> Rollout:
    b = len(prompts)
    zeros = torch.zeros(b, 1)
    tokens = Tokens(zeros.long(), zeros, zeros + 1, zeros.long(), zeros)
    asked = tuple(Prompt(name, name) for name in prompts)
    names = tuple(ids or range(b))
    return Rollout(asked, torch.arange(b), (tokens,), torch.zeros(b, 3, 1, 1), TokenPlan(group=1), names)


def scores_of(values: list[float]) -> Scores:
    return Scores.of("one", torch.tensor(values, dtype=torch.float64))


def close(found: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_by_hand():
    """Rewards 1 and 3, then 5 and 5: the last four have mean 3.5 and deviation sqrt(2.75); the last three 13/3."""
    at_work = PromptHistory(buffer=4, least=4, eps=0.0).begin(None)
    close(at_work(scores_of([1.0, 3.0]), rollout_of(["a", "a"])), [-1.0, 1.0])  # two are too few: the step's own
    assert at_work.metrics() == {"known": 0.0}
    close(at_work(scores_of([5.0, 5.0]), rollout_of(["a", "a"])), [1.5 / math.sqrt(2.75)] * 2)
    assert at_work.metrics() == {"known": 1.0}
    # 3, 5, 5, 9: the oldest is gone
    close(at_work(scores_of([9.0]), rollout_of(["a"])), [3.5 / math.sqrt(4.75)])


def test_a_prompt_that_is_new_is_compared_with_the_step():
    at_work = PromptHistory(buffer=4, least=2, eps=1.0).begin(None)
    found = at_work(scores_of([0.0, 2.0, 4.0]), rollout_of(["a", "a", "b"]))
    everyone = math.sqrt(8 / 3)
    close(found, [-0.5, 0.5, 2.0 / (everyone + 1.0)])
    assert at_work.metrics()["known"] == pytest.approx(2 / 3)


def test_what_could_not_be_scored_is_not_remembered():
    at_work = PromptHistory(buffer=4, least=2, eps=0.0).begin(None)
    close(at_work(scores_of([1.0, math.nan, 3.0]), rollout_of(["a"] * 3)), [-1.0, 0.0, 1.0])
    assert at_work.state()["rewards"]["a"].tolist() == [1.0, 3.0]


def test_ten_steps_are_those_of_a_queue():
    """The released tracker, told straight through with numpy; rewards of a step in the order of its numbers."""
    random = np.random.default_rng(0)
    at_work, queues = PromptHistory(buffer=8, least=5).begin(None), {}
    for _ in range(10):
        names = [str(n) for n in random.integers(0, 3, 6)]
        values = random.normal(size=6)
        order = random.permutation(6)
        expected = np.empty(6)
        for name, value in zip(names, values, strict=True):
            queues.setdefault(name, deque(maxlen=8)).append(value)
        for i, name in enumerate(names):
            among = np.array(queues[name]) if len(queues[name]) >= 5 else values
            expected[i] = (values[i] - among.mean()) / (among.std() + 1e-6)
        shuffled = rollout_of([names[i] for i in order], order.tolist())
        close(at_work(scores_of(values[order].tolist()), shuffled), expected[order].tolist())


def test_settings_called_themselves_remember_nothing():
    settings = PromptHistory(buffer=4, least=4)
    some = scores_of([1.0, 3.0]), rollout_of(["a", "a"])
    assert torch.equal(settings(*some), settings(*some))


def test_state_and_back():
    one, other = (PromptHistory(buffer=4, least=2).begin(None) for _ in range(2))
    for _ in range(3):
        one(scores_of([1.0, 4.0, 2.0]), rollout_of(["a", "b", "a"]))
    other.restore(one.state())
    later = scores_of([0.5, 7.0]), rollout_of(["b", "a"])
    assert torch.equal(one(*later), other(*later))


@pytest.mark.parametrize(("buffer", "least"), [(8, 9), (8, 1)])
def test_a_history_that_is_too_short_is_refused(buffer, least):
    with pytest.raises(ValueError, match="least must be 2 or more and at most buffer"):
        PromptHistory(buffer=buffer, least=least)
