"""A run of a policy that draws videos: what it scores, saves and shows."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_diffusers
import torch
from PIL import Image, ImageSequence

from burnish.advantages.group_mean import GroupMean
from burnish.cli.main import main
from burnish.cli.runs import open_model, train_into
from burnish.engine.grids import grid, save, shown
from burnish.objectives.step_clip import StepClip
from burnish.plans.all_steps import AllSteps
from burnish.recipe.check import fit
from burnish.recipe.recipe import Optim, Recipe
from burnish.report.folder import Sheet
from burnish.report.pictures import sprite
from burnish.rewards.frames import Frames
from burnish.rewards.jpeg import Jpeg
from burnish.sources.on_policy import OnPolicy
from burnish.suites.distribution import Distribution
from burnish.suites.diversity import Diversity
from burnish.transitions.flow_sde import FlowSDE


def frames_of(path: Path | io.BytesIO) -> np.ndarray:
    with Image.open(path) as opened:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(opened)])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    home = tmp_path_factory.mktemp("videos")
    (home / "prompts.txt").write_text("a red circle\nstar\n")
    asked = str(home / "prompts.txt")
    return Recipe(
        policy=tiny_diffusers.wan(home / "wan"),
        source=OnPolicy(asked, AllSteps(FlowSDE(0.9, "linear"), group=2, steps=3), per_step=2),
        reward=Frames(Jpeg(), count=2),
        objective=StepClip(),
        advantage=GroupMean(),
        optim=Optim(minibatches=2),
        steps=1,
        measures={"middle": Frames(Jpeg(), count=1)},
        suites={"different": Diversity(asked, per_prompt=2)},
        device="cpu",
    )


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory) -> Path:
    return train_into(recipe, tmp_path_factory.mktemp("runs") / "moving", False, lambda sentence: None)


def test_a_run_scores_and_shows_videos(run, recipe):
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[1])
    assert line["score/jpeg_mean"] != 0 and line["measure/middle_mean"] != 0 and line["eval/different_pixels"] > 0
    assert 0 < line["sentinel/brightness"] < 1 and line["sentinel/diversity"] > 0
    for place, count in ((run / "samples" / "step-000001", 4), (run / "evaluations" / "different-000001", 4)):
        facts, sheets = json.loads(place.with_suffix(".json").read_text()), frames_of(place.with_suffix(".png"))
        assert facts["tile"] == [16, 32] and len(facts.get("samples", facts.get("prompts"))) == count
        assert sheets.shape == (5, 2 + 18, 2 + 8 * 34, 3) and (sheets[0] != sheets[4]).any()


def test_the_page_moves(run):
    page = (run / "report.html").read_text()
    uris = [part.partition(")")[0] for part in page.split("url(data:image/png;base64,")[1:]]
    assert uris and all(len(frames_of(io.BytesIO(base64.b64decode(uri)))) == 5 for uri in uris)


def test_frames_of_what_is_drawn_from_python_and_on_the_command_line(run, tmp_path):
    found = open_model(str(run)).sample(["star", "a red circle"], seed=1)
    assert [len(video) for video in found] == [5, 5] and found[0][0].size == (32, 16)
    with pytest.raises(SystemExit) as ended:
        main(["sample", str(run), "star", "a red circle", "--seed", "1", "--out", str(tmp_path / "v")])
    assert not ended.value.code
    files = sorted((tmp_path / "v").iterdir())
    assert [file.name for file in files] == ["0000-star.webp", "0001-a-red-circle.webp"]
    for file, video in zip(files, found, strict=True):
        written = frames_of(file)
        assert np.abs(written - np.stack([np.asarray(frame) for frame in video]).astype(int)).mean() < 8


def test_a_sheet_of_pictures_is_as_it_was(tmp_path):
    pictures = torch.rand(3, 3, 200, 100)
    assert len(shown(pictures)) == 1 and shown(pictures)[0] is pictures
    save([grid(pictures)], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as opened:
        assert getattr(opened, "n_frames", 1) == 1 and opened.size == (2 + 8 * 102, 204)


def test_frames_on_a_sheet_are_few_and_small():
    frames = shown(torch.linspace(0, 1, 33).view(1, 33, 1, 1, 1).expand(2, 33, 3, 240, 416))
    assert len(frames) == 16 and frames[0].shape == (2, 3, 74, 128)
    assert [round(float(frame.mean()) * 32) for frame in frames[:3]] == [1, 3, 5]


def test_a_moving_sheet_is_cut_into_a_moving_sprite(tmp_path):
    levels = torch.tensor([[0.0, 0.2], [0.4, 0.6], [0.8, 1.0]]).view(3, 2, 1, 1, 1).expand(3, 2, 3, 4, 5)
    sheets = [grid(frame) for frame in shown(levels)]
    save(sheets, tmp_path / "sheet.png")
    cut = sprite(Sheet(tmp_path / "sheet.png", 3, 8, 5, 4, 2), [2, 0])
    found = frames_of(io.BytesIO(base64.b64decode(cut.uri.partition(",")[2])))
    assert found.shape == (2, 4, 10, 3)
    assert found[:, 0, 0, 0].tolist() == [204, 255] and found[:, 0, 9, 0].tolist() == [0, 51]


def test_rewards_and_suites_of_pictures_are_refused(recipe):
    assert not list(fit(recipe))
    wrong = replace(
        recipe,
        reward=Jpeg(),
        measures={"size": Jpeg()},
        suites={"far": Distribution("p", "r", "f"), "clip": Diversity("p", features="f")},
    )
    advice = "policy wan draws videos, and jpeg scores pictures; frames: {of: jpeg} asks it about some of the frames"
    assert list(fit(wrong)) == [
        f"reward: {advice}",
        f"measures.size: {advice}",
        "suites.far: policy wan draws videos, and distribution looks at pictures",
        "suites.clip: policy wan draws videos, and diversity looks at pictures",
    ]
