"""Learners, drawers and rewards on a Ray cluster give the run that one process gives, also when some of them die."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import several
import tiny_diffusers
import torch
from ray_toys import Mortal, Tells
from runs_apart import CLOSE, apart
from toy_run import lines

from burnish.core import Scorer
from burnish.crew import Luggage, Workers, connected
from burnish.engine.layouts.on_ray import Asked, learn, train_on_ray
from burnish.engine.loop import train
from burnish.engine.reporter import Reporter
from burnish.recipe.recipe import Learners, Recipe
from burnish.rewards.on_ray import OnRay
from burnish.types import Prompt

ray = pytest.importorskip("ray", reason="ray is an extra")
pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Workers wait more than they work here: there may be more of them than cores."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.shutdown()  # a test elsewhere may have begun one of as many cores as there are
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def tells(cluster: None) -> Scorer:
    return OnRay(Tells(), Workers(2)).load(CPU)


def asked(n: int) -> tuple[torch.Tensor, list[Prompt]]:
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0)), [
        Prompt(f"p{i}", f"text {i}") for i in range(n)
    ]


def test_scores_of_workers_are_those_of_the_reward(tells: Scorer):
    images, prompts = asked(5)
    images[3] = 0
    alone, together = Tells().load(CPU)(images, prompts), tells(images, prompts)
    torch.testing.assert_close(together.total, alone.total, equal_nan=True, rtol=0, atol=0)
    assert together.valid.tolist() == alone.valid.tolist() == [True, True, True, False, True]
    said = [note.split(" by ") for note in together.notes["tells"]]
    assert [text for text, _ in said] == [f"text {i}" for i in range(5)]
    assert len({process for _, process in said}) == 2 and str(os.getpid()) not in {process for _, process in said}


def test_fewer_pictures_than_workers(tells: Scorer):
    images, prompts = asked(1)
    assert tells(images, prompts).total.tolist() == [float(images[0, 0, 0, 0])]


def test_a_worker_that_dies_is_replaced_and_asked_again(tmp_path: Path):
    images, prompts = asked(4)
    scorer = OnRay(Mortal(Tells(), str(tmp_path / "died")), Workers(2)).load(CPU)
    assert scorer(images, prompts).total.tolist() == images[:, 0, 0, 0].tolist()
    assert (tmp_path / "died").exists()


def test_a_worker_that_cannot_be_replaced_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As after its machine is gone, when there is room nowhere else. One that merely works for long is waited for."""
    images, prompts = asked(2)
    mortal = OnRay(Mortal(Tells(), str(tmp_path / "died"), once=True), Workers(2)).load(CPU)
    slow = OnRay(Tells(seconds=5.0)).load(CPU)
    monkeypatch.setattr("burnish.crew.PATIENCE", 2.0)
    assert slow(images, prompts).valid.all()
    with pytest.raises(ValueError, match=r"lost, and did not start again, 1 of 2 workers of 1 cpus and 0 gpus"):
        mortal(images, prompts)


def test_what_goes_wrong_in_a_worker_is_a_sentence(tells: Scorer):
    images, _ = asked(1)
    with pytest.raises(ValueError, match=r"^KeyError: 'no such endpoint'$"):
        tells(images, [Prompt("p", "wrong")])
    with pytest.raises(ValueError, match="no weights at all"):
        OnRay(Tells(broken=True)).load(CPU)


def test_a_cluster_that_is_too_small_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("burnish.crew.PATIENCE", 1.0)
    with pytest.raises(ValueError, match="did not start 1 of 1 workers of 100 cpus and 0 gpus"):
        OnRay(Tells(), Workers(cpus=100)).load(CPU)


def test_it_scores_what_the_reward_inside_scores():
    assert OnRay(Tells()).videos and not OnRay(several.Bright()).videos and not OnRay(several.Bright()).differentiable


def ran(recipe: Recipe, folder: Path) -> Path:
    return train(recipe, folder, reporter=Reporter(folder, quiet=True))


