"""LlamaGen on an accelerator: one law in float32 and bfloat16, and a step of GRPO at a real size on random weights."""

from __future__ import annotations

import pytest
import torch
from tiny_llamagen import noise, prompts, spec

from burnish.formulas.noise import Noise
from burnish.models.llamagen.gpt import GPT, released_gpt
from burnish.models.llamagen.vq import RELEASED_VQ, VQModel
from burnish.policies.llamagen import LlamaGen, LlamaGenPolicy
from burnish.types import Prompt, TokenPlan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none"),
]


@pytest.mark.parametrize("text", [False, True], ids=["class", "text"])
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("bf16", 0.25)])
def test_the_law_drawn_is_the_law_scored(tmp_path, text, precision, bound):
    policy = spec(tmp_path, text, precision=precision).load(torch.device("cuda"))
    p = prompts(text)
    for plan in (TokenPlan(), TokenPlan(guidance=3.0), TokenPlan(guidance=2.0, temperature=0.8, top_k=6, top_p=0.9)):
        rollout = policy.sample(p, plan, noise(len(p)))
        assert (policy.logp(rollout) - rollout.logp).abs().max() < bound
        assert rollout.media.device.type == "cuda"


@pytest.mark.parametrize("text", [False, True], ids=["class", "text"])
def test_a_draw_on_the_gpu_is_that_of_the_cpu(tmp_path, text):
    """Noise is keyed and drawn on the CPU, so in float32 the devices can only part where two tokens nearly tie."""
    made, p = spec(tmp_path, text), prompts(text)
    plan = TokenPlan(guidance=2.0, top_k=7)
    cpu, gpu = (made.load(torch.device(d)).sample(p, plan, noise(len(p))) for d in ("cpu", "cuda"))
    assert (cpu.decisions[0].ids == gpu.decisions[0].ids.cpu()).float().mean() > 0.9
    torch.testing.assert_close(cpu.logp[:, 0], gpu.logp[:, 0].cpu(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("text", [False, True], ids=["class", "text"])
def test_what_eight_bits_drew_is_near(tmp_path, text):
    policy = spec(tmp_path, text, draw_precision="int8").load(torch.device("cuda"))
    p = prompts(text)
    for rows in (p[:2], p * 4):  # fewer rows than CUDA multiplies, and more
        rollout = policy.sample(rows, TokenPlan(guidance=2.0), noise(len(rows)))
        assert 1e-4 < (policy.logp(rollout) - rollout.logp).abs().mean() < 0.2


@pytest.mark.slow
def test_a_step_of_xl_at_384_pixels():
    """775M parameters, 8 images of 576 tokens under guidance as in AR-GRPO, both branches trained."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    with device:
        gpt, vq = GPT(released_gpt("XL", text=False)).eval(), VQModel(RELEASED_VQ["VQ-16"]).eval().requires_grad_(False)
    torch.nn.init.normal_(gpt.output.weight, std=0.05)  # a new head is zero, and its law uniform whatever went wrong
    fields = LlamaGen("", "", size="XL", pixels=384, precision="bf16", recompute=True)
    policy = LlamaGenPolicy(fields, gpt, vq, None, device)
    p = [Prompt(str(c), "", {"class_id": c}) for c in (207, 360) for _ in range(4)]

    rollout = policy.sample(p, TokenPlan(guidance=2.0), Noise(0, 0, tuple(range(8))))
    assert rollout.media.shape == (8, 3, 384, 384)
    with torch.no_grad():
        before = policy.logp(rollout)
    assert (before - rollout.logp).abs().mean() < 0.05

    weights = [w for _, w in policy.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=1e-5)
    advantage = torch.tensor([1.0, -1.0] * 4, device=device).unsqueeze(1)
    (-advantage * (policy.logp(rollout) - before).exp()).mean().backward()
    assert all(w.grad is not None and bool(w.grad.isfinite().all()) for w in weights)
    optimiser.step()
    with torch.no_grad():
        change = (policy.logp(rollout) - before).sum(1) * advantage.squeeze(1)
    assert change.sum() > 0  # what was better than its group became likelier, what was worse less likely
