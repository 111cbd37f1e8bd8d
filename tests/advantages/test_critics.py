"""Values that are learned beside the policy: what they converge to, and their parts against numbers worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from laws import laws
from toy_denoiser import ToyFlow, asked

from burnish.advantages.critic import Critic
from burnish.advantages.group_mean import GroupMean
from burnish.advantages.temporal_critic import TemporalCritic
from burnish.core import LatentPlan
from burnish.formulas import gaussian
from burnish.formulas.noise import Noise
from burnish.formulas.steps import clean_of
from burnish.models.critic import PictureValue, clipped_value_loss, dormant, reset, text_vectors
from burnish.models.features import load_features
from burnish.plans.window_tree import WindowTree
from burnish.transitions.ddim import DDIM
from burnish.transitions.flow_sde import FlowSDE
from burnish.types import Rollout, Scores

CLIP = "burnish:worlds/scenes/weights/clip"


def drawn(step: int = 0, **plan) -> Rollout:
    """Two prompts of four samples, three steps each."""
    policy = ToyFlow(prompts=2).load(torch.device("cpu"))
    plan = LatentPlan(**{"group": 4, "steps": 4, "stochastic": (0, 1, 2), "transition": DDIM(), **plan})
    return policy.sample(asked(4), plan, Noise(0, step, tuple(range(8))))


def scores_of(values: list[float]) -> Scores:
    return Scores.of("one", torch.tensor(values, dtype=torch.float64))


BY_PROMPT = scores_of([1.0] * 4 + [-2.0] * 4)


# --- DPOK ---------------------------------------------------------------------------------------------------------


def test_it_learns_what_a_prompt_is_worth():
    at_work = Critic(lr=1e-2, together=False, width=16).begin(None)
    first = at_work(BY_PROMPT, drawn(0))
    before = at_work.metrics()["value_error"]
    for step in range(1, 40):
        last = at_work(BY_PROMPT, drawn(step))
    assert first.shape == last.shape == (8, 3)
    assert at_work.metrics()["value_error"] < 0.01 * before and last.abs().max() < 0.2
    assert at_work.metrics()["value"] == pytest.approx(-0.5, abs=0.1)


def test_the_advantage_is_what_the_value_leaves():
    rollout = drawn()
    scores = scores_of([float("nan"), *range(7)])
    at_work = Critic(width=8).begin(None)
    found = at_work(scores, rollout)
    text = text_vectors("", "", torch.device("cpu"))([p.text for p in rollout.prompts])
    states = torch.cat([rollout.decisions[0].before.flatten(2), text.unsqueeze(1).expand(-1, 3, -1)], 2)
    with torch.no_grad():
        value = at_work._net(states.flatten(0, 1), rollout.decisions[0].step.flatten()).view(8, 3)
    torch.testing.assert_close(found[1:], scores.total[1:, None] - value[1:].double())
    assert found[0].eq(0).all()
    assert at_work.metrics()["value"] == pytest.approx(float(value[1:].mean()))


def test_together_is_one_update_on_the_mean_of_the_batches():
    """Of batches that hold everything each, the mean gradient is that of one; apart they are so many updates."""
    found = {}
    for name, settings in {"one": {"updates": 1}, "five": {"updates": 5}, "apart": {"together": False}}.items():
        at_work = Critic(lr=1e-3, width=8, batch=1000, **settings).begin(None)
        at_work(BY_PROMPT, drawn())
        found[name] = torch.cat([w.detach().flatten() for w in at_work._net.parameters()])
        steps = next(iter(at_work._adam.state.values()))["step"]
        assert steps == (5 if name == "apart" else 1)
    torch.testing.assert_close(found["five"], found["one"], atol=1e-6, rtol=1e-4)
    assert not torch.allclose(found["apart"], found["one"], atol=1e-4)


def test_the_newest_states_are_kept():
    at_work = Critic(width=8, buffer=30).begin(None)
    for step in range(3):
        at_work(scores_of([float(step)] * 8), drawn(step))
    inputs, steps, reward = at_work._past
    assert len(inputs) == len(steps) == 30 and reward.tolist() == [1.0] * 6 + [2.0] * 24
    alone = Critic(width=8, buffer=0).begin(None)
    alone(BY_PROMPT, drawn())
    assert alone._past is None


def test_normalised_over_all_states_that_count():
    found = Critic(width=8, normalise=True)(scores_of([float("nan"), *range(7)]), drawn())[1:]
    assert float(found.mean()) == pytest.approx(0, abs=1e-9) and float(found.std(correction=0)) == pytest.approx(1)


def test_words_are_vectors():
    vectors = text_vectors("", "", torch.device("cpu"))(["a red star", "star Red a", "a blue star"])
    torch.testing.assert_close(vectors[0], vectors[1])
    assert (vectors[0] - vectors[2]).norm() > 1


@pytest.mark.parametrize("settings", [{"batch": 0}, {"updates": 0}, {"buffer": -1}, {"lr": 0.0}])
def test_settings_of_a_critic_out_of_range_are_a_sentence(settings):
    with pytest.raises(ValueError, match=r"advantage\.critic"):
        Critic(**settings)


# --- TDPO-R -------------------------------------------------------------------------------------------------------


def test_what_is_left_of_the_return():
    """Before it has learned, V is almost 0: the returns themselves, normalised over samples and steps."""
    scores = scores_of([1.0, 2.0, 3.0, 6.0, float("nan"), 0.0, 5.0, 7.0])
    found = TemporalCritic(GroupMean())(scores, drawn())
    returns = torch.tensor([-2.0, -1.0, 0.0, 3.0, -4.0, 1.0, 3.0], dtype=torch.float64)
    expected = (returns / returns.std(correction=0)).unsqueeze(1).expand(7, 3)
    counts = [0, 1, 2, 3, 5, 6, 7]
    torch.testing.assert_close(found[counts], expected, atol=1e-2, rtol=0)
    assert found[4].eq(0).all() and float(found[counts].mean()) == pytest.approx(0, abs=1e-9)
    assert float(found[counts].std(correction=0)) == pytest.approx(1)


def test_it_learns_what_a_picture_is_worth():
    at_work = TemporalCritic(GroupMean(), lr=1e-2, clip=0.0, renew="none").begin(None)
    rollout = drawn()
    scores = replace(BY_PROMPT, total=rollout.decisions[0].before[:, 0].mean((1, 2, 3)).double() * 20)
    errors = []
    for _ in range(12):
        at_work(scores, rollout)
        errors.append(at_work.metrics()["value_error"])
    assert errors[-1] < 0.2 * errors[0]


def test_one_update_for_every_step_and_minibatch():
    at_work = TemporalCritic(GroupMean(), minibatches=2).begin(None)
    at_work(BY_PROMPT, drawn())
    assert next(iter(at_work._adam.state.values()))["step"] == 3 * 2


def test_units_begin_anew_when_it_is_time():
    at_work = TemporalCritic(GroupMean(), renew_every=2).begin(None)
    told = []
    for step in range(4):
        at_work(scores_of([0.0, 1.0, 2.0, 3.0] * 2), drawn(step))
        told.append(at_work.metrics()["reset"])
    assert told[0] == told[2] == 0 and told[1] > 0 and told[3] > 0


def test_the_clipped_value_loss_by_hand():
    value = torch.tensor([0.5, -0.5, 0.1], requires_grad=True)
    old, target = torch.zeros(3), torch.ones(3)
    loss = clipped_value_loss(value, old, target, 0.2)
    assert loss.item() == pytest.approx((0.8**2 + 1.5**2 + 0.9**2) / 6)  # cut at 0.2; the worse one; inside
    loss.backward()
    assert value.grad[0] == 0 and value.grad[1] != 0 and value.grad[2] != 0
    assert clipped_value_loss(value, old, target, 0.0).item() == pytest.approx((0.25 + 2.25 + 0.81) / 6)


def test_dormant_units_by_hand():
    """Rectified means 2 and 0, of which the layer's is 1."""
    units = torch.tensor([[1.0, -1.0], [3.0, -2.0]])
    assert dormant(units, 0.0).tolist() == [False, True]
    assert dormant(units, 2.0).tolist() == [True, True]


