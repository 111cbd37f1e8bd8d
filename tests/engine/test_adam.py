"""Moments in eight bits: nearly the same steps, a quarter of the memory, and resumed as they were."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import torch
from runs_apart import apart_of
from toy_run import recipe
from toys import ToyRaster

from burnish.engine.adam import adamw, heard, plain, stepped, told
from burnish.engine.checkpoint import latest, read
from burnish.engine.loop import train
from burnish.engine.reporter import Reporter
from burnish.recipe.recipe import Optim

pytest.importorskip("torchao", reason="torchao is an extra, and makes every import of diffusers seconds longer")
SHAPES = ((64, 128), (7,), (64, 65))  # 256 divides the first one's numbers; the second is short, the third odd


def after(optimiser, weights: list[torch.nn.Parameter], updates: range) -> None:
    """Updates by gradients of a bowl around 1, with noise that is a function of the update's number."""
    for update in updates:
        noise = torch.Generator().manual_seed(update)
        for weight in weights:
            weight.grad = weight.detach() - 1 + 0.1 * torch.randn(weight.shape, generator=noise)
        stepped(optimiser, 1e-2)


def fresh() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(0.02 * torch.randn(shape)) for shape in SHAPES]


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


def test_they_are_kept_in_a_quarter_of_the_memory_and_saved_so():
    weights = fresh()
    optimiser = adamw(weights, Optim(moments=8))
    after(optimiser, weights, range(3))
    moment = optimiser.state[weights[0]]["exp_avg"]
    saved = told(moment)
    assert isinstance(saved, dict) and saved["codes"].dtype == torch.uint8
    assert saved["codes"].shape == weights[0].shape and len(saved["scale"]) == weights[0].numel() // 256
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    back = heard(torch.load(file, weights_only=True))
    assert torch.equal(plain(back), plain(moment))
    assert told(optimiser.state[weights[1]]["exp_avg"]).dtype == torch.float32


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


def test_without_torchao_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(ValueError, match="8 bits need torchao: pip install 'burnish\\[torchao\\]'"):
        adamw(fresh(), Optim(moments=8))
