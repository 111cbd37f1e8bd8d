"""A run folder as a record: everything the page is made of, read leniently, because a run may still be going.

The format is the one that engine/reporter.py writes down at its head.
A piece that is missing or half written is left out and named in `Run.trouble`; the page says so in its place.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Sheet:
    """A picture that holds a grid of equal pictures."""

    path: Path
    count: int  # pictures in it, row by row
    columns: int
    width: int  # of one picture, pixels
    height: int
    gap: int = 0  # pixels between neighbours, and around them all

    def box(self, index: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a picture."""
        row, column = divmod(index, self.columns)
        left, top = self.gap + column * (self.width + self.gap), self.gap + row * (self.height + self.gap)
        return left, top, left + self.width, top + self.height


@dataclass(frozen=True)
class Evaluated:
    """One pass of a suite."""

    suite: str
    step: int
    metrics: Mapping[str, float]
    values: Mapping[str, np.ndarray]  # of each sample
    prompts: Sequence[str]  # id of the prompt of each sample
    texts: Sequence[str]
    sheet: Sheet | None


@dataclass(frozen=True)
class Samples:
    """The samples of one training step."""

    step: int
    texts: Sequence[str]
    total: np.ndarray
    parts: Mapping[str, np.ndarray]
    measures: Mapping[str, np.ndarray]  # scored and never trained on
    advantage: np.ndarray
    sheet: Sheet | None


@dataclass(frozen=True)
class Run:
    """What a run folder holds."""

    folder: Path
    metrics: Mapping[str, tuple[Sequence[int], Sequence[float | None]]] = field(default_factory=dict)
    samples: Sequence[Samples] = ()
    evaluations: Mapping[str, Sequence[Evaluated]] = field(default_factory=dict)  # by suite, by step
    summary: Mapping[str, Any] | None = None
    recipe: str | None = None  # as written
    settings: Mapping[str, Any] = field(default_factory=dict)  # as parsed
    environment: Mapping[str, Any] | None = None
    timeline: Mapping[str, Any] | None = None
    trouble: Sequence[str] = ()  # files that could not be read, and why

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def last_step(self) -> int | None:
        return max((steps[-1] for steps, _ in self.metrics.values() if steps), default=None)


def read(folder: Path) -> Run:
    """Read a run folder. Raises ValueError if it is not there or holds nothing that a run writes."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such run folder")
    trouble: list[str] = []
    recipe = folder / "recipe.yaml"
    metrics = _metrics(folder / "metrics.jsonl", trouble)
    if not metrics and not recipe.exists():
        raise ValueError(
            f"{folder}: not a run folder; one has metrics.jsonl or recipe.yaml, written by `burnish train`"
        )
    text = recipe.read_text(encoding="utf-8") if recipe.exists() else None
    return Run(
        folder,
        metrics,
        [s for p in sorted(folder.glob("samples/step-*.json")) if (s := _samples(p, trouble))],
        _evaluations(folder, trouble),
        _json(folder / "summary.json", trouble),
        text,
        _settings(text, trouble),
        _json(folder / "environment.json", trouble),
        _json(folder / "timeline.json", trouble),
        trouble,
    )


def _json(path: Path, trouble: list[str]) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        trouble.append(f"{path.name} could not be read: {error}")
        return None


def _settings(text: str | None, trouble: list[str]) -> Mapping[str, Any]:
    if text is None:
        return {}
    import yaml

    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        trouble.append(f"recipe.yaml could not be read: {str(error).splitlines()[0]}")
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _metrics(path: Path, trouble: list[str]) -> Mapping[str, tuple[list[int], list[float | None]]]:
    rows: dict[int, dict[str, Any]] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for at, line in enumerate(lines):
        try:
            row = json.loads(line)
            # A run killed after a checkpoint repeats steps when it is resumed; the later row is the run's.
            rows[int(row["step"])] = {**rows.get(int(row["step"]), {}), **row}
        except (ValueError, KeyError, TypeError) as error:
            if at < len(lines) - 1:  # the last line may be in the middle of being written
                trouble.append(f"{path.name} line {at + 1} could not be read: {error}")
    out: dict[str, tuple[list[int], list[float | None]]] = {}
    for step in sorted(rows):
        for name, value in rows[step].items():
            if "/" in name and (value is None or isinstance(value, (int, float))):
                steps, values = out.setdefault(name, ([], []))
                steps.append(step)
                values.append(float(value) if value is not None and np.isfinite(value) else None)
    return {name: curve for name, curve in out.items() if any(v is not None for v in curve[1])}


def _samples(path: Path, trouble: list[str]) -> Samples | None:
    data = _json(path, trouble)
    if not isinstance(data, dict):
        return None
    rows = data["samples"]
    columns = {
        kind: {
            name: _column([row[kind].get(name) for row in rows])
            for name in dict.fromkeys(name for row in rows for name in row[kind])
        }
        for kind in ("parts", "measures")
    }
    return Samples(
        data["step"],
        [str(row["text"]) for row in rows],
        _column([row["total"] for row in rows]),
        columns["parts"],
        columns["measures"],
        _column([row["advantage"] for row in rows]),
        _sheet(path.with_suffix(".png"), data, len(rows), trouble),
    )


def _column(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], dtype=float)


def _evaluations(folder: Path, trouble: list[str]) -> Mapping[str, Sequence[Evaluated]]:
    found: dict[str, list[Evaluated]] = {}
    for path in sorted(folder.glob("evaluations/*.json")):
        data = _json(path, trouble)
        if not isinstance(data, dict):
            continue
        prompts, texts = ([str(p[key]) for p in data["prompts"]] for key in ("id", "text"))
        sheet = _sheet(path.with_suffix(".png"), data, len(prompts), trouble)
        values = _values(path.with_suffix(".npz"), trouble)
        metrics = {name: float("nan") if v is None else float(v) for name, v in data["metrics"].items()}
        found.setdefault(data["suite"], []).append(
            Evaluated(data["suite"], data["step"], metrics, values, prompts, texts, sheet)
        )
    return {suite: sorted(passes, key=lambda e: e.step) for suite, passes in found.items()}


def _values(path: Path, trouble: list[str]) -> Mapping[str, np.ndarray]:
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name].astype(float) for name in stored.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        trouble.append(f"{path.name} could not be read: {error}")
        return {}


def _sheet(path: Path, layout: Mapping[str, Any], most: int, trouble: list[str]) -> Sheet | None:
    if not path.exists():
        return None
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            opened.load()
            size = opened.size
    except (UnidentifiedImageError, OSError) as error:
        trouble.append(f"{path.name} could not be read: {error}")
        return None
    (height, width), columns, gap = layout["tile"], layout["columns"], layout["gap"]
    rows = (size[1] - gap) // (height + gap)
    if rows < 1 or size[0] < gap + columns * (width + gap):
        trouble.append(f"{path.name} is {size[0]} x {size[1]} pixels, smaller than the layout beside it says")
        return None
    return Sheet(path, min(most, rows * columns), columns, width, height, gap)
