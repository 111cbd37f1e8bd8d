"""The law drawn from is the law scored, whatever the plan; and each saving in computation is exact."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_llamagen import noise, prompts, spec

from burnish.core import Copy
from burnish.formulas.noise import Noise
from burnish.models.eight_bits import in_eight_bits
from burnish.models.llamagen import static
from burnish.models.lora import Lora
from burnish.policies.llamagen import LlamaGenPolicy
from burnish.types import Prompt, TokenPlan, take

CPU = torch.device("cpu")
PLANS = {
    "plain": TokenPlan(),
    "guided": TokenPlan(guidance=3.0),
    "hot": TokenPlan(guidance=2.0, temperature=1.7),
    "top-k": TokenPlan(guidance=2.0, top_k=5),
    "top-p": TokenPlan(guidance=2.0, temperature=0.8, top_p=0.7),
    "both": TokenPlan(guidance=4.0, top_k=6, top_p=0.9),
    "no prompt": TokenPlan(guidance=0.0),
}


@pytest.fixture(params=[False, True], ids=["class", "text"], scope="module")
def text(request) -> bool:
    return request.param


@pytest.fixture(scope="module")
def policy(text, tmp_path_factory) -> LlamaGenPolicy:
    return spec(tmp_path_factory.mktemp("tiny"), text).load(CPU)


def gap(policy: LlamaGenPolicy, rollout) -> float:
    return (policy.logp(rollout) - rollout.logp).abs().max().item()


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_law_drawn_is_the_law_scored(policy, text, plan):
    p = prompts(text)
    rollout = policy.sample(p, plan, noise(len(p)))
    assert gap(policy, rollout) < 1e-4
    assert rollout.media.shape == (len(p), 3, 8, 8)
    assert rollout.media.min() >= 0 and rollout.media.max() <= 1


@pytest.mark.parametrize("law", ["conditional", "guided", "tempered"])
def test_another_law_leaves_a_gap(policy, text, law):
    p = prompts(text)
    rollout = policy.sample(p, TokenPlan(guidance=3.0, top_k=6, law=law), noise(len(p)))
    assert gap(policy, rollout) > 0.03
    assert gap(policy, replace(rollout, plan=replace(rollout.plan, law="sampled"))) < 1e-4


@pytest.mark.parametrize("law", ["sampled", "conditional", "guided", "tempered"])
def test_without_guidance_and_filters_all_laws_are_one(policy, text, law):
    p = prompts(text)
    assert gap(policy, policy.sample(p, TokenPlan(law=law), noise(len(p)))) < 1e-4


def test_frequencies_follow_the_recorded_law(policy, text):
    """Chi-square of the first token over 1,000 draws of one prompt, against exp(logp) of each token seen."""
    p = prompts(text)[:1] * 1000
    rollout = policy.sample(p, TokenPlan(guidance=2.0, top_k=6), noise(len(p)))
    first, logp = rollout.decisions[0].ids[:, 0], rollout.logp[:, 0]
    seen = first.unique()
    expected = torch.stack([logp[first == t][0].exp() for t in seen]) * len(p)
    assert abs(expected.sum().item() / len(p) - 1) < 1e-3  # the kept set was seen whole
    counts = torch.stack([(first == t).sum() for t in seen])
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    assert statistic < 20.5  # 99.9 % point at 5 degrees of freedom


@pytest.mark.parametrize("guesses", [2, 40])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_guesses_change_nothing(policy, text, plan, guesses):
    p = prompts(text)
    plain, quick = (policy_with(policy, w).sample(p, plan, noise(len(p))) for w in (0, guesses))
    assert torch.equal(quick.decisions[0].ids, plain.decisions[0].ids)
    torch.testing.assert_close(quick.logp, plain.logp, atol=1e-4, rtol=0)
    torch.testing.assert_close(quick.entropy, plain.entropy, atol=1e-4, rtol=0)
    torch.testing.assert_close(quick.media, plain.media)


def test_frequencies_of_guessed_tokens_follow_the_law(policy, text):
    """Chi-square of tokens one to three of 1,000 draws, of which two are often guesses, against their joint law."""
    p = prompts(text)[:1] * 1000
    rollout = policy_with(policy, 3).sample(p, TokenPlan(temperature=8.0, top_k=2), noise(len(p)))
    joint, logp = rollout.decisions[0].ids[:, :3], rollout.logp[:, :3].sum(1)
    seen, which = joint.unique(dim=0, return_inverse=True)
    expected = torch.stack([logp[which == i][0].exp() for i in range(len(seen))]) * len(p)
    assert len(seen) == 8 and abs(expected.sum().item() / len(p) - 1) < 1e-3
    statistic = ((which.bincount() - expected) ** 2 / expected).sum().item()
    assert statistic < 24.3  # 99.9 % point at 7 degrees of freedom


def test_right_guesses_save_passes(policy, text):
    """A model that always draws token 0: after the first, four tokens a pass."""
    quick = policy_with(policy, 3)
    weight = policy.gpt.output.weight
    kept = weight.detach().clone()
    p = prompts(text)
    try:
        weight.data.zero_()
        rollout = quick.sample(p, TokenPlan(top_k=1), noise(len(p)))
    finally:
        weight.data.copy_(kept)
    assert not rollout.decisions[0].ids.any() and quick.passes == 1 + 4  # 15 tokens
    quick.sample(p, TokenPlan(guidance=2.0), noise(len(p)))
    assert 5 < quick.passes <= 16


def test_what_drew_a_guessed_token_is_recorded_in_bf16_too(policy, text):
    p = prompts(text)
    for guesses in (0, 3):
        quick = policy_with(policy, guesses, "bf16")
        rollout = quick.sample(p, TokenPlan(guidance=2.0), noise(len(p)))
        assert (quick.logp(rollout) - rollout.logp).abs().mean() < 0.05


@pytest.mark.parametrize("guesses", [0, 3])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_what_eight_bits_drew_is_recorded(policy, text, plan, guesses):
    """The recorded law is that of the rounded network, and not that of the one that is trained."""
    p = prompts(text)
    rollout = policy_with(policy, guesses, draw_precision="int8").sample(p, plan, noise(len(p)))
    spread = (policy.logp(rollout) - rollout.logp).abs().mean()
    gpt = in_eight_bits(policy.gpt, "layers")
    for rounded, layer in zip(gpt.layers, policy.gpt.layers, strict=True):
        rounded.prefix = layer.prefix  # prefixes are few and are not rounded
    rounded = LlamaGenPolicy(policy.spec, gpt, policy.vq, policy.captions, CPU)
    assert 1e-3 < spread < 0.2
    assert (rounded.logp(rollout) - rollout.logp).abs().mean() < 0.05 * spread


def test_frequencies_of_eight_bits_follow_the_recorded_law(policy, text):
    """Chi-square of the second token after the likeliest first one; a draw of one prompt, as above."""
    p = prompts(text)[:1] * 1500
    rollout = policy_with(policy, 0, draw_precision="int8").sample(p, TokenPlan(guidance=2.0, top_k=5), noise(len(p)))
    ids = rollout.decisions[0].ids
    chosen = ids[:, 0] == ids[:, 0].mode().values
    second, logp = ids[chosen, 1], rollout.logp[chosen, 1]
    seen = second.unique()
    expected = torch.stack([logp[second == t][0].exp() for t in seen]) * chosen.sum()
    assert abs(expected.sum().item() / chosen.sum().item() - 1) < 1e-3
    counts = torch.stack([(second == t).sum() for t in seen])
    assert ((counts - expected) ** 2 / expected).sum().item() < 18.5  # 99.9 % point at 4 degrees of freedom


def test_eight_bits_follow_the_weights(policy, text, tmp_path):
    """Adapters are added in, those switched off are not, and a copy that is put to work is what draws."""
    p, plan = prompts(text), TokenPlan(guidance=2.0)
    torch.manual_seed(5)
    adapted = spec(tmp_path, text, lora=Lora(rank=2, alpha=4), draw_precision="int8").load(CPU)
    adapted.keep({"reference": Copy()})
    untouched = adapted.sample(p, plan, noise(len(p)))
    with torch.no_grad():
        for _, weight in adapted.parameters():
            weight.normal_(std=0.3)
    moved = adapted.sample(p, plan, noise(len(p)))
    spread, apart = ((adapted.logp(drawn) - drawn.logp).abs().mean() for drawn in (moved, untouched))
    assert spread < 0.2 and apart > 5 * spread
    with adapted.using("reference"):
        back = adapted.sample(p, plan, noise(len(p)))
    assert torch.equal(back.decisions[0].ids, untouched.decisions[0].ids)


def policy_with(policy: LlamaGenPolicy, guesses: int, precision: str = "fp32", **fields: Any) -> LlamaGenPolicy:
    """The same networks, with so many guesses."""
    spec = replace(policy.spec, speculative=guesses, precision=precision, **fields)
    return LlamaGenPolicy(spec, policy.gpt, policy.vq, policy.captions, policy.device)


def test_a_number_of_guesses_that_is_none(policy):
    with pytest.raises(ValueError, match="speculative must be 0"):
        replace(policy.spec, speculative=-1)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"precision": "bf16"},
        {"draw_precision": "int8"},
        {"lora": Lora(rank=2, alpha=4)},
        {"lora": Lora(rank=2, alpha=4), "draw_precision": "int8"},
    ],
    ids=["fp32", "bf16", "int8", "adapters", "adapters of int8"],
)
def test_steps_of_a_graph_draw_the_same(text, tmp_path, monkeypatch, fields):
    """The graph is captured whole, as in a run, and called as it is: generating code for it takes minutes."""
    graphs = torch.compile(static._step, backend="aot_eager", dynamic=False, fullgraph=True)
    monkeypatch.setattr(static, "_compiled", lambda on_gpu: graphs)
    p, plan = prompts(text), TokenPlan(guidance=2.0)
    plain, quick = (spec(tmp_path, text, compile=compile, **fields).load(CPU) for compile in (False, True))
    for each in (plain, quick):
        torch.manual_seed(0)
        for _, weight in each.parameters():
            weight.data += 0.05 * torch.randn_like(weight)
    drawn, same = (each.sample(p, plan, noise(len(p))).decisions[0] for each in (plain, quick))
    right = (drawn.ids == same.ids).all(1)
    exact = fields.keys() <= {"lora"}  # elsewhere last bits may decide
    places = [tensor.data_ptr() for copy in quick._drawn.values() for tensor in copy.buffers()]
    assert bool(places) == (not exact)
    assert right.float().mean() > (0.99 if exact else 0.5)
    torch.testing.assert_close(same.logp[right], drawn.logp[right], atol=1e-4 if exact else 0.1, rtol=0)
    for _, weight in quick.parameters():  # what is kept from draw to draw follows the weights
        weight.data *= 2
    drawn = quick.sample(p, plan, noise(len(p)))
    spread = (quick.logp(drawn) - drawn.logp).abs().mean()
    assert spread < (1e-4 if exact else 0.2)
    assert places == [tensor.data_ptr() for copy in quick._drawn.values() for tensor in copy.buffers()]
    if "lora" in fields:
        quick.keep({"reference": Copy()})
        with quick.using("reference"):
            base = quick.sample(p, plan, noise(len(p)))
            assert (quick.logp(base) - base.logp).abs().mean() < (1e-4 if exact else 0.2)
        assert not torch.equal(base.decisions[0].ids, drawn.decisions[0].ids)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda_graphs_draw_the_same(text, tmp_path):
    p, plan = prompts(text), TokenPlan(guidance=2.0)
    plain, quick = (spec(tmp_path, text, compile=c).load(torch.device("cuda")) for c in (False, True))
    for seed in (7, 8):  # captured, and replayed
        drawn, same = (each.sample(p, plan, noise(len(p), seed)).decisions[0] for each in (plain, quick))
        assert (drawn.ids == same.ids).float().mean() > 0.9


@pytest.mark.parametrize("slots", [2, 5, 17, 257])
def test_a_graph_attends_to_all_that_a_token_may_see(slots):
    seen = [static.seen_of(slot, slots) for slot in range(1, slots)]
    assert all(slot < s <= slots for slot, s in enumerate(seen, 1)) and len(set(seen)) <= static.LENGTHS


def test_guesses_are_not_compiled(policy):
    with pytest.raises(ValueError, match="speculative and compile"):
        replace(policy.spec, speculative=2, compile=True)


def test_gradient_reaches_both_branches_of_guidance(policy, text):
    p = prompts(text)
    plan = TokenPlan(guidance=3.0)
    rollout = policy.sample(p, plan, noise(len(p)))

    def gradient(**change):
        r = replace(rollout, plan=replace(plan, **change))
        return torch.autograd.grad(policy.logp(r)[:, 5].sum(), policy.gpt.layers[0].attention.wqkv.weight)[0]

    whole, half = gradient(), gradient(detach_null=True)
    assert (whole - half).abs().max() > 1e-3
    # finite difference of the whole, along a direction
    weight = policy.gpt.layers[0].attention.wqkv.weight
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(direction, alpha=sign * 1e-3)
            values.append(policy.logp(rollout)[:, 5].sum().item())
            weight.sub_(direction, alpha=sign * 1e-3)
    slope = (values[0] - values[1]) / 2e-3
    assert slope == pytest.approx((whole * direction).sum().item(), rel=0.03, abs=0.02)


def test_how_a_draw_is_cut_does_not_matter(policy, text):
    p, plan = prompts(text), TokenPlan(guidance=2.0, top_k=7)
    whole = policy.sample(p, plan, noise(len(p)))
    for start in range(0, len(p), 3):
        part = policy.sample(p[start : start + 3], plan, Noise(7, 0, tuple(range(len(p)))[start : start + 3]))
        assert torch.equal(part.decisions[0].ids, whole.decisions[0].ids[start : start + 3])
        torch.testing.assert_close(part.logp, whole.logp[start : start + 3], atol=1e-5, rtol=0)


def test_samples_are_scored_alike_in_any_order(policy, text):
    p = prompts(text)
    rollout = policy.sample(p, TokenPlan(guidance=2.0), noise(len(p)))
    order = torch.randperm(len(p), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(policy.logp(take(rollout, order)), policy.logp(rollout)[order], atol=1e-5, rtol=0)


def test_chunks_and_recomputation_change_nothing(policy, text, tmp_path):
    p = prompts(text)
    rollout = policy.sample(p, TokenPlan(guidance=2.0, top_p=0.9), noise(len(p)))
    lean = spec(tmp_path, text, logp_tokens=7, recompute=True).load(CPU)
    results = []
    for each in (policy, lean):
        logp = each.logp(rollout)
        weights = [w for _, w in each.parameters()]
        results.append([logp, *torch.autograd.grad(logp.square().sum(), weights, allow_unused=True)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_texts_are_encoded_once(tmp_path):
    policy = spec(tmp_path, True).load(CPU)
    p = prompts(True, each=4)
    for step in range(3):
        policy.logp(policy.sample(p, TokenPlan(guidance=2.0), noise(len(p), step)))
    assert policy.captions.encoded == 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_texts_read_ahead_are_the_same_to_the_bit(tmp_path, precision):
    """In another order and another company than when they are drawn."""
    one, other = (spec(tmp_path, True, precision=precision).load(CPU) for _ in range(2))
    p = prompts(True, each=4)
    one.read_ahead(p[::-1])
    assert one.captions.encoded == 4
    drawn = [policy.sample(p, TokenPlan(guidance=2.0), noise(len(p))) for policy in (one, other)]
    assert one.captions.encoded == 4
    assert torch.equal(drawn[0].decisions[0].logp, drawn[1].decisions[0].logp)


def test_bfloat16_draws_with_a_visible_but_small_gap(tmp_path, text):
    policy = spec(tmp_path, text, precision="bf16").load(CPU)
    p = prompts(text)
    found = gap(policy, policy.sample(p, TokenPlan(guidance=2.0), noise(len(p))))
    assert 0 < found < 0.25
    assert all(w.dtype == torch.float32 for _, w in policy.parameters())


def test_adapters_off_are_the_reference(tmp_path, text):
    policy = spec(tmp_path, text, lora=Lora(rank=2)).load(CPU)
    p = prompts(text)
    rollout = policy.sample(p, TokenPlan(guidance=2.0), noise(len(p)))
    policy.keep({"reference": Copy()})
    before = policy.logp(rollout).detach()
    assert {name.split(".")[-3] for name, _ in policy.parameters()} == {"lora_A", "lora_B"} or all(
        "lora_" in name for name, _ in policy.parameters()
    )
    with torch.no_grad():
        for _, weight in policy.parameters():
            weight.add_(0.3)
    assert (policy.logp(rollout) - before).abs().max() > 0.1
    with policy.using("reference"):
        torch.testing.assert_close(policy.logp(rollout), before)
    policy.export(tmp_path / "out")
    again = replace(policy.spec, gpt=str(tmp_path / "out"), lora=None).load(CPU)
    torch.testing.assert_close(again.logp(rollout), policy.logp(rollout), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_encoder": "other"}, "text_encoder"),
        ({"pixels": 7}, "not a multiple"),
        ({"gpt": "/nowhere.pt"}, "no such file"),
        ({"size": "Z"}, "no LlamaGen of size 'Z'"),
    ],
)
def test_settings_that_do_not_fit_get_a_sentence(tmp_path, text, change, message):
    made = spec(tmp_path, text)
    if change == {"text_encoder": "other"}:
        change = {"text_encoder": "" if text else made.gpt}
    with pytest.raises(ValueError, match=message):
        replace(made, **change).load(CPU)


@pytest.mark.parametrize("facts", [{}, {"class_id": 5}, {"class_id": "dog"}])
def test_a_prompt_without_a_class_is_named(tmp_path, facts):
    policy = spec(tmp_path, False).load(CPU)
    with pytest.raises(ValueError, match=r"'x'.*class_id"):
        policy.sample([Prompt("x", "a dog", facts)], TokenPlan(), noise(1))


@pytest.mark.parametrize("lora", [None, Lora(rank=3)])
def test_the_footprint_is_what_is_loaded(tmp_path, text, lora):
    made = spec(tmp_path, text, lora=lora)
    found, policy = made.footprint(), made.load(CPU)
    assert found.trainable == sum(w.numel() for _, w in policy.parameters())
    assert found.parameters == sum(w.numel() for n, w in policy.gpt.named_parameters() if "lora_" not in n)
    assert (found.tokens, found.vocabulary) == (policy.side**2, 12)


@pytest.mark.parametrize(("has", "like"), [(True, "bf16"), (False, "fp32")])
def test_the_fastest_decoder_is_what_the_processor_has(tmp_path, monkeypatch, has, like):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has, "avx512_f": True})
    pictures = {
        precision: spec(tmp_path, False, decode_precision=precision)
        .load(CPU)
        .sample([Prompt("a", "a", {"class_id": 1})] * 2, TokenPlan(), Noise(0, 0, (0, 1)))
        .media
        for precision in ("fp32", "bf16", "fastest")
    }
    assert not torch.equal(pictures["fp32"], pictures["bf16"])
    assert torch.equal(pictures["fastest"], pictures[like])
