"""Random weights in released shapes: how many there are, and that a recipe runs on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from burnish.cli.main import main
from burnish.making import released
from burnish.models.llamagen import gpt, vq
from burnish.policies.flux import Flux
from burnish.policies.sd import SD
from burnish.policies.sd3 import SD3
from burnish.policies.sdxl import SDXL
from burnish.recipe.read import changed, read


@pytest.mark.parametrize(
    ("make", "spec", "pipeline", "part", "count"),
    [
        (released.sd, SD(""), "StableDiffusionPipeline", "unet", 859_520_964),
        (released.sd3, SD3(""), "StableDiffusion3Pipeline", "transformer", 2_243_171_520),
        (released.flux, Flux(weights=""), "FluxPipeline", "transformer", 11_901_408_320),
    ],
)
def test_as_many_weights_as_released(
    make: Any, spec: Any, pipeline: str, part: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made: list[Any] = []
    monkeypatch.setattr(getattr(diffusers, pipeline), "save_pretrained", lambda self, folder: made.append(self))
    with torch.device("meta"):
        assert make(spec, tmp_path).weights == str(tmp_path)
    parts = made[0].components
    assert sum(weight.numel() for weight in parts[part].parameters()) == count
    assert 80e6 < sum(weight.numel() for weight in parts["vae"].parameters()) < 90e6


def test_a_shape_that_is_not_known():
    recipe = read("flow_grpo", ["policy={sdxl: {weights: x}}"])
    assert isinstance(recipe.policy, SDXL)
    with pytest.raises(ValueError, match="no released shape of SDXL is known"):
        released.at_random(recipe, Path("unused"))


def test_settings_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    smaller(monkeypatch)
    recipe = changed(read("ar_grpo"), ["policy.llamagen.size=B", "policy.llamagen.pixels=64"])
    made = released.at_random(recipe, tmp_path)
    assert made.policy.pixels == 64 and made.policy.recompute and made.optim == recipe.optim
    assert made.policy.footprint().width == 64
    first, again = (released.at_random(recipe, tmp_path / name).policy.load(torch.device("cpu")) for name in "ab")
    for (name, weight), (_, other) in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, other), name


@pytest.mark.parametrize(
    "asked",
    [
        ["ar_grpo", "policy.llamagen.size=B", "policy.llamagen.pixels=32", "policy.llamagen.precision=fp32"],
        ["ar_grpo_c2i", "policy.llamagen.size=B", "policy.llamagen.pixels=32", "policy.llamagen.precision=fp32"],
        ["dancegrpo", "policy.sd.pixels=64", "policy.sd.precision=fp32", "source.on_policy.plan.all_steps.steps=2"],
    ],
    ids=lambda asked: asked[0],
)
def test_a_recipe_on_random_weights(asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    smaller(monkeypatch)
    plan = "all_steps" if asked[0] == "dancegrpo" else "every_token"
    asked += ["reward=jpeg", "source.on_policy.per_step=1", f"source.on_policy.plan.{plan}.group=2"]
    out = tmp_path / "bench.json"
    with pytest.raises(SystemExit) as end:
        main(["bench", *asked, "optim.minibatches=1", "optim.micro=0", "--random", "--steps", "1", "--json", str(out)])
    assert not end.value.code
    assert json.loads(out.read_text())["benches"][0]["images"] == 2


def smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow networks in the place of released ones."""
    monkeypatch.setitem(gpt.SIZES, "B", (2, 2, 64))
    monkeypatch.setitem(vq.RELEASED_VQ, "VQ-16", vq.VQConfig(channels=32, multipliers=(1, 1, 1, 1, 1)))
    monkeypatch.setitem(released.DECODER, "block_out_channels", (32, 32, 32, 32))
    for name, value in {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }.items():
        monkeypatch.setitem(released.UNET, name, value)
