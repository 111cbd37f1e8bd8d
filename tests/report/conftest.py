"""A run folder written by hand, in the format of a run, so that what a page must show is known to the digit."""

from __future__ import annotations

import json
import math
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from burnish.worlds.scenes.grammar import heldout
from burnish.worlds.scenes.render import draw_scene, render

STEPS = 60
RECIPE = """# what the run was made from
policy:
  llamagen: {weights: scenes/text, law: sampled}
source:
  on_policy: {prompts: scenes/train, batch: 8, group: 8}
reward:
  weighted:
    clip_score: 1.0
    quality: 0.5   # perceptual
objective:
  ppo_clip: {clip: 0.2, kl: 0.02}
steps: 60
seed: 7
note: 'a "quoted" <b>string</b>'
"""


@cache
def scenes(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    prompts = heldout(count, 0)
    random = np.random.default_rng(seed)
    pictures = render([draw_scene(p.facts, random) for p in prompts])
    return [p.text for p in prompts], (pictures.permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)


def sheet(path: Path, pictures: np.ndarray, columns: int = 8, gap: int = 2) -> dict[str, object]:
    count, height, width, _ = pictures.shape
    rows = math.ceil(count / columns)
    whole = np.full((gap + rows * (height + gap), gap + columns * (width + gap), 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        whole[y : y + height, x : x + width] = picture
    Image.fromarray(whole).save(path)
    return {"columns": columns, "tile": [height, width], "gap": gap}


def curve(step: int, random: np.random.Generator) -> dict[str, float]:
    up = 1 - math.exp(-step / 25)
    noise = lambda size: float(random.normal(0, size))  # noqa: E731
    return {
        "score/total_mean": 0.3 + 0.3 * up + noise(0.02),
        "score/total_std": 0.12 - 0.04 * up,
        "score/clip_score_mean": 0.24 + 0.08 * up + noise(0.004),
        "score/clip_score_std": 0.03,
        "score/quality_mean": 0.5 - 0.05 * up + noise(0.01),
        "score/quality_std": 0.06,
        "score/invalid": 0.0,
        "update/law_gap": 2e-6 * math.exp(noise(0.3)),
        "update/kl": 0.03 * up + abs(noise(0.001)),
        "update/ratio_mean": 1 + noise(0.001),
        "update/clipped": 0.02 + abs(noise(0.01)),
        "update/grad_norm": 0.8 + abs(noise(0.2)),
        "update/agreement": 0.1 + noise(0.02),
        "draw/entropy": 3.1 - 0.9 * up + noise(0.03),
        "draw/seconds": 0.41 + abs(noise(0.02)),
        "score/seconds": 0.11 + abs(noise(0.01)),
        "update/seconds": 0.62 + abs(noise(0.03)),
        "draw/images_per_second": 150 + noise(6),
        "sentinel/brightness": 0.62 - 0.05 * up + noise(0.004),
        "sentinel/edges": 0.05 - 0.01 * up + noise(0.001),
        "sentinel/colour_entropy": 1.8 - 0.4 * up + noise(0.03),
        "sentinel/diversity": 0.22 - 0.06 * up + noise(0.005),
    }


def evaluation(folder: Path, step: int, right: np.ndarray, seed: int) -> None:
    prompts, pictures = scenes(len(right), seed)
    quality = np.linspace(0.2, 0.8, len(right)) - 0.001 * step
    stem = folder / "evaluations" / f"heldout-{step:06d}"
    record = {
        "suite": "heldout",
        "step": step,
        "metrics": {"verified": float(right.mean()), "quality": float(quality.mean()), "fid": 20.0 + step / 10},
        "prompts": [{"id": f"p{n}", "text": text} for n, text in enumerate(prompts)],
        **sheet(stem.with_suffix(".png"), pictures),
    }
    stem.with_suffix(".json").write_text(json.dumps(record))
    np.savez(stem.with_suffix(".npz"), verified=right, quality=quality)


def write_run(folder: Path, steps: int = STEPS, seed: int = 0, finished: bool = True) -> Path:
    random = np.random.default_rng(seed)
    for name in ("samples", "evaluations"):
        (folder / name).mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE.replace("seed: 7", f"seed: {seed}"))
    rows = [{"step": 0, "eval/heldout_verified": 0.5}, *({"step": s, **curve(s, random)} for s in range(1, steps + 1))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    before = (np.arange(48) % 2).astype(float)  # 24 of 48
    evaluation(folder, 0, before, 1)
    if finished:
        middle, after = before.copy(), before.copy()
        middle[:16] = 1
        after[:40] = 1  # 40 right by the rule, and of the last 8 every second
        evaluation(folder, steps // 2, middle, 2)
        evaluation(folder, steps, after, 3)
        (folder / "summary.json").write_text(json.dumps({"seconds": 83.0, "steps": steps}))
    write_samples(folder, steps, random)
    environment = {
        "burnish": "0.1.0",
        "python": "3.12.1",
        "torch": torch.__version__,
        "device": "cpu, 2 threads",
        "command": "burnish train scenes/ar_grpo steps=60",
        "warnings": ["reward.weighted.scale = 10 cannot act: advantages are divided by their deviation"],
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


def write_samples(folder: Path, step: int, random: np.random.Generator) -> None:
    prompts, pictures = scenes(32, 9)
    stem = folder / "samples" / f"step-{step:06d}"
    clip, quality = random.normal(0.3, 0.03, 32), random.normal(0.5, 0.06, 32)
    clip[5], quality[5] = 0.45, 0.2  # liked by one part and not by the other: the most disputed
    total = clip + 0.5 * quality
    total[9] = math.nan
    rows = [
        {
            "id": i,
            "prompt": f"p{i}",
            "text": prompts[i],
            "group": i // 8,
            "valid": i != 9,
            "total": None if math.isnan(total[i]) else float(total[i]),
            "parts": {"clip_score": float(clip[i]), "quality": None if i == 9 else float(quality[i])},
            "measures": {"truth": float(i % 2)},
            "advantage": 0.0 if i == 9 else float((total[i] - np.nanmean(total)) / np.nanstd(total)),
        }
        for i in range(32)
    ]
    record = {"step": step, "samples": rows, **sheet(stem.with_suffix(".png"), pictures)}
    stem.with_suffix(".json").write_text(json.dumps(record))


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture
def made(whole: Path, tmp_path: Path) -> Path:
    """A finished run of its own, for a test to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "demo"))


@pytest.fixture(name="write_run")
def writer():
    """Writes a run with other settings."""
    return write_run
