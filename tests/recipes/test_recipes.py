"""Every shipped recipe decodes, and decode and encode are inverses over all of them and over changed values."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from burnish.recipe import read
from burnish.recipe.check import check, fit, numbers
from burnish.recipe.decode import decode, hints
from burnish.recipe.encode import encode
from burnish.recipe.recipe import Recipe

NAMES = [name for name, _ in read.shipped()]
RECIPES = {name: read.read(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_fits_together(name):
    recipe = RECIPES[name]
    assert not [*fit(recipe), *numbers(recipe)]
    assert decode(Recipe, encode(recipe)) == recipe
    assert dict(read.shipped())[name].endswith((".", ")")), "its first comment is a sentence"


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_passes_check_with_weights_and_prompts(name, tmp_path, monkeypatch):
    monkeypatch.setattr("burnish.recipe.check.missing_weights", lambda recipe: [])
    (tmp_path / "prompts.txt").write_text("".join(f"{number} red circles\n" for number in range(200)))
    settings = {} if "/" in name else {"source.on_policy.prompts": str(tmp_path / "prompts.txt")}
    assert not check(read.read(name, settings=settings)).faults


def test_the_recipes_of_the_issue_are_here():
    assert {"ar_grpo", "ar_grpo_c2i", "scenes/ar_grpo", "scenes/ar_grpo_c2i", "scenes/ar_grpo_verified"} <= set(NAMES)


def test_values_of_the_paper():
    text, classes = RECIPES["ar_grpo"], RECIPES["ar_grpo_c2i"]
    assert (text.objective.kl, classes.objective.kl) == (1.0, 0.1)
    assert (text.steps, classes.steps) == (600, 400)
    assert text.optim.lr == 1e-5 and text.source.plan_at(1).group == 8
    assert dict(text.reward.weights) == {
        "clip": 5, "clip_tier": 1, "hps": 5, "hps_tier": 1, "quality": 2, "match": 1, "fake": 1, "weird": 1,
    }  # fmt: skip
    assert classes.reward == text.reward


def test_scenes_truth_is_only_measured():
    assert "scenes_verified" not in str(encode(RECIPES["scenes/ar_grpo"].reward))
    assert "scenes_verified" in str(encode(RECIPES["scenes/ar_grpo"].measures))


SCALARS = {
    int: st.integers(0, 10**6),
    float: st.floats(0.001, 1e6, allow_nan=False),
    bool: st.booleans(),
    str: st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12).filter(
        lambda s: "$" not in s
    ),
}


def values(hint: Any) -> st.SearchStrategy | None:
    """Values of a plain type; None for what is a tree of its own."""
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        arms = [st.none() if arm is type(None) else values(arm) for arm in get_args(hint)]
        return None if None in arms else st.one_of(*arms)
    return SCALARS.get(hint)


@st.composite
def changed(draw, value: Any) -> Any:
    """A settings tree with new values in all its leaves; those that a component refuses stay."""
    new = {}
    for field in fields(value):
        old, strategy = vars(value)[field.name], values(hints(type(value))[field.name])
        if is_dataclass(old):
            new[field.name] = draw(changed(old))
        elif strategy is not None:
            new[field.name] = draw(strategy)
    try:
        return replace(value, **new)
    except ValueError:
        return value


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from(NAMES))
def test_decode_and_encode_are_inverses(data, name):
    recipe = data.draw(changed(RECIPES[name]))
    assert decode(Recipe, encode(recipe)) == recipe
    assert encode(decode(Recipe, encode(recipe))) == encode(recipe)


@pytest.mark.slow  # OmegaConf takes a tenth of a second to make a node tree
@settings(max_examples=5, deadline=None)
@given(st.data(), st.sampled_from(NAMES))
def test_yaml_changes_nothing(data, name):
    recipe = data.draw(changed(RECIPES[name]))
    plain = encode(recipe)
    through = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(plain))))
    assert through == plain
    assert decode(Recipe, through) == recipe