@pytest.mark.parametrize("which", ["active", "dormant"])
def test_chosen_units_begin_anew_and_others_stay(which):
    net = PictureValue(5, seed=0)
    adam = torch.optim.AdamW(net.parameters())
    x = torch.randn(1, 5, generator=torch.Generator().manual_seed(0)).expand(4, 5)  # of one picture, about half are
    (net(x) - 1).square().mean().backward()
    adam.step()
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    chosen = [dormant(units, 0.0) if which == "dormant" else ~dormant(units, 0.0) for units in net.units(x)[:-1]]
    count = reset(net, adam, x, which, 0.0, (0, 1))
    assert count == sum(int(mask.sum()) for mask in chosen) and 0 < count < 1024 + 128 + 64 + 16
    for number, mask in enumerate(chosen):
        into, out = net.layers[number], net.layers[number + 1]
        assert (into.bias[mask] == 0).all() and torch.equal(into.bias[~mask], before[f"layers.{number}.bias"][~mask])
        assert (adam.state[into.weight]["exp_avg"][mask] == 0).all()
        assert (adam.state[out.weight]["exp_avg_sq"][:, mask] == 0).all()
        ways = out.weight[:, mask]
        assert (ways == 0).all() if which == "dormant" else (ways != 0).any()
    first, was = net.layers[0], before["layers.0.weight"]
    assert torch.equal(first.weight[~chosen[0]], was[~chosen[0]])
    assert not torch.isclose(first.weight[chosen[0]], was[chosen[0]]).all(1).any()
    assert adam.state[first.weight]["exp_avg"][~chosen[0]].abs().sum() > 0


