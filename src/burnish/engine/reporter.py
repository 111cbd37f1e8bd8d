"""Writes the run folder. Everything a person or a program needs to read a run is in it; other programs read it.

    recipe.yaml          the recipe as `recipe.encode` gives it
    environment.json     burnish, commit, python, torch, transformers, platform, cpu, cores, threads, accelerator,
                         device, seed, command, processes, started (UTC, ISO 8601); `resumed`: a list of {step, started,
                         command, processes};
                         `warnings`: what `burnish check` had to say
    metrics.jsonl        one JSON object a step: {"step": 7, "<stage>/<what>": number or null, ...}; null is not finite
                         or not known. Step 0 is before the first update and has only eval/<suite>_<metric>; a step that
                         was evaluated has those too. Names that end in `seconds` or `per_second` are timings, all
                         others are equal in two runs of one recipe. Stages: draw, score, measure, update, eval.
    samples/step-000010.png, .json        pictures drawn for training at that step, and what they were worth:
        {"step": 10, "columns": 8, "tile": [height, width], "gap": 2, "samples": [{"id": noise key, "prompt": id,
         "text": "...", "group": 0, "total": number or null, "valid": true, "parts": {name: number or null},
         "measures": {name: number or null}, "advantage": number (mean over decisions), "notes": {part: "..."}}]}
        Sample i is at row i // columns, column i % columns; its left edge is at gap + column (width + gap), its top at
        gap + row (height + gap), in pixels. At most MOST_TILES samples. Of videos the PNG is animated, and a frame of
        it shows one of each, reduced to thumbnails; TensorBoard, which does not show them, has the middle frames.
    evaluations/<suite>-000010.png, .json, .npz   one pass of a suite (000000: before training), same prompts and noise
                         each time: {"suite", "step", "columns", "tile", "gap", "metrics": {name: number or null},
                         "prompts": [{"id", "text"}], "values": {name: [number or null]}}. The grid shows the first
                         MOST_TILES samples; prompts and values are of all. The npz holds the values exactly, float64.
    timeline.json        where the time of the last step went: {"step": n, "laps": [{"name", "start", "end"}, ...]}, in
                         seconds since its beginning, of the leading process. Some lie within others (decode in draw),
                         or beside them (scoring, with recipe.overlap)
    events.out.tfevents.*                 the same for TensorBoard
    checkpoints/         see checkpoint.py
    summary.json         written at the end: {"steps": n, "seconds": s, "suites": {suite: {metric: {"base", "tuned",
                         "difference", "ci_low", "ci_high", "verdict"}}}}; the interval is null where a metric has no
                         value for each sample. A suite called "heldout" with a metric "verified" also has its base,
                         tuned, difference, ci_low, ci_high and verdict at the top level.

On a resume, whatever is later than the checkpoint is removed first.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish.core import Evaluation
from burnish.engine.grids import COLUMNS, GAP, MOST_TILES, grid, save, shown
from burnish.engine.progress import Progress
from burnish.engine.surroundings import command, surroundings
from burnish.laps import Laps
from burnish.machine import processes
from burnish.recipe.read import as_yaml
from burnish.types import Batch, Scores

TIMINGS = ("seconds", "per_second")  # endings of metrics that differ between two runs of one recipe


class Reporter:
    """Keeps the folder of one run. All writing is flushed at once, so that a killed run leaves what it did."""

    def __init__(self, folder: Path, quiet: bool = False, warnings: Sequence[str] = ()) -> None:
        self.folder, self._warnings = folder, list(warnings)
        self.progress = Progress(quiet)
        self._board: Any = None

    def begin(self, recipe: Mapping[str, Any], seed: int, device: torch.device, step: int, steps: int) -> None:
        """Start the files, or go on with them after `step`. Whatever is later than `step` is removed."""
        from torch.utils.tensorboard import SummaryWriter

        for name in ("samples", "evaluations", "checkpoints"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        environment = self.folder / "environment.json"
        started = datetime.now(UTC).isoformat(timespec="seconds")
        if step > 0 and environment.exists():
            facts = json.loads(environment.read_text())
            again = {"step": step, "started": started, "command": command(), "processes": processes()}
            facts["resumed"] = [*facts.get("resumed", ()), again]
        else:
            facts = {**surroundings(), "device": str(device), "seed": seed, "started": started, "resumed": []}
        write_json(environment, {**facts, "warnings": self._warnings})
        write_text(self.folder / "recipe.yaml", as_yaml(recipe))
        self._cut_back(step)
        self._board = SummaryWriter(str(self.folder), purge_step=step + 1 if step else 0, flush_secs=10)
        self.progress.begin(step, steps)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics.jsonl."""
        line = json.dumps({"step": step, **{name: finite(value) for name, value in metrics.items()}})
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(line + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        self.progress.step(step, metrics)

    def samples(self, step: int, batch: Batch, measures: Mapping[str, Scores]) -> None:
        """A grid of pictures drawn for training, whole groups first come, and the scores of each."""
        rollout, scores = batch.rollout, batch.scores
        count = min(len(rollout), MOST_TILES)
        advantage = batch.advantage.detach().float().cpu()
        advantage = advantage if advantage.dim() == 1 else advantage.mean(1)
        parts = {name: listed(value) for name, value in scores.parts.items()}
        measured = {name: listed(value.total) for name, value in measures.items()}
        total, valid, group = listed(scores.total), scores.valid.tolist(), rollout.group.tolist()
        rows = [
            {
                "id": rollout.ids[i],
                "prompt": rollout.prompts[i].id,
                "text": rollout.prompts[i].text,
                "group": group[i],
                "total": total[i],
                "valid": valid[i],
                "parts": {name: values[i] for name, values in parts.items()},
                "measures": {name: values[i] for name, values in measured.items()},
                "advantage": finite(float(advantage[i])),
                "notes": {name: notes[i] for name, notes in scores.notes.items() if notes[i]},
            }
            for i in range(count)
        ]
        place = self.folder / "samples" / f"step-{step:06d}"
        tile = self._picture(place.with_suffix(".png"), "samples", rollout.media[:count], step)
        write_json(
            place.with_suffix(".json"), {"step": step, "columns": COLUMNS, "tile": tile, "gap": GAP, "samples": rows}
        )

    def evaluation(self, step: int, suite: str, found: Evaluation) -> None:
        """One pass of a suite: its metrics, the values of every sample, and the pictures."""
        place = self.folder / "evaluations" / f"{suite}-{step:06d}"
        tile = self._picture(place.with_suffix(".png"), f"eval/{suite}", found.media[:MOST_TILES], step)
        values = {name: value.detach().cpu().double().numpy() for name, value in found.values.items()}
        with place.with_suffix(".npz").open("wb") as file:
            np.savez(file, **values)  # pyright: ignore[reportArgumentType]  # its stub takes names for options
        facts = {
            "suite": suite,
            "step": step,
            "columns": COLUMNS,
            "tile": tile,
            "gap": GAP,
            "metrics": {name: finite(value) for name, value in found.metrics.items()},
            "prompts": [{"id": p.id, "text": p.text} for p in found.prompts],
            "values": {name: listed(value) for name, value in found.values.items()},
        }
        write_json(place.with_suffix(".json"), facts)  # last: an evaluation with a json is whole
        self.say(
            f"step {step}: {suite} "
            + ", ".join(f"{name} {value:.4g}" for name, value in list(found.metrics.items())[:6])
        )

    def timeline(self, step: int, laps: Laps) -> None:
        """Where the time of a step went."""
        write_json(self.folder / "timeline.json", {"step": step, "laps": [asdict(lap) for lap in laps.ended]})

    def say(self, sentence: str) -> None:
        """A line for the person who watches."""
        self.progress.say(sentence)

    def summary(self, facts: Mapping[str, Any]) -> None:
        write_json(self.folder / "summary.json", facts)

    def close(self) -> None:
        self.progress.close()
        if self._board is not None:
            self._board.close()

    def _picture(self, path: Path, name: str, media: Tensor, step: int) -> list[int]:
        frames = shown(media)
        sheets = [grid(frame) for frame in frames]
        save(sheets, path)
        self._board.add_image(name, np.asarray(sheets[len(sheets) // 2]), step, dataformats="HWC")
        return list(frames[0].shape[-2:])

    def _cut_back(self, step: int) -> None:
        """Forget what came after `step`; with step 0 nothing was kept, and the run starts again from its beginning."""
        metrics = self.folder / "metrics.jsonl"
        if metrics.exists():
            kept = [line for line in metrics.read_text().splitlines() if 0 <= step_of(line) <= step] if step else []
            write_text(metrics, "".join(f"{line}\n" for line in kept))
        for folder in ("samples", "evaluations"):
            for file in (self.folder / folder).iterdir():
                number = re.search(r"-(\d{6,})\.\w+$", file.name)
                if number and (int(number[1]) > step or step == 0):
                    file.unlink()
        (self.folder / "summary.json").unlink(missing_ok=True)
        timeline = self.folder / "timeline.json"
        if timeline.exists() and not 0 < json.loads(timeline.read_text())["step"] <= step:
            timeline.unlink()


class Nowhere:
    """The reporter of a process that does not lead: nothing is written, and nothing said."""

    def begin(self, recipe: Mapping[str, Any], seed: int, device: torch.device, step: int, steps: int) -> None: ...

    def step(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def samples(self, step: int, batch: Batch, measures: Mapping[str, Scores]) -> None: ...

    def evaluation(self, step: int, suite: str, found: Evaluation) -> None: ...

    def timeline(self, step: int, laps: Laps) -> None: ...

    def say(self, sentence: str) -> None: ...

    def summary(self, facts: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


def step_of(line: str) -> int:
    """The step of a line of metrics.jsonl; -1 for a line that was cut off while it was written."""
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return -1


def finite(value: float) -> float | None:
    """The number, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None


def listed(values: Tensor) -> list[float | None]:
    return [finite(v) for v in values.detach().double().cpu().tolist()]


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write beside the old file and put it in its place, so that a reader never sees half of one."""
    beside = path.with_name(f".{path.name}.{time.time_ns()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
