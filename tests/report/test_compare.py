"""Comparing runs: families of seeds, the mean over them, and pairs between runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from burnish.report.compare import by_recipe, differences, render, write
from burnish.report.folder import read
from burnish.report.intervals import Change, over_seeds


def words(page: str) -> str:
    without = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", without))


@pytest.fixture
def pair(tmp_path: Path, write_run) -> list[Path]:
    return [write_run(tmp_path / name, steps=4, seed=seed) for name, seed in (("one", 1), ("two", 2))]


def rescore(folder: Path, right: int) -> None:
    """Make the first `right` of 48 samples of the last evaluation right."""
    path = folder / "evaluations" / "heldout-000004"
    values = (np.arange(48) < right).astype(float)
    np.savez(path.with_suffix(".npz"), verified=values)
    text = re.sub(r'"verified": [\d.]+', f'"verified": {values.mean()}', path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(text)


def test_the_interval_over_seeds_by_hand():
    mean, low, high = over_seeds(np.array([1.0, 2.0, 3.0]))
    # deviation 1, standard error 1 / sqrt 3, t(0.975, 2) = 4.3027
    assert (mean, low, high) == pytest.approx((2, 2 - 2.4842, 2 + 2.4842), abs=1e-3)
    assert np.isnan(over_seeds(np.array([5.0]))[1:]).all()


def test_words_for_a_change():
    assert Change(0, 1, 0.5, 1.5).word == "better"
    assert Change(0, 1, 0.5, 1.5, lower_is_better=True).word == "worse"
    assert Change(0, -1, -1.5, -0.5, lower_is_better=True).word == "better"
    assert Change(0, 1, -0.5, 1.5).word == "not distinguishable"
    assert Change(0, 1).word == "unknown"


def test_two_seeds_are_one_family(pair: list[Path]):
    rescore(pair[0], 36)  # +25 points
    rescore(pair[1], 45)  # +43.75 points
    page = words(render([read(f) for f in pair]))
    assert "mean of 2 runs 50.0 % 84.4 % +34.4" in page.replace("\u202f", " ")
    assert "not distinguishable" in page  # two runs 19 points apart prove nothing: t(0.975, 1) = 12.7
    assert "+18.8 (" in page  # the second against the first, over the same prompts: 9 of 48
    assert "seed 1 2" in page


def test_a_setting_other_than_the_seed_makes_families(pair: list[Path]):
    recipe = pair[1] / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("clip: 0.2", "clip: 0.3"))
    runs = [read(f) for f in pair]
    assert differences(runs) == {"objective.ppo_clip.clip": [0.2, 0.3], "seed": [1, 2]}
    page = words(render(runs))
    assert "clip 0.2: Verified on heldout" in page and "clip 0.3: Verified on heldout" in page
    assert "one run, so no interval over seeds" in page
    assert by_recipe([], {}) == []


def test_every_run_has_its_curve(pair: list[Path]):
    page = render([read(f) for f in pair])
    total = re.search(r"Total reward <.*?</script>", page, re.DOTALL)[0]
    assert '"name":"one"' in total and '"name":"two"' in total


def test_a_run_without_a_second_pass_is_left_out_by_name(pair: list[Path], tmp_path: Path, write_run):
    young = write_run(tmp_path / "young", steps=2, finished=False)
    page = words(render([read(f) for f in (*pair, young)]))
    assert "young – no second evaluation" in page
    assert "mean of 2 runs" in page


def test_refusals(pair: list[Path], tmp_path: Path):
    with pytest.raises(ValueError, match="two runs or more, got 1"):
        write(pair[:1], tmp_path / "out.html")
    with pytest.raises(ValueError, match="given twice"):
        write([pair[0], pair[0]], tmp_path / "out.html")
    assert write(pair, tmp_path / "out.html").read_text().startswith("<!doctype html>")
