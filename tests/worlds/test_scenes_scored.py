"""The verified reward, and the suite on policies whose success is known or whose weights are real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from burnish.core import Scorer
from burnish.formulas.noise import Noise, generator
from burnish.models.weights import Copies, KeepsCopies
from burnish.rewards.scenes_verified import ScenesVerified
from burnish.suites.scenes import Scenes, _parts
from burnish.types import Plan, Prompt, Rollout, Scores, TokenPlan, Tokens
from burnish.worlds.scenes import reference
from burnish.worlds.scenes.classes import class_prompts
from burnish.worlds.scenes.grammar import heldout, is_heldout, prompt, train
from burnish.worlds.scenes.render import Scene, draw_scene, render
from burnish.worlds.scenes.verify import verify

CPU = torch.device("cpu")


class Painter(KeepsCopies):
    """One decision a picture: paint what was asked for (token 1, probability sigmoid(skill)), or nothing (token 0)."""

    def __init__(self, skill: float) -> None:
        self.skill = torch.nn.Parameter(torch.tensor(skill))
        self.plans: list[TokenPlan] = []
        self.copies = Copies([("skill", self.skill)])

    def sample(self, prompts: Sequence[Prompt], plan: Plan, noise: Noise) -> Rollout:
        self.plans.append(plan)
        ids = (noise.uniform(1) < torch.sigmoid(self.skill)).long()
        scenes = [draw_scene(p.facts, generator(noise.seed, i)) for p, i in zip(prompts, noise.ids, strict=True)]
        shown = [s if drawn else Scene((), s.background) for s, drawn in zip(scenes, ids[:, 0].tolist(), strict=True)]
        logp = self._law(ids).detach()
        number: dict[str, int] = {}
        group = torch.tensor([number.setdefault(p.id, len(number)) for p in prompts])
        tokens = Tokens(ids, logp, torch.ones_like(logp), torch.zeros_like(ids), torch.zeros_like(logp))
        return Rollout(tuple(prompts), group, (tokens,), render(shown), plan, noise.ids)

    def logp(self, rollout: Rollout) -> Float[Tensor, "b k"]:
        return self._law(rollout.decisions[0].ids)

    def _law(self, ids: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid(torch.where(ids == 1, self.skill, -self.skill))

    def export(self, folder: Path) -> None:
        save_file({"skill": self.skill.detach().clone()}, folder / "painter.safetensors")


def images_of(texts: Sequence[str]) -> Tensor:
    return render([draw_scene(prompt(t).facts, generator(t)) for t in texts])


def test_the_reward_is_the_verdict_and_its_note_the_reason():
    images = images_of(["a red circle", "a red circle", "two stars"])
    asked = [prompt(t) for t in ("a red circle", "a blue circle", "three stars")]
    scores = ScenesVerified().load(CPU)(images, asked)
    assert scores.total.tolist() == [1.0, 0.0, 0.0]
    assert scores.valid.all()
    notes = ("", "wants 1 blue circle, sees red", "wants three stars, sees two stars")
    assert scores.notes["scenes_verified"] == notes
    partial = ScenesVerified(partial=True).load(CPU)(images, asked)
    assert partial.total.tolist() == pytest.approx([1.0, 2 / 3, 0.0])


def test_a_picture_that_was_not_drawn_is_invalid_not_zero():
    images = images_of(["a red circle"]).repeat(2, 1, 1, 1)
    images[1, 0, 5, 5] = torch.nan
    scores = ScenesVerified().load(CPU)(images, [prompt("a red circle")] * 2)
    assert scores.valid.tolist() == [True, False] and scores.total.isnan().tolist() == [False, True]
    assert scores.notes["scenes_verified"][1] == "the picture holds NaN or infinity"


def test_a_foreign_prompt_gets_a_sentence():
    with pytest.raises(ValueError, match="prompt 'imagenet/7' cannot be verified, it is not of the scenes world"):
        ScenesVerified().load(CPU)(images_of(["a star"]), [Prompt("imagenet/7", "cock", {"class_id": 7})])


def test_a_perfect_painter_is_verified_and_a_blank_one_is_not():
    for prompts in ("heldout", "train", "classes"):
        suite = Scenes(prompts=prompts, count=12)
        assert suite.run(Painter(30.0), TokenPlan(), None, 0).metrics["verified"] == 1.0, prompts
        assert suite.run(Painter(-30.0), TokenPlan(), None, 0).metrics["verified"] == 0.0, prompts


def test_metrics_are_means_of_the_values_and_categories_are_apart():
    suite = Scenes(count=30, per_prompt=2, rows=7)
    painter = Painter(0.0)
    plan = TokenPlan(2, 2.0, 0.9, 5, 0.8)
    result = suite.run(painter, plan, ScenesVerified(partial=True).load(CPU), seed=3)
    assert set(painter.plans) == {plan}
    assert len(result.prompts) == len(result.media) == len(result.values["verified"]) == 60
    assert all(is_heldout(p.facts) for p in result.prompts)
    again = verify(result.media, result.prompts)
    assert torch.equal(result.values["verified"], again.right.float())
    assert result.metrics["verified"] == pytest.approx(float(again.right.float().mean()))
    assert 0.2 < result.metrics["verified"] < 0.8
    kinds = {k: v for k, v in result.metrics.items() if k.startswith("verified_")}
    assert len(kinds) == 6 and sum(kinds.values()) / 6 == pytest.approx(result.metrics["verified"])
    assert result.metrics["reward"] == result.metrics["reward_scenes_verified"] == result.metrics["requirements"]
    assert torch.equal(result.values["reward_scenes_verified"], again.share)


def test_diversity_worked_out_by_hand():
    suite = Scenes(count=6, per_prompt=3)
    result = suite.run(Painter(1.0), TokenPlan(), None, seed=0)
    gaps = []
    for i in range(0, 18, 3):
        a, b, c = result.media[i : i + 3]
        gaps.append(((a - b).abs().mean() + (a - c).abs().mean() + (b - c).abs().mean()) / 3)
    assert result.metrics["diversity"] == pytest.approx(float(torch.stack(gaps).mean()), rel=1e-4)
    assert "diversity" not in Scenes(count=6).run(Painter(1.0), TokenPlan(), None, seed=0).metrics


def test_two_passes_ask_the_same_in_any_chunks():
    one, two = (Scenes(count=20, rows=rows).run(Painter(0.0), TokenPlan(), None, seed=5) for rows in (64, 3))
    assert torch.equal(one.media, two.media) and one.prompts == two.prompts == heldout(20)
    other = Scenes(count=20).run(Painter(0.0), TokenPlan(), None, seed=6)
    assert other.prompts == one.prompts and not torch.equal(one.media, other.media)


class Brighter(Scorer):
    """Share of the other samples of its prompt, of a call, that a picture is brighter than."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        names, gray = [p.id for p in prompts], images.mean((1, 2, 3)).tolist()
        shares = []
        for name, mine in zip(names, gray, strict=True):
            group = [value for other, value in zip(names, gray, strict=True) if other == name]
            shares.append(sum(mine > value for value in group) / (len(group) - 1) if len(group) > 1 else torch.nan)
        return Scores.of("brighter", torch.tensor(shares))


