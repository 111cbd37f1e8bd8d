"""A run that was killed, wherever, and resumed is the run that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_run import lines

from burnish.engine import checkpoint

pytestmark = pytest.mark.slow
HERE = Path(__file__).parents[1]


class Runner:
    """Runs in processes of their own, one at a time."""

    def __init__(self) -> None:
        self.program = subprocess.Popen(
            [sys.executable, str(HERE / "toy_run.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __call__(
        self, folder: Path, resume: bool = False, die: str = "", then: Callable[[int], None] | None = None
    ) -> int:
        assert self.program.stdin and self.program.stdout
        self.program.stdin.write(json.dumps({"folder": str(folder), "resume": resume, "die": die}) + "\n")
        self.program.stdin.flush()
        pid = int(self.program.stdout.readline())
        if then:
            then(pid)
        return int(self.program.stdout.readline())


@pytest.fixture(scope="module")
def run() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    assert runner.program.stdin
    runner.program.stdin.close()
    runner.program.wait(30)


@pytest.fixture(scope="module")
def whole(run: Runner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(folder) == 0
    return folder


def after(folder: Path, step: int, number: int, wait: float = 0.0) -> Callable[[int], None]:
    """Send a signal once `step` is in the metrics, and `wait` seconds have gone by."""

    def send(pid: int) -> None:
        limit = time.monotonic() + 120
        while (
            not (folder / "metrics.jsonl").exists() or f'"step": {step},' not in (folder / "metrics.jsonl").read_text()
        ):
            assert time.monotonic() < limit, "the run did not get there"
            time.sleep(0.002)
        time.sleep(wait)
        os.kill(pid, number)

    return send


def same(one: Path, other: Path) -> None:
    """Every metric but timings, every tensor, every evaluation and every sample are equal to the last bit."""
    assert lines(one) == lines(other)
    assert [row["step"] for row in lines(one)] == list(range(15))
    last = [checkpoint.read(checkpoint.latest(folder)) for folder in (one, other)]
    assert last[0].step == last[1].step == 14
    assert last[0].updates == last[1].updates == 14 * 4
    assert last[0].weights.keys() == last[1].weights.keys()
    assert any(name.startswith("copies/reference/") for name in last[0].weights)
    for name, weight in last[0].weights.items():
        assert torch.equal(weight, last[1].weights[name]), name
    for number, moments in last[0].optimiser["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, last[1].optimiser["state"][number][name]), (number, name)
    assert torch.equal(last[0].random, last[1].random)
    rewards = [found.memory["advantage.inner"]["rewards"] for found in last]
    assert rewards[0].keys() == rewards[1].keys() and all(len(past) == 30 for past in rewards[0].values())
    assert all(torch.equal(past, rewards[1][prompt]) for prompt, past in rewards[0].items())
    for sub, pattern in (("samples", "*.json"), ("evaluations", "*.json")):
        files = [sorted(p.name for p in (folder / sub).glob(pattern)) for folder in (one, other)]
        assert files[0] == files[1]
        for name in files[0]:
            assert (one / sub / name).read_text() == (other / sub / name).read_text(), name
    for name in (p.name for p in (one / "evaluations").glob("*.npz")):
        with np.load(one / "evaluations" / name) as a, np.load(other / "evaluations" / name) as b:
            assert all(np.array_equal(a[k], b[k]) for k in a.files)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, other)]
    assert summaries[0]["suites"] == summaries[1]["suites"]


def test_killed_at_arbitrary_moments(run: Runner, whole: Path, tmp_path: Path) -> None:
    folder, moment = tmp_path / "run", random.Random(time.time_ns())
    waits = [moment.uniform(0, 0.08) for _ in range(3)]
    print("waits", waits)
    assert run(folder, then=after(folder, 2, signal.SIGKILL, waits[0])) == -signal.SIGKILL  # no checkpoint yet
    assert run(folder, True, then=after(folder, 6, signal.SIGKILL, waits[1])) == -signal.SIGKILL
    assert run(folder, True, then=after(folder, 10, signal.SIGKILL, waits[2])) == -signal.SIGKILL
    assert run(folder, True) == 0
    same(folder, whole)


def test_killed_while_saving(run: Runner, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(folder, die="before the files are synced") == -signal.SIGKILL
    assert checkpoint.latest(folder) is None
    assert list((folder / "checkpoints").iterdir()), "it was killed in the middle of a save"
    assert run(folder, True, die="before the old one is removed") == -signal.SIGKILL
    assert run(folder, True) == 0
    assert not list((folder / "checkpoints").glob(".*"))
    same(folder, whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop(run: Runner, whole: Path, tmp_path: Path, number: int, code: int) -> None:
    folder = tmp_path / "run"
    assert run(folder, then=after(folder, 5, number)) == code
    stopped = checkpoint.read(checkpoint.latest(folder)).step
    assert stopped == lines(folder)[-1]["step"] >= 5, "a checkpoint of the step that was under way"
    assert json.loads((folder / "timeline.json").read_text())["step"] == stopped
    assert run(folder, True) == 0
    same(folder, whole)


def test_a_second_interrupt_does_not_wait(run: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def twice(pid: int) -> None:
        after(folder, 3, signal.SIGINT)(pid)
        time.sleep(0.004)
        os.kill(pid, signal.SIGINT)

    assert run(folder, then=twice) in (1, 130), "KeyboardInterrupt, unless the step ended between the two"