@pytest.mark.parametrize("name", ["refill", "dgpo"])
def test_samples_of_workers_make_the_same_run(tmp_path: Path, name: str):
    """Three updates: what is drawn by old weights would tell. `dgpo` draws by an average of them."""
    recipe = several.NAMED[name]()
    there = replace(recipe, drawers=Workers(2), scorers=Workers(cpus=0.5), overlap=True)
    gap = apart(ran(recipe, tmp_path / "here"), ran(there, tmp_path / "there"))
    assert gap < (1e-5 if several.in_float32(name) else CLOSE)


def test_learners_that_die_go_on_from_the_last_checkpoint(tmp_path: Path):
    recipe, died = several.NAMED["everything"](), tmp_path / "died"
    mortal = Mortal(recipe.reward, str(died), call=8, rank=1)
    there = replace(recipe, reward=mortal, learners=Learners(2, restarts=2))
    folder = train_on_ray(there, tmp_path / "learners", False)
    assert died.exists() and not list(folder.glob("ray-*"))
    assert [row["step"] for row in lines(folder)] == list(range(recipe.steps + 1))
    assert apart(ran(recipe, tmp_path / "alone"), folder) < CLOSE
    assert len(json.loads((folder / "environment.json").read_text())["resumed"]) == 1


def test_a_learner_ends_with_its_sentence_and_is_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["burnish", "train"])
    monkeypatch.chdir(tmp_path)
    asked = Asked(several.NAMED["leader_fails"](), tmp_path / "run", False, (), ["burnish", "train", "it"])
    assert "the reward failed at step 2: KeyError: 'no such endpoint'" in learn({"asked": Luggage.of(asked)})
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert facts["command"] == "burnish train it"


def test_learners_end_with_the_sentence_of_one_of_them(tmp_path: Path):
    """The others hear it, and none is started again: a second start would be refused the folder."""
    there = replace(several.NAMED["fails"](), learners=Learners(2))
    with pytest.raises(ValueError, match="process 1 of 2 has failed: reward: the reward failed at step 2: KeyError"):
        train_on_ray(there, tmp_path / "run", False)
    assert not json.loads((tmp_path / "run" / "environment.json").read_text())["resumed"]


def test_learners_of_divided_weights_end_with_a_sentence_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The others are in the middle of a pass and hear nothing: they are ended, and not waited for."""
    monkeypatch.setenv("TINY_SD3", tiny_diffusers.sd3(tmp_path / "tiny").weights)
    there = replace(several.NAMED["sd3_fails"](), shard=True, learners=Learners(2, restarts=0))
    began = time.monotonic()
    with pytest.raises(ValueError, match="0 times: reward: the reward failed at step 1: KeyError"):
        train_on_ray(there, tmp_path / "run", False)
    assert time.monotonic() - began < 180


def test_a_folder_that_holds_a_run_is_refused_before_learners_start(tmp_path: Path):
    there = replace(several.NAMED["raster"](), learners=Learners(2))
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(ValueError, match="holds a run already"):
        train_on_ray(there, tmp_path, False)
    with pytest.raises(ValueError, match="there is no run to resume"):
        train_on_ray(there, tmp_path / "none", True)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"gpus": 0.5}, {"restarts": -1}, {"cpus": -1}])
def test_wrong_learners_are_refused(wrong: dict):
    with pytest.raises(ValueError, match=r"^learners"):
        Learners(**wrong)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"gpus": -0.5}, {"cpus": -1}])
def test_wrong_workers_are_refused(wrong: dict):
    with pytest.raises(ValueError, match=r"^workers"):
        Workers(**wrong)


def test_signals_stay_what_they_were(monkeypatch: pytest.MonkeyPatch):
    """Ray takes SIGTERM as it joins a cluster, and Ray Train SIGINT."""

    def takes(*_: object, **__: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", takes)
    connected()
    assert signal.getsignal(signal.SIGTERM) is before