@pytest.mark.parametrize("suite", [Scenes(count=8, per_prompt=3), Scenes(prompts="classes", count=45)])
def test_a_reward_that_compares_sees_a_prompt_whole_in_any_chunks(suite: Scenes):
    """Of 30 classes, 15 are asked a second time after the others."""
    found = [replace(suite, rows=rows).run(Painter(0.0), TokenPlan(), Brighter(), 5) for rows in (64, 1, 2, 7)]
    for other in found[1:]:
        assert other.values.keys() == found[0].values.keys()
        for name, values in other.values.items():
            assert torch.equal(values.nan_to_num(-1), found[0].values[name].nan_to_num(-1)), name
    assert torch.equal(found[0].values["verified"], verify(found[0].media, found[0].prompts).right.float())
    assert int(found[0].values["reward"].isnan().sum()) == (0 if suite.per_prompt > 1 else 15)


def test_parts_are_as_many_rows_as_asked_for_where_prompts_allow_it():
    distinct = heldout(10)
    assert [len(part) for part in _parts(distinct, 4)] == [4, 4, 2]
    assert _parts(distinct, 4)[1] == [4, 5, 6, 7]
    assert [len(part) for part in _parts([p for p in distinct for _ in range(3)], 7)] == [6] * 5
    assert [len(part) for part in _parts([distinct[0]] * 9 + [distinct[1]], 4)] == [9, 1]


def test_questions_of_the_other_sets():
    trained = {p.id for p in train()}
    assert all(p.id in trained for p in Scenes(prompts="train", count=50).questions())
    classes = Scenes(prompts="classes", count=31).questions()
    assert [p.facts["class_id"] for p in classes] == [*range(30), 0]


def test_invalid_parts_are_left_out_of_the_means():
    @dataclass(frozen=True)
    class Half:
        def __call__(self, images, prompts):
            return Scores.of("half", torch.tensor([1.0 if i % 2 else torch.nan for i in range(len(images))]))

    result = Scenes(count=6).run(Painter(1.0), TokenPlan(), Half(), seed=0)  # pyright: ignore[reportArgumentType]
    assert result.metrics["reward_half"] == 1.0
    assert result.values["reward_half"].isnan().tolist() == [True, False] * 3


@pytest.mark.parametrize("field", ["count", "per_prompt", "rows"])
def test_settings_below_one_are_refused(field):
    with pytest.raises(ValueError, match=rf"suites.scenes.{field}: expected 1 or more, got 0"):
        Scenes(**{field: 0})


def test_an_unknown_set_of_prompts_is_refused():
    with pytest.raises(ValueError, match="expected one of heldout, train, classes, moving, moving_train, got 'test'"):
        Scenes(prompts="test")  # pyright: ignore[reportArgumentType]


def test_a_real_llamagen_takes_the_suite(tmp_path):
    from burnish.models.llamagen.files import save_model
    from burnish.models.llamagen.gpt import GPT, GPTConfig
    from burnish.models.llamagen.vq import VQConfig, VQModel
    from burnish.policies.llamagen import LlamaGen

    torch.manual_seed(0)
    save_model(GPT(GPTConfig(dim=32, layers=1, heads=2, vocabulary=12, classes=30)), tmp_path)
    save_model(VQModel(VQConfig(32, (1, 1, 1, 1), 32, 12, 8)), tmp_path)
    policy = LlamaGen(str(tmp_path), str(tmp_path), vq="", pixels=64).load(CPU)
    result = Scenes(prompts="classes", count=4, rows=3).run(policy, TokenPlan(guidance=1.5), None, seed=0)
    assert result.media.shape == (4, 3, 64, 64)
    assert result.metrics["verified"] == result.metrics["verified_class"] == 0.0


@pytest.mark.slow
def test_references_are_true_and_shown_by_the_tokenizer():
    asked = class_prompts()[:8]
    drawn, seen = reference.pictures(asked, 0), reference.shown(asked, 0)
    assert verify(drawn, asked).right.all() and verify(seen, asked).right.all()
    assert 0 < (drawn - seen).abs().mean() < 0.05 and not seen.requires_grad
    assert torch.equal(seen, reference.shown(asked, 0)) and not torch.equal(drawn, reference.pictures(asked, 1))
