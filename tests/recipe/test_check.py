"""What is known before a model loads: faults, settings that cannot act, and a lower bound of what a run takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import tiny_llamagen
import torch

from burnish.core import Copy, Footprint, Needs, Objective, Policy, PolicySpec
from burnish.objectives.rebel import REBEL
from burnish.recipe.check import check, fit, require
from burnish.recipe.decode import decode
from burnish.recipe.estimate import memory, multiply_adds
from burnish.recipe.layers import merged
from burnish.recipe.read import read
from burnish.recipe.recipe import Recipe


class Velocity(Policy):
    """A kind of policy that LlamaGen is not."""


@dataclass(frozen=True)
class WantsVelocity(Objective[Velocity]):
    """Accepts only policies with a velocity."""

    def needs(self) -> Needs:
        return Needs()

    def loss(self, batch, policy, reward):
        raise NotImplementedError


@dataclass(frozen=True)
class WantsGradient(Objective[Policy]):
    """Differentiates the reward, and draws from a copy that it does not keep; keeps groups whole."""

    def needs(self) -> Needs:
        return Needs(draw_from="old", copies={"ema": Copy(0.9)}, reward_gradient=True, whole_groups=True)

    def loss(self, batch, policy, reward):
        raise NotImplementedError


@dataclass(frozen=True)
class Big(PolicySpec):
    """A policy that tells its size."""

    trainable: int = 1000
    recompute: bool = False

    def load(self, device: torch.device) -> Policy:
        raise NotImplementedError

    def footprint(self) -> Footprint:
        return Footprint(1000, self.trainable, tokens=10, vocabulary=7, width=8, layers=2, recompute=self.recompute)


@pytest.fixture
def plain(tmp_path) -> dict[str, Any]:
    """A recipe that can run, on a small true LlamaGen."""
    spec = tiny_llamagen.spec(tmp_path, text=False)
    lines = "".join(f'{{"text": "thing {i}", "facts": {{"class_id": {i}}}}}\n' for i in range(5))
    (tmp_path / "classes.jsonl").write_text(lines)
    return {
        "policy": {"llamagen": {"gpt": spec.gpt, "tokenizer": spec.tokenizer, "vq": "", "pixels": 8}},
        "source": {
            "on_policy": {
                "prompts": str(tmp_path / "classes.jsonl"),
                "per_step": 3,
                "plan": {"every_token": {"group": 4}},
            }
        },
        "reward": "jpeg",
        "objective": {"ppo_clip": {"kl": 0.1}},
        "advantage": "group_norm",
        "steps": 20,
        "optim": {"minibatches": 2},
    }


def with_(plain: Mapping, **changes: Any) -> Recipe:
    return decode(Recipe, merged(Recipe, plain, changes))


def plan(**settings: Any) -> dict:
    return {"on_policy": {"plan": {"every_token": settings}}}


def test_a_recipe_that_can_run_has_no_faults_and_nothing_idle(plain):
    found = check(with_(plain))
    assert found.faults == ()
    assert found.warnings == ()
    assert require(with_(plain)) == ()


def fault(recipe: Recipe) -> str:
    faults = check(recipe).faults
    assert len(faults) == 1, faults
    with pytest.raises(ValueError):
        require(recipe)
    return faults[0]


def test_a_batch_that_does_not_divide_names_what_would(plain):
    assert fault(with_(plain, optim={"minibatches": 5})) == (
        "optim.minibatches: 12 samples cannot be cut into 5 equal minibatches (3 prompts x 4 = 12 samples a step); "
        "4 or 6 would work"
    )


def test_groups_stay_whole_where_they_must(plain):
    name = f"{__name__}:WantsGradient"
    faults = check(with_(plain, objective=name, optim={"minibatches": 2, "micro": 6})).faults
    assert "optim.minibatches: 3 prompts, whose groups must stay whole, cannot be cut into 2" in faults[0]
    assert "1 or 3 would work" in faults[0]
    assert "optim.micro: 6 would split groups of 4" in faults[1]


def test_fit(plain):
    faults = check(with_(plain, objective=f"{__name__}:WantsGradient", optim={"minibatches": 1})).faults
    assert faults == (
        f"reward: {__name__}:WantsGradient differentiates the reward, but jpeg has no gradient",
        f"objective: {__name__}:WantsGradient draws from a copy 'old' that it does not keep",
    )
    faults = check(with_(plain, objective=f"{__name__}:WantsGradient", scorers={"count": 2})).faults
    assert f"scorers: {__name__}:WantsGradient differentiates the reward, which workers cannot do" in " ".join(faults)
    assert fault(with_(plain, objective=f"{__name__}:WantsVelocity")) == (
        f"objective: {__name__}:WantsVelocity needs a Velocity, but policy llamagen is only a Policy"
    )


def test_updates_by_steps_need_steps_that_can_stand_alone(plain):
    assert fault(with_(plain, optim={"by_step": True})) == (
        "optim.by_step: takes steps of a denoiser that are drawn at random, and this plan draws none"
    )
    recipe = read("tdpo_r")
    assert recipe.optim.by_step and not [*fit(recipe)]
    assert [*fit(replace(recipe, objective=REBEL()))] == [
        "optim.by_step: rebel learns from whole samples, and not from single steps; false would work"
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 0}, "steps: expected 1 or more, got 0"),
        ({"optim": {"lr": 0}}, "optim.lr: expected more than 0, got 0.0"),
        ({"optim": {"micro": -1}}, "optim.micro: expected 0 or more, got -1"),
        ({"optim": {"betas": [0.9, 1.0]}}, "optim.betas: expected two numbers from 0 to below 1, got [0.9, 1.0]"),
        ({"device": "cuda:99"}, "device: 'cuda:99' is not on this machine"),
        ({"source": {"on_policy": {"prompts": "absent.txt"}}}, "source: absent.txt: no such prompt file"),
        ({"source": {"on_policy": {"per_step": 9}}}, "holds 5 prompts, fewer than per_step: 9"),
        (
            {"policy": {"llamagen": {"gpt": "./absent.pt"}}},
            "policy.llamagen.gpt: './absent.pt' is no file or folder here",
        ),
        ({"policy": {"llamagen": {"gpt": "weights/absent.pt"}}}, "'weights/absent.pt' is no file or folder here"),
        ({"policy": {"llamagen": {"gpt": "burnish:worlds/none"}}}, "is not in this installation of burnish"),
        (
            {"source": plan(group=1), "optim": {"minibatches": 3}},
            "plan.group: with groups of 1, group_norm is 0 for every sample and nothing is learned",
        ),
    ],
)
def test_faults(plain, changes, sentence):
    assert sentence in fault(with_(plain, **changes))


def test_a_group_of_one_is_enough_where_the_reward_is_differentiated():
    at = {"source.on_policy.prompts": "toys:prompts", "source.on_policy.per_step": 2, "optim.micro": 2}
    for name in ("draft", "alignprop"):
        assert not [fault for fault in check(read(name, settings=at)).faults if "group" in fault]


def test_pairs_that_are_not_there_are_found_wherever_a_setting_names_them(tmp_path):
    """Also inside an objective that wraps another; a run would say so only after its policy had been loaded."""
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "gone.png", "text": "a cat"}\n')

    def faults(pairs):
        objective = {"pretraining": {"inner": {"refl": {}}, "pairs": pairs}}
        found = check(read("scenes/refl", settings={"objective": objective})).faults
        return [sentence for sentence in found if "pairs" in sentence]

    assert not faults("burnish.worlds.scenes.render:pictures")
    here = "objective.pretraining.pairs: "
    assert faults("absent") == [f"{here}'absent' is neither a folder (with metadata.jsonl) nor a module:function"]
    listed = f"{here}{tmp_path / 'metadata.jsonl'}, line 1: {tmp_path / 'gone.png'}: no such file"
    assert faults(str(tmp_path)) == [listed]


def test_weights_of_a_hub_that_cannot_be_reached_get_a_sentence(plain, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    reward = {"clip_score": {"weights": "nobody/no-such-model"}}
    assert fault(with_(plain, reward=reward)) == (
        "reward.clip_score.weights: 'nobody/no-such-model' is not downloaded yet, and the hub cannot be reached"
    )


def test_a_judge_behind_an_endpoint_needs_no_weights_here(plain, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    judge = {"model": "nobody/no-such-model", "endpoint": "http://localhost:1/v1"}
    assert check(with_(plain, reward={"judge": judge})).faults == ()
    assert "nobody/no-such-model" in fault(with_(plain, reward={"judge": {"model": "nobody/no-such-model"}}))


ALONE = {"weighted": {"parts": {"a": "jpeg"}, "weights": {"a": 5.0}}}  # one part, and a weight on it
ONE_UPDATE = {"optim": {"minibatches": 1}}


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        (ONE_UPDATE, "objective.ppo_clip: clip cannot act: with one update a rollout"),
        ({**ONE_UPDATE, "objective": {"ppo_clip": {"dual_clip": 3.0}}}, "objective.ppo_clip: clip, dual_clip cannot"),
        ({"objective": {"ppo_clip": {"kl": 0.0, "kl_estimator": "k2"}}}, "objective.ppo_clip.kl_estimator: cannot act"),
        ({"objective": {"ppo_clip": {"kl_estimator": "k1"}}}, "objective.ppo_clip.kl_estimator: k1 in the loss"),
        ({"objective": {"ppo_clip": {"length": 64}}}, "objective.ppo_clip.length: cannot act"),
        ({"objective": {"ppo_clip": {"anchor": "recomputed"}}}, "objective.ppo_clip.anchor: 'recomputed' gives what"),
        ({"source": plan(detach_null=True)}, "plan.detach_null: cannot act: with guidance 1"),
        ({"source": plan(law="conditional")}, "plan.law: 'conditional' is the same as 'sampled'"),
        ({"source": plan(top_k=1)}, "plan.top_k: 1 draws one and the same sample"),
        ({"optim": {"warmup": 40}}, "optim.warmup: the learning rate never arrives: 40 updates of"),
        ({"optim": {"ema": {"decay": 0.9, "every": 21}}}, "optim.ema.every: the average never moves: 21 steps"),
        ({"evaluate_every": 5}, "evaluate_every: cannot act: there are no suites to run"),
        ({"optim": {"micro": 7}}, "optim.micro: 7 is more than the 6 samples of a minibatch"),
        ({"overlap": True}, "overlap: no reward can be at work while more is drawn: all 12 samples of a step are"),
        ({"reward": ALONE}, "reward.weighted: weights: {a: 5.0} cannot act: advantage group_norm"),
    ],
)  # fmt: skip
def test_settings_that_cannot_act(plain, changes, start):
    found = check(with_(plain, **changes))
    assert found.faults == ()
    assert [sentence.startswith(start) for sentence in found.warnings] == [True], found.warnings


@pytest.mark.parametrize(
    "changes",
    [
        {**ONE_UPDATE, "source": plan(law="conditional", guidance=2.0)},  # ratios against the law drawn from are not 1
        {"source": plan(law="guided", top_k=5)},
        {"source": plan(law="tempered", top_p=0.9)},
        {"objective": {"ppo_clip": {"anchor": "recomputed"}}, "source": plan(law="conditional", guidance=2.0)},
        {"advantage": "leave_one_out", "reward": ALONE},
        {"reward": {"weighted": {"parts": {"a": "jpeg", "b": "jpeg"}, "weights": {"a": 5.0, "b": 1.0}}}},
        {"advantage": {"global_norm": {"baseline": "batch"}}, "source": plan(group=1), "optim": {"minibatches": 3}},
        {"advantage": {"kl_in_reward": {"inner": "leave_one_out"}}},
        {"overlap": True, "source": {"on_policy": {"rows": 4}}},
    ],
)
def test_settings_that_act_are_left_alone(plain, changes):
    assert check(with_(plain, **changes)).warnings == ()
    assert check(with_(plain, **changes)).faults == ()


def test_memory_by_hand(plain):
    recipe = with_(plain, policy=f"{__name__}:Big", source=plan(guidance=2.0))
    found = memory(recipe, recipe.policy.footprint())
    assert found["weights"] == 1000 * 4
    assert found["gradient"] == 1000 * 4
    assert found["optimiser"] == 2 * 1000 * 4
    assert found["copies"] == 1000 * 4  # the reference of the KL
    assert found["cache"] == 12 * 2 * 10 * 2 * 2 * 8 * 4  # samples, branches, tokens, layers, k and v, width, bytes
    assert found["activations"] == 6 * 2 * 10 * 2 * 22 * 8 * 4


def test_an_average_is_a_copy(plain):
    with_it = with_(plain, policy=f"{__name__}:Big", optim={"ema": {"decay": 0.9}})
    assert memory(with_it, with_it.policy.footprint())["copies"] == 2 * 1000 * 4
    clash = with_(plain, objective=f"{__name__}:WantsGradient", optim={"ema": {"decay": 0.9}})
    assert "optim.ema: the objective keeps a copy of this name; null would work" in check(clash).faults


def test_adapters_need_no_copy_for_a_reference(plain):
    recipe = with_(plain, policy={f"{__name__}:Big": {"trainable": 10}})
    found = memory(recipe, recipe.policy.footprint())
    assert found["copies"] == 0
    assert found["optimiser"] == 2 * 10 * 4
    assert found["weights"] == (1000 + 10) * 4


def test_work_by_hand(plain):
    recipe = with_(plain, policy=f"{__name__}:Big", source=plan(guidance=2.0, law="conditional"))
    tokens = 12 * 10
    assert multiply_adds(recipe, recipe.policy.footprint()) == 1000 * (2 * tokens + (1 + 3) * tokens)
    bare = replace(recipe, objective=replace(recipe.objective, kl=0.0))
    assert multiply_adds(bare, recipe.policy.footprint()) == 1000 * (2 * tokens + 3 * tokens)
