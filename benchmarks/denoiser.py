"""A step of GRPO on a denoiser of real size with random weights: does it fit, how long does it take, and at which
share of the device's matrix rate?

python benchmarks/denoiser.py --model sd3.5-medium       # 2.2 billion, LoRA, 512 pixels: needs about 40 GB
python benchmarks/denoiser.py --model flux.1-dev         # 12 billion, LoRA, 512 pixels: needs about 60 GB
python benchmarks/denoiser.py --model tiny               # seconds, on any processor

The networks have the released shapes; text encoders have the released widths and few layers, for prompts are encoded
once a run. A folder in the real format is written and read as a user's would be, and `burnish.train` does the steps:
the first warms up, the others are measured, and one more is counted operation by operation. `--json FILE` keeps the
result. The sizes named above are estimates, until somebody runs this on an accelerator.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import tiny_diffusers as tiny

import burnish

PROMPTS = "".join(f"{text} {text}\n" for text in tiny.TEXTS)


@dataclass(frozen=True)
class Setting:
    """What is built, and how a step of it is done."""

    recipe: str
    policy: str
    pixels: int
    rank: int  # of adapters
    prompts: int  # a step
    group: int
    steps: int  # of a draw
    guidance: float
    micro: int  # samples of one forward and backward pass


SETTINGS = {
    "tiny": Setting("flow_grpo", "sd3", 64, 4, 2, 4, 4, 4.5, 4),
    "sd3.5-medium": Setting("flow_grpo", "sd3", 512, 32, 2, 24, 10, 4.5, 8),
    "flux.1-dev": Setting("flow_grpo", "flux", 512, 64, 2, 12, 6, 1.0, 4),
}


def build(model: str, folder: Path, device: torch.device) -> None:
    """A pipeline of random weights, bfloat16, in diffusers' format."""
    import diffusers

    torch.manual_seed(0)
    tiny.LENGTH = 77
    decoder: dict[str, Any] = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
    if model == "tiny":
        decoder |= {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4}
    else:
        decoder |= {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    with torch.device(device):
        vae = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **decoder
        ).to(torch.bfloat16)
        network = transformer(model).to(torch.bfloat16)
    parts = {"vae": vae, "transformer": network, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)}
    width = network.config.joint_attention_dim
    if model == "flux.1-dev":
        parts |= {"text_encoder": tiny.clip(768), "tokenizer": tiny.clip_tokenizer()}
        parts |= {"text_encoder_2": tiny.t5_encoder(width), "tokenizer_2": tiny.t5_tokenizer()}
        pipeline = diffusers.FluxPipeline(**parts)
    else:
        pooled = network.config.pooled_projection_dim
        first, second = (768, 1280) if pooled == 2048 else (pooled // 2, pooled // 2)
        parts |= {"text_encoder": tiny.clip(first, projected=first), "tokenizer": tiny.clip_tokenizer()}
        parts |= {"text_encoder_2": tiny.clip(second, projected=second), "tokenizer_2": tiny.clip_tokenizer()}
        parts |= {"text_encoder_3": tiny.t5_encoder(width), "tokenizer_3": tiny.t5_tokenizer()}
        pipeline = diffusers.StableDiffusion3Pipeline(**parts)
    pipeline.save_pretrained(folder)


def transformer(model: str) -> Any:
    """The network in its released shape."""
    import diffusers

    if model == "flux.1-dev":
        return diffusers.FluxTransformer2DModel(guidance_embeds=True)  # the class's defaults are the released shape
    shape: dict[str, Any] = {"patch_size": 2, "in_channels": 16, "out_channels": 16, "qk_norm": "rms_norm"}
    if model == "tiny":
        shape |= {"sample_size": 8, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
        shape |= {"joint_attention_dim": 64, "caption_projection_dim": 32, "pooled_projection_dim": 32}
        return diffusers.SD3Transformer2DModel(**shape, pos_embed_max_size=8)
    shape |= {"sample_size": 128, "num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24}
    shape |= {"joint_attention_dim": 4096, "caption_projection_dim": 1536, "pooled_projection_dim": 2048}
    return diffusers.SD3Transformer2DModel(**shape, pos_embed_max_size=384, dual_attention_layers=tuple(range(13)))


def step(setting: Setting, weights: Path, place: Path, device: str, steps: int) -> list[dict[str, Any]]:
    """The metrics of training steps, made as a user makes them."""
    (weights.parent / "prompts.txt").write_text(PROMPTS)
    policy = {
        "weights": str(weights),
        "pixels": setting.pixels,
        "precision": "bf16",
        "lora": {"rank": setting.rank, "alpha": setting.rank},
        "decode_precision": "bf16",
        "recompute": False,
    }
    plan = "source.on_policy.plan.all_steps"
    settings = {
        "policy": {setting.policy: policy},
        "reward": "jpeg",
        "source.on_policy.prompts": str(weights.parent / "prompts.txt"),
        "source.on_policy.per_step": setting.prompts,
        "source.on_policy.rows": 0,
        f"{plan}.group": setting.group,
        f"{plan}.steps": setting.steps,
        f"{plan}.guidance": setting.guidance,
        "objective.step_clip.kl": 0.0,
        "optim.minibatches": 1,
        "optim.micro": setting.micro,
        "steps": steps,
        "evaluate_every": 0,
        "checkpoint_every": steps,
        "samples_every": 0,
        "device": device,
    }
    burnish.train(setting.recipe, folder=place, **settings)
    return [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()][-steps:]


def matrix_rate(device: torch.device, side: int) -> float:
    """Operations a second of products of square bfloat16 matrices: the median of ten."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(12):
        settled(device)
        start = time.perf_counter()
        a @ b
        settled(device)
        times.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(times[2:])


def settled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured(model: str, device: torch.device, repeats: int, home: Path) -> dict[str, Any]:
    setting, cuda = SETTINGS[model], device.type == "cuda"
    build(model, home / "weights", device)
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    lines = step(setting, home / "weights", home / "timed", str(device), 1 + repeats)[1:]
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if cuda else None
    with FlopCounterMode(display=False) as counter:
        step(setting, home / "weights", home / "counted", str(device), 1)
    rate = matrix_rate(device, 8192 if cuda else 1024)
    images = setting.prompts * setting.group
    seconds = {
        stage: statistics.median(line[f"{stage}/seconds"] for line in lines) for stage in ("draw", "score", "update")
    }
    return {
        "model": model,
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "images": images,
        "draw_images_per_second": images / seconds["draw"],
        "update_images_per_second": images / seconds["update"],
        "step_seconds": sum(seconds.values()),
        "peak_gib": peak,
        "operations": counter.get_total_flops(),
        "matrix_rate": rate,
        "share_of_rate": counter.get_total_flops() / sum(seconds.values()) / rate,
        "evaluations": lines[-1]["draw/evaluations"] + lines[-1]["update/evaluations"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=SETTINGS, default="sd3.5-medium")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    known = parser.parse_args()
    if known.device == "cpu" and known.model != "tiny":
        sys.exit(
            "benchmarks/denoiser.py: a model of real size needs an accelerator, and torch sees none; try --model tiny"
        )
    with tempfile.TemporaryDirectory() as home:
        found = measured(known.model, torch.device(known.device), known.repeats, Path(home))
    print(json.dumps(found, indent=1))
    if known.json:
        known.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
