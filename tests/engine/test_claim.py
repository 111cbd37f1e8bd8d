"""A folder in which a run is at work is refused to another one, and free as soon as that has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toy_run import recipe

from burnish.engine.claim import claimed
from burnish.engine.interruption import Interruption
from burnish.engine.loop import train
from burnish.engine.reporter import Reporter

HOLD = """
import sys
from pathlib import Path
from burnish.engine.claim import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_at_work_is_not_disturbed_and_a_killed_one_can_go_on(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"process {other.pid} on .* is still at work on this run; wait for it"):
            train(recipe(steps=1), tmp_path, reporter=Reporter(tmp_path, quiet=True))
        assert not (tmp_path / "recipe.yaml").exists()
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert train(recipe(steps=1), tmp_path, reporter=Reporter(tmp_path, quiet=True)) == tmp_path


def test_a_claim_ends_with_its_block_and_is_not_shared_with_a_fork(tmp_path: Path):
    with claimed(tmp_path / "new"):
        assert taken_by_another(tmp_path / "new")
        if (child := os.fork()) == 0:
            signal.pause()
    try:
        assert not taken_by_another(tmp_path / "new")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def taken_by_another(folder: Path) -> bool:
    done = subprocess.run([sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.DEVNULL, capture_output=True)
    return b"still at work" in done.stderr


def test_a_process_that_torchrun_no_longer_watches_is_asked_to_stop(monkeypatch: pytest.MonkeyPatch):
    alone = Interruption()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    watched = Interruption()
    assert watched.number is None
    monkeypatch.setattr("os.getppid", lambda: 1)
    assert (alone.number, watched.number) == (None, signal.SIGTERM)
