"""Moments in eight bits: nearly the same steps, a quarter of the memory, and resumed as they were."""

from __future__ import annotations

import io
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from runs_apart import apart_of
from toy_run import recipe
from toys import ToyRaster

from burnish.engine.adam import adamw, packed, plain, stepped, unpacked
from burnish.engine.checkpoint import latest, read
from burnish.engine.loop import train
from burnish.engine.reporter import Reporter
from burnish.recipe.recipe import Optim

needs_torchao = pytest.mark.skipif(
    not find_spec("torchao"), reason="torchao is an extra, which slows diffusers' import"
)
SHAPES = ((64, 128), (7,), (64, 65))  # 256 divides the first one's numbers; the second is short, the third odd


def after(optimiser, weights: list[torch.nn.Parameter], updates: range) -> None:
    for update in updates:
        for weight, gradient in zip(weights, gradients(weights, update), strict=True):
            weight.grad = gradient
        stepped(optimiser, 1e-2)


def gradients(weights: list[torch.nn.Parameter], update: int) -> list[torch.Tensor]:
    """Of a bowl around 1, with noise that is a function of the update's number."""
    noise = torch.Generator().manual_seed(update)
    return [weight.detach() - 1 + 0.1 * torch.randn(weight.shape, generator=noise) for weight in weights]


def fresh() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(0.02 * torch.randn(shape)) for shape in SHAPES]


@needs_torchao
def test_steps_are_nearly_those_of_32_bits():
    ends = []
    for bits in (32, 8):
        weights = fresh()
        after(adamw(weights, Optim(moments=bits)), weights, range(40))
        ends.append([weight.detach() for weight in weights])
    moved = (ends[0][0] - fresh()[0]).abs().mean()
    assert moved > 0.3
    assert 0 < (ends[0][0] - ends[1][0]).abs().mean() < 0.01 * moved
    for exact, other in zip(ends[0][1:], ends[1][1:], strict=True):  # too few numbers, and none too many
        torch.testing.assert_close(other, exact, atol=1e-6, rtol=1e-5)


@needs_torchao
def test_they_are_kept_in_a_quarter_of_the_memory_and_saved_so():
    weights = fresh()
    optimiser = adamw(weights, Optim(moments=8))
    after(optimiser, weights, range(3))
    moment = optimiser.state[weights[0]]["exp_avg"]
    saved = packed(moment)
    assert isinstance(saved, dict) and saved["codes"].dtype == torch.uint8
    assert saved["codes"].shape == weights[0].shape and len(saved["scale"]) == weights[0].numel() // 256
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    back = unpacked(torch.load(file, weights_only=True))
    assert torch.equal(plain(back), plain(moment))
    assert packed(optimiser.state[weights[1]]["exp_avg"]).dtype == torch.float32


@needs_torchao
def test_a_resumed_run_is_the_same(tmp_path: Path):
    asked = {"policy": ToyRaster(width=512), "optim": Optim(lr=0.01, moments=8), "checkpoint_every": 2}

    def ran(folder: Path, steps: int, resume: bool = False) -> Path:
        return train(recipe(**asked, steps=steps), folder, resume, Reporter(folder, quiet=True))

    whole = ran(tmp_path / "whole", 5)
    ran(tmp_path / "broken", 2)
    ends = [read(latest(folder)) for folder in (whole, ran(tmp_path / "broken", 5, True))]
    assert apart_of(*({"weights": dict(end.weights), "optimiser": dict(end.optimiser)} for end in ends), "end") == 0
    moments = ends[0].optimiser["state"]
    assert any(isinstance(known["exp_avg"], dict) for known in moments.values())
    assert not all(isinstance(known["exp_avg"], dict) for known in moments.values())


def test_in_32_bits_they_are_torchs_own():
    ours, theirs = fresh(), fresh()
    optimiser, torchs = adamw(ours, Optim(lr=1e-2)), torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.0)
    after(optimiser, ours, range(3))
    for update in range(3):
        for weight, gradient in zip(theirs, gradients(theirs, update), strict=True):
            weight.grad = gradient
        torchs.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    moment = optimiser.state[ours[0]]["exp_avg"]
    assert packed(moment) is moment and unpacked(moment) is moment and plain(moment) is moment


def test_without_torchao_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(ValueError, match="8 bits need torchao: pip install 'burnish\\[torchao\\]'"):
        adamw(fresh(), Optim(moments=8))
