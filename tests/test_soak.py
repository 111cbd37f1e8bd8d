"""benchmarks/soak.py: what grows for good is told from what passes, and a run that stands still is ended."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import soak

PYTHON = sys.executable
STAND_IN = """#!{python} -SE
import pathlib, sys, time
folder = pathlib.Path(sys.argv[-1])
folder.mkdir()
with (folder / "metrics.jsonl").open("w", buffering=1) as rows:
    for step in range(1 + {steps}):
        print(step, file=rows)
print("so far, so good")
{then}
"""


def looks(descriptors: list[int], memory: list[int] | None = None) -> list[dict[str, int]]:
    """Twelve looks; the first three are of the first quarter."""
    memory = memory or [1000] * 12
    return [{"step": 10 * (i + 1), "memory": memory[i], "descriptors": descriptors[i], "threads": 4} for i in range(12)]


def test_a_count_that_rises_for_good_does_not_stay_and_one_that_passes_does() -> None:
    assert soak.verdict(looks([40] * 12), 1.0)["stays"]
    for_good = soak.verdict(looks([40] * 7 + [41] * 5), 1.0)
    assert not for_good["stays"] and for_good["risen"] == ["descriptors"]
    assert soak.verdict(looks([40, 41] * 5 + [52, 40]), 1.0)["stays"]
    assert soak.verdict(looks([10, 20, 30] + [40] * 9), 1.0)["stays"]  # pools fill


def test_growth_of_memory_is_that_between_the_thirds() -> None:
    # Looks at 40 to 120; those of 40, 50, 60 and of 100, 110, 120 lie 60 steps apart.
    grows = soak.verdict(looks([40] * 12, [100 + 20 * i for i in range(12)]), 1.0)
    assert grows["growth_kb_a_step"] == 2.0 and not grows["stays"]
    passes = soak.verdict(looks([40] * 12, [1000] * 11 + [9000]), 1.0)
    assert passes["growth_kb_a_step"] == 0.0 and passes["stays"]


def test_what_comes_and_goes_does_not_count() -> None:
    """Every other look met a checkpoint on its way; whichever third has more of them, the floor tells."""
    waves = [1000, 9000] * 6
    assert soak.verdict(looks([40] * 12, waves), 1.0)["growth_kb_a_step"] == 0.0
    rising = soak.verdict(looks([40] * 12, [memory + 20 * i for i, memory in enumerate(waves)]), 1.0)
    assert not rising["stays"]


@pytest.mark.parametrize("seen", [0, 1, 2])
def test_too_few_looks_are_a_sentence(seen: int) -> None:
    with pytest.raises(SystemExit, match="looks after the first quarter, where 3 are needed"):
        soak.verdict(looks([40] * 12)[:seen], 1.0)


def test_changes_may_follow_options(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(soak, "soaked", lambda *known: asked.append(known) or looks([40] * 12))
    monkeypatch.setattr(sys, "argv", ["soak.py", "scenes/ar_grpo", "--steps", "2000", "source.on_policy.per_step=1"])
    with pytest.raises(SystemExit) as end:
        soak.main()
    (name, changes, steps, _, _) = asked[0]
    assert (end.value.code, name, changes[-1], steps) == (False, "scenes/ar_grpo", "source.on_policy.per_step=1", 2000)


def stand_in(place: Path, monkeypatch: pytest.MonkeyPatch, steps: int, then: str) -> None:
    """A program in place of Python with burnish."""
    program = place / "program"
    program.write_text(STAND_IN.format(python=PYTHON, steps=steps, then=then))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_a_run_is_looked_at_and_its_failure_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, 5, "time.sleep(0.5)")
    assert [one["step"] for one in soak.soaked("any", [], 5, 5, 60)] == [5]
    stand_in(tmp_path, monkeypatch, 5, "sys.exit(3)")
    with pytest.raises(RuntimeError, match="the run failed: so far, so good"):
        soak.soaked("any", [], 5, 5, 60)


def test_a_run_that_stands_still_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children = []
    popen = soak.subprocess.Popen
    monkeypatch.setattr(soak.subprocess, "Popen", lambda *a, **k: children.append(popen(*a, **k)) or children[0])
    stand_in(tmp_path, monkeypatch, 5, "sys.stdout.flush(); time.sleep(600)")
    with pytest.raises(RuntimeError, match="nothing came after step 5 in 1 s: so far, so good"):
        soak.soaked("any", [], 9, 50, 1)
    assert children[0].returncode == -9