def test_the_clean_state_is_read_off_what_was_recorded():
    rollout = laws.drawn_steps()
    policy = laws.denoiser({}, moved=0.0)
    steps = rollout.decisions[0]
    with torch.no_grad():
        velocity = policy.score(rollout).velocity
    expected = gaussian.clean(steps.before.flatten(0, 1), velocity.flatten(0, 1), steps.time[..., 0].flatten())
    move = rollout.plan.transition.move
    torch.testing.assert_close(clean_of(move, steps).flatten(0, 1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("looks_at", ["state", "clean", "clean of a noisier tree"])
def test_it_looks_at_decoded_states(looks_at):
    policy, rollout = ToyFlow(prompts=2).load(torch.device("cpu")), drawn()
    if "tree" in looks_at:  # each of its steps has a transition of its own
        plan = WindowTree(FlowSDE(), group=8, steps=5, depth=3, growth=0.5).at(1)
        rollout = policy.sample(asked(8, prompts=1), plan, Noise(0, 0, tuple(range(8))))
    steps = rollout.decisions[0]
    looks_at = looks_at.split()[0]
    at_work = TemporalCritic(GroupMean(), features=CLIP, looks_at=looks_at, rows=5).begin(policy)
    states = steps.before
    if looks_at == "clean":
        with torch.no_grad():
            velocity = policy.score(rollout).velocity
        states = gaussian.clean(steps.before.flatten(0, 1), velocity.flatten(0, 1), steps.time[..., 0].flatten())
        states = states.unflatten(0, steps.logp.shape)
    expected = load_features(CLIP, "", torch.device("cpu"), 64)(states.flatten(0, 1).sigmoid())
    torch.testing.assert_close(at_work._seen(rollout).flatten(0, 1), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(24))
    with pytest.raises(ValueError, match="has a decoder for them"):
        TemporalCritic(GroupMean(), features=CLIP).begin(None)
