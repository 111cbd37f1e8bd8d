"""Reward models at rest are found wherever a scorer holds them, and are back whatever happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from toy_run import lines, recipe
from toys import Brightness, toy_prompts

from burnish.core import Scorer
from burnish.engine.loop import train
from burnish.engine.reporter import Reporter
from burnish.engine.resting import Resting, networks_in
from burnish.models.places import locate
from burnish.rewards.clip_score import ClipScore
from burnish.types import Prompt, Scores

CPU = torch.device("cpu")


class Network(torch.nn.Linear):
    """Notes where it is sent."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.sent: list[str] = []

    def to(self, device: torch.device) -> Network:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.sent.append(str(device))
        return self


class Holds(Scorer):
    """Holds networks in every manner."""

    def __init__(self) -> None:
        self.own, hidden, self.fails = Network(), Network(), False
        self.listed, self.function = [{"a": (Network(),)}], lambda: hidden
        self.bound, self.late = Inside().ask, partial(print, Network())
        self.again, self.itself = self.own, self
        self.everyone = [self.own, hidden, self.listed[0]["a"][0], self.bound.__self__.network, self.late.args[0]]

    def __call__(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> Scores:
        assert all(network.sent[-1] == "meta" for network in self.everyone)
        if self.fails:
            raise KeyError("no")
        return Scores.of("one", torch.ones(len(prompts)))


class Inside:
    def __init__(self) -> None:
        self.network = Network()

    def ask(self) -> None: ...


def test_networks_come_when_they_are_called_and_go_again():
    scorer = Holds()
    assert len(list(networks_in(scorer))) == len(scorer.everyone) == 5
    resting = Resting(scorer, torch.device("meta"))
    assert resting(torch.ones(2, 3, 4, 4), toy_prompts(2, 1)).total.tolist() == [1, 1]
    scorer.fails = True
    with pytest.raises(KeyError):
        resting(torch.ones(2, 3, 4, 4), toy_prompts(2, 1))
    assert all(network.sent == ["cpu", "meta", "cpu", "meta", "cpu"] for network in scorer.everyone)


def test_a_reward_that_ships_is_found():
    scorer = ClipScore(weights=str(locate("burnish:worlds/scenes/weights/clip"))).load(CPU)
    assert [type(network).__name__ for network in networks_in(scorer)] == ["CLIPModel"]


def test_a_run_is_the_same(tmp_path: Path):
    whole = recipe(steps=2, measures={"again": Brightness()})
    for rests in (False, True):
        folder = tmp_path / str(rests)
        train(replace(whole, rewards_rest=rests), folder, reporter=Reporter(folder, quiet=True))
    assert lines(tmp_path / "True") == lines(tmp_path / "False")
