"""The laws, over every component found in the folders. A new file is under them by being there."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from laws import found, laws

EVERY = [(kind, name) for kind in found.KINDS for name in found.files(kind)]


def settings(kind: str) -> list:
    every = [(name, v) for name in found.files(kind) for v in found.variants(found.component(kind, name))]
    return [pytest.param(v, id=f"{name}-{i}") for i, (name, v) in enumerate(every)]


def with_kl(objective):
    """An objective that can be leashed is also tried with its leash on."""
    return [objective] + ([replace(objective, kl=0.1)] if any(f.name == "kl" for f in fields(objective)) else [])


@pytest.mark.parametrize("law", laws.OBJECTIVE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("objective", settings("objectives"))
def test_objectives(objective, law):
    for each in with_kl(objective):
        law(each)


@pytest.mark.parametrize("law", laws.ADVANTAGE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("advantage", settings("advantages"))
def test_advantages(advantage, law):
    law(advantage)


FREE = [name for name in found.files("rewards") if not found.needs_weights(found.component("rewards", name))]


@pytest.mark.parametrize("law", laws.REWARD_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", FREE)
def test_rewards_without_weights(name, law):
    for reward in found.variants(found.component("rewards", name)):
        law(reward)


def test_there_are_rewards_without_weights():
    assert {"jpeg", "tiers", "weighted"} <= set(FREE)


@pytest.mark.parametrize("law", laws.PLAN_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", found.files("plans"))
def test_plans(name, law):
    for planner in found.variants(found.component("plans", name)):
        law(planner)


@pytest.mark.parametrize("law", laws.TRANSITION_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("transition", settings("transitions"))
def test_transitions(transition, law):
    law(transition)


@pytest.mark.parametrize("kind, name", EVERY)
def test_every_setting_has_a_comment(kind, name):
    assert found.undocumented(found.component(kind, name)) == []


BUILT = [(k, n) for k, n in EVERY if k in ("advantages", "objectives", "plans", "transitions")] + [
    ("rewards", n) for n in FREE
]


@pytest.mark.parametrize("kind, name", BUILT)
def test_settings_are_values(kind, name):
    laws.settings_are_a_value(found.plain(found.component(kind, name)))
