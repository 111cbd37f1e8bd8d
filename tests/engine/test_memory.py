"""What remembers begins with a run, wherever it stands, is saved and comes back; what does not is left as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toy_run
from toys import Brightness

from burnish.advantages.group_norm import GroupNorm
from burnish.advantages.prompt_history import PromptHistory
from burnish.advantages.trimmed import Trimmed
from burnish.engine import checkpoint
from burnish.engine.loop import train
from burnish.engine.memory import Memories, begun
from burnish.engine.reporter import Reporter

POLICY = toy_run.toys.ToyRaster().load(torch.device("cpu"))


def test_a_component_without_memory_is_itself():
    for advantage in (GroupNorm(), Trimmed(GroupNorm())):
        working, found = begun(advantage, POLICY, "advantage")
        assert working is advantage and not found


def test_what_is_wrapped_begins_too():
    settings = Trimmed(Trimmed(PromptHistory()), best=3)
    working, found = begun(settings, POLICY, "advantage")
    assert list(found) == ["advantage.inner.inner"]
    assert working.inner.inner is found["advantage.inner.inner"] and working.best == 3
    assert settings.inner.inner == PromptHistory(), "the settings were changed"


def test_metrics_are_named_after_the_stage():
    _, found = begun(Trimmed(PromptHistory()), POLICY, "advantage")
    assert Memories(found).metrics() == {"weigh/known": 0.0}


def test_a_checkpoint_in_which_others_remembered_is_refused():
    _, found = begun(PromptHistory(), POLICY, "advantage")
    with pytest.raises(ValueError, match="holds what nothing remembered, and here it would be advantage"):
        Memories(found).restore({})


def run(folder: Path, **changes) -> Path:
    recipe = toy_run.recipe(steps=2, suites={}, reward=Brightness(), **changes)
    return train(recipe, folder, reporter=Reporter(folder, quiet=True))


def test_a_run_without_memory_saves_none(tmp_path):
    found = checkpoint.latest(run(tmp_path / "run"))
    assert found is not None and not (found / checkpoint.MEMORY).exists()
    assert checkpoint.read(found).memory == {}


def test_memory_is_checked_like_everything_else(tmp_path):
    found = checkpoint.latest(run(tmp_path / "run", advantage=PromptHistory()))
    assert found is not None
    assert len(checkpoint.read(found).memory["advantage"]["rewards"]["toy0"]) == 16
    file = found / checkpoint.MEMORY
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"memory\.pt is damaged"):
        checkpoint.read(found)
    file.unlink()
    with pytest.raises(ValueError, match=r"memory\.pt is damaged"):
        checkpoint.read(found)


def test_a_second_run_of_a_recipe_starts_afresh(tmp_path):
    same = toy_run.recipe(steps=2, suites={}, advantage=PromptHistory())
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        train(same, folder, reporter=Reporter(folder, quiet=True))
    one, two = (checkpoint.read(checkpoint.latest(folder) or folder) for folder in folders)
    assert all(torch.equal(weight, two.weights[name]) for name, weight in one.weights.items())
