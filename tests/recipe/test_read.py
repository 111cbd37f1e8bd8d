"""Layers: bases, files, changes, and the record of where each value came from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from burnish.advantages.group_norm import GroupNorm
from burnish.advantages.leave_one_out import LeaveOneOut
from burnish.objectives.gspo import GSPO
from burnish.recipe import read

TOP = "scenes/ar_grpo"


def test_a_change_goes_by_the_recipe_s_own_path():
    plain = read.read(TOP)
    assert read.read(TOP, ["objective.ppo_clip.clip=2e-4"]) == replace(
        plain, objective=replace(plain.objective, clip=2e-4)
    )
    assert read.read(TOP, ["optim.lr=1e-3", "steps=7"]) == replace(plain, optim=replace(plain.optim, lr=1e-3), steps=7)
    assert read.read(TOP, ["policy.llamagen.lora.rank=4"]).policy.lora.rank == 4


def test_naming_another_component_replaces_it():
    assert read.read(TOP, ["objective=gspo", "objective.gspo.clip=1e-3"]).objective == GSPO(clip=1e-3)
    assert read.read(TOP, ["advantage=leave_one_out"]).advantage == LeaveOneOut()


def test_naming_the_same_component_keeps_its_settings():
    plain = read.read(TOP)
    assert read.read(TOP, ["objective=ppo_clip"]) == plain
    assert read.read(TOP, ["objective={ppo_clip: {clip: 0.1}}"]).objective == replace(plain.objective, clip=0.1)


def test_null_takes_an_entry_out_of_a_mapping():
    assert "truth" in read.read(TOP).measures
    assert "truth" not in read.read(TOP, ["measures.truth=null"]).measures


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            "objective.gspo.clip=1",
            "recipe.objective: the objective is 'ppo_clip', not 'gspo'; to change it, write objective=gspo",
        ),
        ("objective.clip=1", "recipe.objective.clip: the objective here is 'ppo_clip'; write objective.ppo_clip.clip"),
        ("objective.ppo_clip.clp=1", "recipe.objective.ppo_clip.clp: PPOClip has no such field; did you mean 'clip'?"),
        (
            "objective=ppo_clp",
            "recipe.objective: no objective called 'ppo_clp'; did you mean 'ppo_clip'? (choices: awm,",
        ),
        ("stesp=3", "recipe.stesp: Recipe has no such field; did you mean 'steps'?"),
        ("steps.more=3", "recipe.steps: is a single value, so nothing is called 'more' under it"),
        ("steps", "expected a change written path=value"),
        ("steps=[", "cannot read the value"),
        ("steps=many", "recipe.steps: expected int, got str 'many'"),
        ("measures.other.jpeg.quality=3", "recipe.measures.other: the recipe has no reward here to change"),
    ],
)
def test_a_change_that_leads_nowhere_says_what_would(change, sentence):
    with pytest.raises(ValueError) as problem:
        read.read(TOP, [change])
    assert sentence in str(problem.value)


def test_every_value_knows_where_it_came_from(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("base: scenes/ar_grpo\noptim: {lr: 5e-4}\nadvantage: leave_one_out\n")
    found = read.draft(str(own), ["steps=3"])
    assert found.origin["optim.lr"] == str(own)
    assert found.origin["advantage.leave_one_out"] == str(own)
    assert found.origin["steps"] == "command line"
    assert found.origin["policy.llamagen.pixels"] == "recipe scenes/ar_grpo"
    assert "optim.eps" not in found.origin
    assert "advantage.group_norm" not in found.origin


def test_bases_are_looked_for_beside_the_file_first(tmp_path):
    (tmp_path / "a.yaml").write_text("base: scenes/ar_grpo\nsteps: 11\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nadvantage: {group_norm: {eps: 0.5}}\n")
    found = read.read(str(tmp_path / "b.yaml"))
    assert (found.steps, found.advantage) == (11, GroupNorm(0.5))


def test_of_several_bases_the_later_lies_on_the_earlier(tmp_path):
    (tmp_path / "a.yaml").write_text("base: scenes/ar_grpo\nsteps: 11\noptim: {lr: 0.5}\n")
    (tmp_path / "layer.yaml").write_text("steps: 12\nmeasures: {truth: null}\n")
    (tmp_path / "c.yaml").write_text("base: [a.yaml, layer.yaml]\nseed: 3\n")
    found = read.draft(str(tmp_path / "c.yaml"))
    recipe = read.read(str(tmp_path / "c.yaml"))
    assert (recipe.steps, recipe.optim.lr, recipe.seed, recipe.measures) == (12, 0.5, 3, {})
    assert found.origin["steps"] == str(tmp_path / "layer.yaml")
    assert found.origin["optim.lr"] == str(tmp_path / "a.yaml")
    assert found.origin["policy.llamagen.pixels"] == "recipe scenes/ar_grpo"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "expected a recipe (policy, source, reward, ...), got nothing"),
        ("- a\n", "expected a recipe"),
        ("steps: 1\nsteps: 2\n", "found duplicate key steps"),
        ("steps: [1\n", "not YAML"),
        ("base: mine.yaml\n", "is its own base"),
        ("base: 3\n", "base must name one recipe, or a list of them, got 3"),
        ("base: scenes/ar_gpro\n", "no recipe, file or run called 'scenes/ar_gpro'; did you mean 'scenes/ar_grpo'?"),
        ("steps: 3\n", "recipe: Recipe needs 'policy', 'source', 'reward', 'objective', 'advantage'"),
        ("steps: !!python/object/apply:os.getcwd []\n", "not YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, text, sentence):
    own = tmp_path / "mine.yaml"
    own.write_text(text)
    with pytest.raises(ValueError) as problem:
        read.read(str(own))
    assert sentence in str(problem.value)


def test_names_that_are_nothing(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no recipe, file or run called 'ar_gpro'; did you mean 'ar_grpo'"):
        read.locate("ar_gpro")
    with pytest.raises(ValueError, match="no such recipe file"):
        read.locate("absent.yaml")
    with pytest.raises(ValueError, match="this folder is not a run"):
        read.locate(str(tmp_path))
    with pytest.raises(ValueError, match="no recipe, file or run"):
        read.locate("../recipe/recipe")


def test_a_written_recipe_reads_back(tmp_path):
    recipe = read.read(TOP, ["optim.lr=3e-7", "optim.eps=1e-12"])
    read.write(recipe, tmp_path / "recipe.yaml")
    assert read.read(str(tmp_path)) == recipe  # a run folder


def test_objects_go_in_by_path_too():
    found = read.read(TOP, settings={"objective": GSPO(), "optim": {"lr": 0.5}, "optim.warmup": 3})
    assert found.objective == GSPO()
    assert (found.optim.lr, found.optim.warmup, found.optim.clip_norm) == (0.5, 3, 1.0)
    again = read.changed(found, ["steps=2"], {"advantage": LeaveOneOut()})
    assert again == replace(found, steps=2, advantage=LeaveOneOut())


def test_paths_with_dots_in_a_component_s_name(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("base: scenes/ar_grpo\nadvantage: {'burnish.advantages.group_norm:GroupNorm': {eps: 1.0}}\n")
    changed = read.read(str(own), ["advantage.burnish.advantages.group_norm:GroupNorm.eps=2"])
    assert changed.advantage == GroupNorm(2.0)
