"""A compiled network is the same network: what it draws, its gradient, its copies and its adapters.

The graph is captured and taken apart as in a run, and then called as it is: generating code for it takes minutes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusers as tiny
import torch

from burnish.core import Copy, LatentPlan
from burnish.models.lora import Lora
from burnish.transitions.flow_sde import FlowSDE

PLAN = LatentPlan(group=2, steps=2, stochastic=(0,), transition=FlowSDE(), guidance=2.0)
CPU = torch.device("cpu")


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """Networks that are compiled from here on."""
    whole, found = torch.nn.Module.compile, list[torch.nn.Module]()

    def compile(network: torch.nn.Module) -> None:
        found.append(network)
        whole(network, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    return found


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=2)], ids=["whole", "adapters"])
def test_it_is_the_same_network(tmp_path: Path, captured: list[torch.nn.Module], lora: Lora | None):
    spec = replace(tiny.sd3(tmp_path, t5=False, dual=False), lora=lora)
    plain, quick = loaded(spec), loaded(replace(spec, compile=True))
    assert captured == [quick.network.model]
    prompts = tiny.prompts(2)
    expected, drawn = (policy.sample(prompts, PLAN, tiny.noise(len(prompts))) for policy in (plain, quick))
    torch.testing.assert_close(drawn.media, expected.media, atol=1e-5, rtol=0)
    for policy in (plain, quick):
        policy.logp(drawn).sum().backward()
    assert float((quick.logp(drawn) - drawn.logp).detach().abs().max()) < 1e-6
    for (name, weight), (_, other) in zip(plain.parameters(), quick.parameters(), strict=True):
        if weight.grad is not None:
            torch.testing.assert_close(other.grad, weight.grad, atol=1e-6, rtol=1e-3, msg=name)
    with torch.no_grad():
        for policy in (plain, quick):
            policy.keep({"reference": Copy()})
            for _, weight in policy.parameters():
                weight.mul_(1.5)
        moved, reference = quick.logp(drawn), at_reference(quick, drawn)
        torch.testing.assert_close(moved, plain.logp(drawn), atol=1e-5, rtol=0)
        torch.testing.assert_close(reference, at_reference(plain, drawn), atol=1e-5, rtol=0)
        assert float((moved - reference).abs().max()) > 1e-3


def test_a_divided_network_is_not_compiled(tmp_path: Path, captured: list[torch.nn.Module]):
    policy = loaded(replace(tiny.sd3(tmp_path, t5=False, dual=False), compile=True))
    with pytest.raises(ValueError, match="compile: a network that is divided"):
        policy.network.divide(None)


def loaded(spec: Any) -> Any:
    torch.manual_seed(0)
    policy = spec.load(CPU)
    with torch.no_grad():  # adapters begin as nothing
        for _, weight in policy.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return policy


def at_reference(policy: Any, rollout: Any) -> torch.Tensor:
    with policy.using("reference"):
        return policy.logp(rollout)
