"""benchmarks/faults.py: what is right and wrong with the end of a program, told of small ones in place of burnish."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import faults

from burnish.plans.all_steps import AllSteps
from burnish.plans.every_token import EveryToken
from burnish.recipe.read import read

PYTHON = sys.executable
# Counts to twenty in the folder it is given, and goes on from where it was.
STAND_IN = """#!{python} -SE
import pathlib, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--folder") + 1])
folder.mkdir(exist_ok=True)
rough = folder.name != "calm"
{first}
(folder / "recipe.yaml").touch()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
count = folder / "count"
done = int(count.read_text() or 0) if count.exists() else 0
for step in range(done, 20):
    time.sleep(0.02)
    count.with_suffix(".new").write_text(str(step + 1))
    count.with_suffix(".new").rename(count)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def put(first: str = "", kinds: tuple[str, ...] = ("kill", "stop")) -> None:
        program = tmp_path / "program"
        program.write_text(STAND_IN.format(python=PYTHON, first=first))
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        monkeypatch.setattr(faults, "FAULTS", {kind: faults.FAULTS[kind] for kind in kinds})
        monkeypatch.setattr(faults, "small", lambda name: [])
        monkeypatch.setattr(faults, "ended", lambda folder: (folder / "count").read_text())

    return put


def test_a_program_that_goes_on_where_it_was_comes_to_the_same_end(stand_in) -> None:
    stand_in()
    told = faults.trial("any", 20, 1, 4, 0, 60)
    assert sum(told["faults"].values()) == 4 and told["equal"] == told["runs"] >= 1 and not told["failures"]


def test_a_program_that_cannot_resume_raises_with_its_words(stand_in) -> None:
    stand_in("if '--resume' in sys.argv: sys.exit('cannot resume')", ("kill",))
    with pytest.raises(RuntimeError, match=r"an undisturbed program ended with status 1, .* it said: cannot resume"):
        faults.trial("any", 20, 1, 50, 0, 60)


def test_a_program_that_hangs_is_ended_with_all_it_started_and_counted(stand_in, monkeypatch) -> None:
    stand_in("""
if rough:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = [sys.executable, "-SEc", "import time; time.sleep(600)", str(folder)]
    subprocess.Popen(child, start_new_session=True).wait()
""")
    seen: list[Path] = []
    started = faults.started
    monkeypatch.setattr(faults, "FAULTS", {"stop": signal.SIGTERM})
    monkeypatch.setattr(faults, "started", lambda *a: seen.append(a[2]) or started(*a))
    told = faults.trial("any", 20, 1, 1, 0, 3)
    assert told["runs"] == 1 and told["equal"] == 0 and told["ends"]["no end"] == 1
    assert "came to no end within" in told["failures"][0]
    assert not any(map(faults.at_work, seen))


def test_statuses_are_those_of_the_fault() -> None:
    right = {"": {0}, "stall": {0}, "kill": {0, -9}, "stop": {0, 143, -15}}
    for fault, expected in right.items():
        assert {status for status in range(-20, 256) if not faults.wrong(status, "", fault, 1)} == expected
    assert not faults.wrong(1, "", "kill", 2) and not faults.wrong(1, "", "stop", 2)  # torchrun, of one of its own
    assert faults.wrong(1, "", "stall", 2) and faults.wrong(1, "", "", 2) and faults.wrong(2, "", "stop", 2)


def test_only_a_process_of_the_folder_is_struck(tmp_path: Path) -> None:
    sleeper = [sys.executable, "-SEc", "import time; print(flush=True); time.sleep(600)"]
    with (
        subprocess.Popen([*sleeper, str(tmp_path)], stdout=subprocess.PIPE) as mine,
        subprocess.Popen([*sleeper, str(tmp_path / "other")], stdout=subprocess.PIPE) as other,
    ):
        try:
            for one in (mine, other):  # /proc does not know the words of a program that is just being started
                assert one.stdout is not None and one.stdout.readline()
            assert faults.at_work(tmp_path) == [mine.pid]
            faults.struck(tmp_path, "kill", random.Random(0))
            assert mine.wait(10) == -9 and other.poll() is None
            faults.struck(tmp_path, "kill", random.Random(0))  # nothing is left, and nothing happens
        finally:
            mine.kill()
            other.kill()


def test_recipes_of_both_families_are_made_small() -> None:
    token, flow = (read(name, faults.small(name)).source.plan for name in ("scenes/ar_grpo", "scenes/flow_grpo"))
    assert isinstance(token, EveryToken) and isinstance(flow, AllSteps)
    assert token.group == flow.group == 4


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"rows": [{"loss": 1.0}, {"loss": 2.5}]}, "end.rows[1].loss: 2.5 and 2.0"),
        ({"rows": [{"loss": 1.0}]}, "end.rows: 1 and 2 things"),
        ({"rows": [{"loss": 1.0}, {"kl": 2.0}]}, "end.rows[1]: kl, loss in one of them"),
        ({"weights": torch.tensor([1.0, 1.0, 2.0])}, "end.weights: 1 of 3 numbers"),
        ({"weights": torch.ones(2)}, "end.weights: shapes"),
        ({"weights": None}, "end.weights: None and tensor([1., 1., 1.])"),
    ],
)
def test_where_two_ends_differ_is_said(changed: dict[str, object], where: str) -> None:
    calm = {"rows": [{"loss": 1.0}, {"loss": 2.0}], "weights": torch.ones(3)}
    assert faults.difference(calm, {**calm, "weights": torch.ones(3)}, "end") == ""
    assert faults.difference({**calm, **changed}, calm, "end") == where
