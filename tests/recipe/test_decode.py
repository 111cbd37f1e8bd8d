"""Strict decoding: what is said about every kind of wrong value, and that nothing but numbers is cast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from burnish.advantages.kl_in_reward import KlInReward
from burnish.advantages.leave_one_out import LeaveOneOut
from burnish.core import Advantage, Objective, Reward
from burnish.objectives.ppo_clip import PPOClip
from burnish.recipe.decode import decode
from burnish.recipe.encode import encode
from burnish.recipe.recipe import Optim
from burnish.rewards.function import Function


@dataclass(frozen=True)
class Inner:
    width: int
    tag: str = "x"


@dataclass(frozen=True)
class Everything:
    whole: int = 1
    real: float = 1.0
    flag: bool = False
    word: str = "w"
    place: Path = Path("a")
    mode: Literal["fast", "slow", 3] = "fast"
    maybe: float | None = None
    either: str | int = 0
    pair: tuple[int, float] = (1, 2.0)
    many: tuple[str, ...] = ()
    steps: Mapping[str, Inner] = field(default_factory=dict)
    parts: Mapping[str, Reward] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.whole < 0:
            raise ValueError(f"whole must be 0 or more, got {self.whole}")


def score(images, prompts):
    return [0.0] * len(prompts)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"whoel": 1}, "recipe.whoel: Everything has no such field; did you mean 'whole'? (choices: either, flag,"),
        ({"whole": "1"}, "recipe.whole: expected int, got str '1'"),
        ({"whole": 1.0}, "recipe.whole: expected int, got float 1.0"),
        ({"whole": True}, "recipe.whole: expected int, got bool True"),
        ({"flag": 1}, "recipe.flag: expected bool, got int 1"),
        ({"real": "tight"}, "recipe.real: expected float, got str 'tight'"),
        ({"real": True}, "recipe.real: expected float, got bool True"),
        ({"real": "nan"}, "recipe.real: expected float, got str 'nan'"),
        ({"real": None}, "recipe.real: expected float, got null"),
        ({"word": 3}, "recipe.word: expected str, got int 3"),
        ({"mode": "fsat"}, "recipe.mode: no such choice: 'fsat'; did you mean 'fast'? (choices: 3, fast, slow)"),
        ({"mode": 3.0}, "recipe.mode: no such choice: 3.0"),
        ({"maybe": "much"}, "recipe.maybe: expected float, got str 'much'"),
        ({"either": 1.5}, "recipe.either: expected str or int, got float 1.5"),
        ({"pair": [1]}, "recipe.pair: expected 2 values, got 1"),
        ({"pair": [1, "b"]}, "recipe.pair[1]: expected float, got str 'b'"),
        ({"pair": 1}, "recipe.pair: expected a list, got int 1"),
        ({"steps": {"a": {}}}, "recipe.steps.a: Inner needs 'width' (fields: width, tag)"),
        ({"steps": {"a": 3}}, "recipe.steps.a: expected settings of Inner by name, got int 3"),
        ({"steps": [1]}, "recipe.steps: expected values by name, got list [1]"),
        ({"steps": {1: {}}}, "recipe.steps: expected names, got the key 1"),
        ({"parts": {"a": "jpg"}}, "recipe.parts.a: no reward called 'jpg'; did you mean 'jpeg'? (choices: aesthetic,"),
        ({"parts": {"a": {}}}, "recipe.parts.a: expected the name of a reward, or {name: {...}}, got dict {}"),
        ({"parts": {"a": {"jpeg": {}, "hps": {}}}}, "recipe.parts.a: expected one reward, got 2: jpeg, hps"),
        ({"parts": {"a": {"jpeg": 3}}}, "recipe.parts.a.jpeg: expected settings, got int 3"),
        ({"parts": {"a": "nowhere:score"}}, "recipe.parts.a: cannot import 'nowhere' of 'nowhere:score'"),
        ({"parts": {"a": f"{__name__}:scoer"}}, f"recipe.parts.a: {__name__} has no 'scoer'; did you mean 'score'?"),
        ({"parts": {"a": f"{__name__}:Inner"}}, "is not a class that implements burnish.core.Reward"),
        ({"whole": -1}, "recipe: whole must be 0 or more, got -1"),
    ],
)
def test_every_mistake_gets_its_sentence(data, sentence):
    with pytest.raises(ValueError) as problem:
        decode(Everything, data)
    assert sentence in str(problem.value)


def test_only_numbers_are_cast():
    found = decode(Everything, {"real": "1e-4", "maybe": 2, "pair": [3, 4]})
    assert (found.real, found.maybe, found.pair) == (1e-4, 2.0, (3, 4.0))
    assert type(found.maybe) is float and type(found.pair[1]) is float


def test_a_component_is_a_name_or_a_name_with_settings():
    assert decode(Advantage, "leave_one_out") == LeaveOneOut()
    assert decode(Objective, {"ppo_clip": {"clip": 1}}) == PPOClip(clip=1.0)
    assert decode(Objective, {"ppo_clip": None}) == PPOClip()
    assert decode(Advantage, {"kl_in_reward": {"inner": "leave_one_out"}}) == KlInReward(LeaveOneOut())


def test_an_error_of_a_component_says_where_once():
    with pytest.raises(ValueError) as problem:
        decode(Reward, {"weighted": {"parts": {"a": "jpeg"}, "weights": {"b": 1}}}, "recipe.reward")
    assert str(problem.value).startswith("recipe.reward.weighted: parts ['a'")


def test_encode_writes_every_value_and_decode_reads_it():
    value = decode(Everything, {"parts": {"a": {"jpeg": {}}}, "steps": {"s": {"width": 3}}, "place": "b/c"})
    assert encode(value)["steps"] == {"s": {"width": 3, "tag": "x"}}
    assert encode(value)["place"] == "b/c"
    assert decode(Everything, encode(value)) == value
    assert encode(LeaveOneOut()) == "leave_one_out"
    assert encode(Optim())["betas"] == [0.9, 0.999]


def test_a_callable_is_a_reward():
    found = decode(Reward, score)
    assert isinstance(found, Function) and found.function is score
    assert encode(found) == {"function": {"name": f"{__name__}:score"}}
