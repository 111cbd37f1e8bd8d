"""The same global batch is the same update on any number of processes, and they end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import several
import tiny_diffusers
import tiny_llamagen
from runs_apart import CLOSE, CLOSE_IN_FLOAT32, apart, apart_of
from toy_run import lines

from burnish.engine import checkpoint
from burnish.engine.ranks import Alone

pytestmark = pytest.mark.slow
HERE = Path(__file__).parents[1]
# A real network in float32, where Adam enlarges what rounding made: measured 1e-5, with whole weights and divided ones.
CLOSE_OF_A_NETWORK = 5e-5


class Several:
    """Runs of several processes, forked from a program that has everything imported."""

    def __init__(self, home: Path) -> None:
        self.home = home
        tiny_diffusers.sd3(home / "sd3", t5=False)
        raster = tiny_llamagen.spec(home / "llamagen", text=False).gpt
        self.program = subprocess.Popen(
            [sys.executable, str(HERE / "several.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TINY_SD3": str(home / "sd3"), "TINY_LLAMAGEN": raster},
        )

    def __call__(self, name: str, processes: int, folder: str = "", resume: bool = False) -> tuple[Path, list[int]]:
        place = self.begin(name, processes, folder, resume)
        return place, self.ended()

    def begin(self, name: str, processes: int, folder: str = "", resume: bool = False) -> Path:
        place = self.home / (folder or f"{name}-{processes}")
        asked = {"name": name, "folder": str(place), "processes": processes, "resume": resume}
        assert self.program.stdin
        self.program.stdin.write(json.dumps(asked) + "\n")
        self.program.stdin.flush()
        return place

    def ended(self) -> list[int]:
        """The exit statuses of the run that was begun last."""
        assert self.program.stdout
        return json.loads(self.program.stdout.readline())

    def done(self, name: str, processes: int, folder: str = "", resume: bool = False) -> Path:
        place, status = self(name, processes, folder, resume)
        assert status == [0] * processes, self.said(place)
        return place

    def said(self, place: Path) -> str:
        return "".join(path.read_text() for path in sorted(place.parent.glob(f"{place.name}-said-*.txt")))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Several]:
    runs = Several(tmp_path_factory.mktemp("several"))
    yield runs
    assert runs.program.stdin
    runs.program.stdin.close()
    runs.program.wait(30)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("raster", (2, 4)),  # three groups: two on one process and one on the other; or one process without any
        ("batch", (2,)),  # an advantage over the whole step, more updates than a process has groups
        ("history", (2,)),  # it remembers
        ("leashed", (2,)),  # a reference, and an anchor that is recomputed
        ("drop", (2, 4)),  # flat groups do not count: a process may have nothing that does
        ("refill", (2,)),
        ("flow", (2, 4)),
        ("gardo", (2,)),  # looks at the whole step and renews a copy
        ("dgpo", (2,)),  # groups stay whole in a forward pass
        ("ode", (2,)),  # no decision has a log-probability
        ("critic", (2,)),  # reads states, which are gathered
        ("diverse", (2,)),  # reads pictures
        ("tree", (2,)),  # reads branches
        ("by_step", (4,)),  # updates by steps
        ("gradient", (2,)),  # the reward is differentiated
    ],
)
def test_any_number_of_processes_is_the_same_run(run: Several, name: str, counts: tuple[int, ...]) -> None:
    alone = run.done(name, 1)
    assert any(row.get("update/grad_norm", 0) > 1e-6 for row in lines(alone)), "something is learned"
    for count in counts:
        assert apart(alone, run.done(name, count)) < (CLOSE_IN_FLOAT32 if several.in_float32(name) else CLOSE)


@pytest.mark.parametrize("name", ["grpo", "nft", "lora", "uneven", "llamagen", "recomputing", "detached"])
def test_divided_weights_make_the_same_run(run: Several, name: str) -> None:
    """Copies, moments and adapters too; `uneven`: one process makes passes that count for nothing."""
    alone = run.done(name, 1)
    assert any(row.get("update/grad_norm", 0) > 1e-6 for row in lines(alone)), "something is learned"
    if name == "uneven":  # an odd number of groups counts: one process has more passes to make
        assert any(row.get("score/flat_groups") in (0.25, 0.75) for row in lines(alone))
    assert apart(alone, run.done(f"{name}+shard", 2)) < CLOSE_OF_A_NETWORK


def test_a_run_of_divided_weights_goes_on_with_whole_ones_and_back(run: Several) -> None:
    whole = run.done("nft", 1, "undivided")
    run.done("nft:1+shard", 2, "dividing")
    run.done("nft:2", 1, "dividing", resume=True)
    place = run.done("nft+shard", 2, "dividing", resume=True)
    ends = [checkpoint.read(path) for folder in (whole, place) if (path := checkpoint.latest(folder))]
    states = [{"weights": dict(end.weights), "optimiser": dict(end.optimiser)} for end in ends]
    assert apart_of(*states, "checkpoint") < CLOSE_OF_A_NETWORK


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("flow+shard", "shard: the weights of this policy cannot be divided"),
        ("raster+shard", "shard: the weights of ToyPolicy cannot be divided"),
        ("llamagen_lora+shard", "policy.llamagen.lora: not beside shard"),
        ("gardo+shard", "shard: this objective makes passes for some samples alone"),
        ("refill+shard", "shard: flat_groups: refill draws more in one process than in another"),
    ],
)
def test_what_cannot_be_divided_is_refused(run: Several, name: str, said: str) -> None:
    place, status = run(name, 2)
    assert status == [2, 2] and said in run.said(place) and "Traceback" not in run.said(place)


def test_the_first_of_several_processes_alone_writes(run: Several) -> None:
    folder = run.done("raster", 2, "written")
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    assert [row["step"] for row in lines(folder)] == [0, 1, 2, 3]
    assert json.loads((folder / "environment.json").read_text())["processes"] == 2


def test_a_run_goes_on_with_another_number_of_processes(run: Several) -> None:
    whole = run.done("longer", 1)
    run.done("longer:5", 2, "changing")
    run.done("longer:10", 4, "changing", resume=True)
    place = run.done("longer", 1, "changing", resume=True)
    assert [row["step"] for row in lines(place)] == list(range(15))
    assert apart(whole, place) < CLOSE
    facts = json.loads((place / "environment.json").read_text())
    assert [facts["processes"], *(again["processes"] for again in facts["resumed"])] == [2, 4, 1]


@pytest.mark.parametrize(
    ("name", "said", "heard"),
    [
        (
            "fails",
            "process 1: reward: the reward failed at step 2",
            "process 0: process 1 of 2 has failed: reward: the",
        ),
        (
            "leader_fails",
            "process 0: reward: the reward failed at",
            "process 1: process 0 of 2 has failed: reward: the",
        ),
        ("peeks", "process 0: media of a rollout stayed with the process that drew it", "reads = ('media',)"),
    ],
)
def test_what_one_process_raises_ends_all_with_a_sentence(run: Several, name: str, said: str, heard: str) -> None:
    began = time.monotonic()
    place, status = run(name, 2)
    text = run.said(place)
    assert status == [2, 2], text
    assert said in text and heard in text and "Traceback" not in text
    assert time.monotonic() - began < 120


def test_a_folder_that_holds_a_run_is_refused_by_all(run: Several) -> None:
    run.done("raster", 2, "twice")
    place, status = run("raster", 2, "twice")
    assert status == [2, 2] and "process 1: process 0 of 2 has failed: " in run.said(place)
    assert "holds a run already" in run.said(place)


def wait_for(folder: Path, step: int) -> None:
    """Until a run has told of a step."""
    metrics, limit = folder / "metrics.jsonl", time.monotonic() + 240
    while not metrics.exists() or f'"step": {step},' not in metrics.read_text():
        assert time.monotonic() < limit
        time.sleep(0.01)


def second(folder: Path) -> int:
    """The number of the second process of a run."""
    return int((folder.parent / "pid-1").read_text())


def is_whole_after(folder: Path, step: int) -> bool:
    newest = checkpoint.latest(folder)
    return newest is not None and checkpoint.read(newest).step == lines(folder)[-1]["step"] >= step


def test_one_killed_process_ends_the_run_and_it_goes_on(run: Several) -> None:
    """SIGKILL of the second process, of which nobody tells the first; then a resume, against a run that was whole."""
    folder = run.begin("everything", 2, "killed")
    wait_for(folder, 6)
    os.kill(second(folder), signal.SIGKILL)
    assert run.ended() == [2, -signal.SIGKILL] and "lost the others" in run.said(folder)
    run.done("everything", 2, "killed", resume=True)
    assert apart(run.done("everything", 1, "unbroken"), folder) < CLOSE


def test_one_killed_process_of_divided_weights_is_a_sentence(run: Several) -> None:
    """The other is in the middle of a pass, in which torch waits by itself."""
    folder = run.begin("lasting+shard", 2, "killed in a pass")
    wait_for(folder, 2)
    os.kill(second(folder), signal.SIGKILL)
    assert run.ended() == [2, -signal.SIGKILL]
    assert "lost the others" in run.said(folder) and "Traceback" not in run.said(folder)


def test_accelerate_launch_starts_the_same_run(run: Several, tmp_path: Path) -> None:
    status, said = several.done(several.start("raster", tmp_path / "launched", 2, several.ACCELERATE))
    assert status == 0, said
    assert json.loads((tmp_path / "launched" / "environment.json").read_text())["processes"] == 2
    assert apart(run.done("raster", 1, "by itself"), tmp_path / "launched") < CLOSE


def test_one_is_asked_to_stop_and_all_stop_after_the_same_step(run: Several) -> None:
    folder = run.begin("everything", 2, "stopped")
    wait_for(folder, 5)
    os.kill(second(folder), signal.SIGTERM)
    assert run.ended() == [143, 143] and is_whole_after(folder, 5), run.said(folder)


def test_when_torchrun_is_killed_they_stop_with_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "orphaned"
    program = several.start("everything", folder, 2)
    wait_for(folder, 5)
    program.kill()  # nobody watches the processes any more
    _, said = several.done(program)
    assert "Traceback" not in said and is_whole_after(folder, 5), said


def test_shares_are_whole_and_in_order() -> None:
    for count in range(1, 6):
        for things in range(8):
            shares = []
            for number in range(count):
                alone = Alone()
                alone.number, alone.count = number, count
                shares.extend(alone.share(things))
            assert shares == list(range(things))


def test_a_bench_of_two_processes_is_of_the_whole_step(run: Several) -> None:
    alone, both = (json.loads(run.done("benched", processes).with_suffix(".json").read_text()) for processes in (1, 2))
    assert (alone["processes"], both["processes"]) == (1, 2) and alone["images"] == both["images"] == 12
    for stage in ("draw", "update"):
        assert both["stages"][stage]["operations"] == pytest.approx(alone["stages"][stage]["operations"], rel=0.02)
        assert alone["stages"][stage]["operations"] > 0
