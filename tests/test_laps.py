"""Where the time of a step goes, and rewards that are scored while more is drawn."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import toys
from toy_run import lines, recipe

from burnish.core import Reward, Scorer
from burnish.engine.ahead import Ahead
from burnish.engine.loop import train
from burnish.engine.reporter import Reporter
from burnish.laps import lap, recorded
from burnish.report.timeline import timeline
from burnish.types import Prompt, Scores


def test_laps_lie_within_one_another_and_beside():
    with recorded() as laps, lap("outer"):
        other = threading.Thread(target=slept, args=("beside",))
        other.start()
        slept("inner")
        slept("inner")
        other.join()
    inner, outer = laps.spent("inner"), laps.spent("outer")
    assert 0.02 <= inner <= outer and laps.spent("nothing") == 0
    beside = next(one for one in laps.ended if one.name == "beside")
    first = next(one for one in laps.ended if one.name == "inner")
    assert beside.start < first.end and first.start < beside.end
    with lap("unseen"):
        pass
    assert "unseen" not in {one.name for one in laps.ended}


def slept(name: str) -> None:
    with lap(name):
        time.sleep(0.01)


@dataclass(frozen=True)
class Slow(Reward):
    """Mean gray level, after a while; fails at the second call with `fails`."""

    fails: bool = False

    def load(self, device: torch.device) -> Scorer:
        return SlowScorer(self)


class SlowScorer(Scorer):
    def __init__(self, spec: Slow) -> None:
        self.spec, self.calls = spec, list[tuple[str, int]]()

    def __call__(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> Scores:
        self.calls.append((threading.current_thread().name, len(images)))
        time.sleep(0.02)
        if self.spec.fails and len(self.calls) == 2:
            raise KeyError("no such endpoint")
        return Scores.of("bright", images.double().mean((1, 2, 3)))


def slow(**changes):
    plain = recipe(policy=toys.ToyRaster(), reward=Slow(), measures={}, steps=2)
    return replace(plain, source=replace(plain.source, rows=4), **changes)


def test_rewards_at_work_while_more_is_drawn_give_the_same_run(tmp_path: Path):
    for name, overlap in (("after", False), ("while", True)):
        train(slow(overlap=overlap), tmp_path / name, reporter=Reporter(tmp_path / name, quiet=True))
    assert lines(tmp_path / "after") == lines(tmp_path / "while")
    laps = [json.loads((tmp_path / name / "timeline.json").read_text())["laps"] for name in ("after", "while")]
    told = [[lap["name"] for lap in some] for some in laps]
    assert told[0].count("scoring") == 1 and told[1].count("scoring") > 1
    assert {"draw", "score", "weigh", "update", "save"} <= set(told[1])
    first, drawn = (next(lap for lap in laps[1] if lap["name"] == name) for name in ("scoring", "draw"))
    assert first["start"] < drawn["end"], "begun before all was drawn"


def test_a_reward_that_fails_beside_the_drawing_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"reward: the reward failed at step 1: KeyError: 'no such endpoint'"):
        train(slow(overlap=True, reward=Slow(fails=True)), tmp_path / "run", reporter=Reporter(tmp_path / "run", True))


def test_what_was_not_begun_is_forgotten_after_an_error():
    begun = []

    def scored(part):
        begun.append(part)
        time.sleep(0.05)

    with pytest.raises(RuntimeError, match="while drawing"), Ahead(scored, torch.device("cpu")) as ahead:  # pyright: ignore[reportArgumentType]
        for part in range(5):
            ahead(part)  # pyright: ignore[reportArgumentType]
        raise RuntimeError("while drawing")
    assert len(begun) <= 2


def test_the_report_shows_them():
    laps = [{"name": "draw", "start": 0.0, "end": 2.0}, {"name": "<b>", "start": 0.0, "end": 9.0}]
    shown = timeline({"step": 7, "laps": [*laps, {"name": "update", "start": 2.0, "end": 3.5}]})
    assert "Timeline of step 7, 3.500 seconds" in shown and "1.500 s" in shown and "<b>" not in shown.split("svg")[1]
    assert shown.count("<rect") == 2 and timeline(None) == "" and timeline({"step": 1, "laps": []}) == ""
