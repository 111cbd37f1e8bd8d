"""The error on data beside another objective, and where the data comes from."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
import torch
from laws import found, laws
from objectives.test_steps import batch, lost, slope
from PIL import Image
from toy_denoiser import ToyNetwork

from burnish.core import Denoiser, Needs, Objective, Scorer
from burnish.formulas.matching import Target, noised
from burnish.objectives.gardo import GARDO
from burnish.objectives.pretraining import Pretraining
from burnish.objectives.raft import RAFT
from burnish.objectives.refl import ReFL
from burnish.objectives.step_clip import StepClip
from burnish.pairs import read_pairs
from burnish.types import Batch, Loss, Prompt, take

DATA = "laws.found:captioned"


@dataclass(frozen=True)
class Nothing(Objective[Denoiser]):
    """Loses nothing, and counts samples."""

    def needs(self) -> Needs:
        return Needs()

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        return Loss(torch.zeros((), dtype=torch.float64), batch.keep.sum().double())


def alone(weight: float, draws: int = 1, target: Target = "velocity") -> Pretraining:
    return Pretraining(Nothing(), DATA, weight, draws=draws, target=target)


def mean(loss: Loss) -> torch.Tensor:
    return loss.total / loss.count


@pytest.mark.parametrize("target", ["velocity", "noise"])
def test_it_is_the_error_of_flow_matching_on_data(target):
    policy, of = laws.denoiser({}, moved=0.1), batch(laws.drawn_steps())
    settings = alone(0.7, 3, target)
    pairs = settings.begin(None)._chosen(of)
    assert len({pair.prompt.id for pair in pairs}) > 1, "samples are beside different pictures"
    pictures = {prompt.id: picture for prompt, picture in found.captioned()}
    clean = torch.stack([pictures[pair.prompt.id].logit() for pair in pairs])
    data = replace(of.rollout, prompts=tuple(pair.prompt for pair in pairs), final=clean)
    some = noised(replace(of, rollout=data), 3, "uniform", policy.times(4), stream="pretraining")
    v = policy.velocity(some.x, some.t, some.prompts)
    error = (v - (some.x - some.clean) / some.t.view(-1, 1, 1, 1).double()).square().mean((1, 2, 3))
    if target == "noise":
        error = error * (1 - some.t).square()
    loss, close = lost(settings, of, policy), {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(mean(loss), 0.7 * error.mean(), **close)
    torch.testing.assert_close(slope(loss, policy), slope(0.7 * error.mean(), policy), **close)


@pytest.mark.parametrize("inner", [StepClip(), ReFL(), RAFT(best=2)], ids=lambda inner: type(inner).__name__)
def test_it_is_added_to_the_objective_whatever_that_counts(inner):
    policy, of = laws.denoiser({}, moved=0.1), batch(laws.drawn_steps())
    known = laws.judge(inner)
    both = Pretraining(inner, DATA, 0.3).loss(of, policy, known)
    one, data = inner.loss(of, policy, known), alone(0.3).loss(of, policy, known)
    torch.testing.assert_close(mean(both), mean(one) + mean(data))
    assert set(both.metrics) == {*one.metrics, "data"} and both.metrics["data"].total == data.metrics["data"].total


def test_parts_of_a_step_add_up():
    policy, of = laws.denoiser({}, moved=0.1), batch(laws.drawn_steps())
    settings = Pretraining(StepClip(), DATA)
    whole = settings.loss(of, policy, laws.judge(settings))
    parts = [settings.loss(take(of, some), policy, laws.judge(settings)) for some in torch.arange(12).split(5)]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)


def test_every_step_brings_other_pictures():
    of, settings = batch(laws.drawn_steps()), alone(1.0).begin(None)
    one, other = ([pair.prompt.id for pair in settings._chosen(replace(of, step=step))] for step in (1, 2))
    assert one != other
    some = [pair.prompt.id for pair in settings._chosen(replace(take(of, torch.tensor([3, 1])), step=1))]
    assert some == [one[3], one[1]], "a picture goes with a sample, not with a row"


def test_what_remembers_holds_it_inside():
    with pytest.raises(ValueError, match="inner: gardo remembers; put pretraining into its own inner"):
        Pretraining(GARDO(StepClip()), DATA)
    GARDO(Pretraining(StepClip(), DATA))


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_a_folder_of_pictures_with_captions(tmp_path):
    (tmp_path / "train").mkdir()
    Image.new("RGB", (4, 2), (255, 0, 51)).save(tmp_path / "train" / "a.png")
    rows = [{"file_name": "train/a.png", "text": "something red"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (pair,) = read_pairs(str(tmp_path), "here")
    assert pair.prompt.text == "something red" and pair.read().shape == (3, 2, 4)
    torch.testing.assert_close(pair.read()[:, 0, 0], torch.tensor([1.0, 0.0, 0.2]))


@pytest.mark.parametrize(("line", "words"), [
    (None, "no such file; a line of it is"),
    ("", "holds no pairs"),
    ("{", "line 1: not JSON: Expecting property name"),
    ('{"file_name": "a.png"}', "line 1: expected file_name and text, both of them strings"),
    ('["a"]', "line 1: expected file_name and text"),
    ('{"file_name": "a.png", "text": "a"}', "a.png: no such file"),
])  # fmt: skip
def test_a_folder_that_cannot_be_read_is_a_sentence(tmp_path, line, words):
    if line is not None:
        (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(ValueError, match=words):
        read_pairs(str(tmp_path), "objective.pretraining.pairs")


def test_a_file_that_is_no_picture_is_a_sentence(tmp_path):
    (tmp_path / "a.png").write_text("no")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}')
    (pair,) = read_pairs(str(tmp_path), "here")
    with pytest.raises(ValueError, match=r"here: .*line 1: .*a.png is not a picture"):
        pair.read()


def numbers() -> list[int]:
    return [1, 2]


@pytest.mark.parametrize(("name", "words"), [
    ("nowhere", "'nowhere' is neither a folder"),
    ("objectives.test_pretraining:numbers", "must return a sequence of pairs"),
    ("objectives.test_pretraining:none", "has no function 'none'"),
])  # fmt: skip
def test_a_name_of_nothing_is_a_sentence(name, words):
    with pytest.raises(ValueError, match=words):
        read_pairs(name, "objective.pretraining.pairs")


def test_facts_of_a_prompt_are_kept():
    pair = read_pairs(DATA, "here")[1]
    assert pair.prompt == Prompt("data/1", "a thing", {"number": 1})


def test_a_policy_without_an_encoder_is_a_sentence(monkeypatch):
    monkeypatch.delattr(ToyNetwork, "latents")
    with pytest.raises(ValueError, match="ToyNetwork has no encoder that would make latents of them"):
        lost(alone(1.0), batch(laws.drawn_steps()), laws.denoiser({}, moved=0.1))
