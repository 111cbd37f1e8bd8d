"""A whole run on a toy: it learns, it writes its folder, and what goes wrong is said."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs_apart import apart
from toy_run import everything, lines, recipe
from toys import Brightness, BrightnessScorer, ToyPolicy, ToyRaster, ToySuite, toy_prompts

from burnish.advantages.kl_in_reward import KlInReward
from burnish.advantages.leave_one_out import LeaveOneOut
from burnish.core import Evaluation
from burnish.engine import checkpoint
from burnish.engine.evaluate import compare, passed
from burnish.engine.interruption import Stopped
from burnish.engine.loop import Run, train
from burnish.engine.reporter import Reporter
from burnish.objectives.ppo_clip import PPOClip
from burnish.plans.every_token import EveryToken
from burnish.recipe.recipe import Average, Optim, Recipe
from burnish.sources.on_policy import OnPolicy
from burnish.types import Prompt, Scores, TokenPlan


def run(whole: Recipe, folder: Path, resume: bool = False) -> list[dict]:
    train(whole, folder, resume, Reporter(folder, quiet=True))
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("runs") / "toy"
    measures = {"again": Brightness()}
    return folder, run(recipe(measures=measures, evaluate_every=15, checkpoint_every=10), folder)


def test_the_reward_rises(finished: tuple[Path, list[dict]]) -> None:
    folder, lines = finished
    reward = [line["score/total_mean"] for line in lines[1:]]
    assert np.mean(reward[-5:]) > np.mean(reward[:5]) + 0.3
    facts = json.loads((folder / "summary.json").read_text())
    assert facts["difference"] > 0.3 and 0 < facts["ci_low"] <= facts["difference"] <= facts["ci_high"]
    assert facts["verdict"] == "better" and facts["steps"] == 40
    assert facts["tuned"] - facts["base"] == pytest.approx(facts["difference"])
    assert facts["seconds"] > 0


def test_an_average_of_the_weights_is_what_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else: the run itself is the one without an average."""
    seen = []

    def looked(suite: ToySuite, policy: ToyPolicy, *_: object) -> Evaluation:
        seen.append({name: weight.detach().clone() for name, weight in policy.parameters()})
        return Evaluation({}, {}, (), torch.zeros(0, 3, 4, 4))

    monkeypatch.setattr(ToySuite, "run", looked)
    asked = {"steps": 4, "evaluate_every": 1, "checkpoint_every": 1, "keep_checkpoints": 4}
    averages = {"with": Average(0.3), "without": None}
    for name, ema in averages.items():
        run(recipe(**asked, optim=Optim(lr=0.03, minibatches=2, ema=ema)), tmp_path / name)
    kept, live = (
        [checkpoint.read(tmp_path / run / "checkpoints" / f"step-{step:06d}").weights for step in range(1, 5)]
        for run in averages
    )
    (first, *average), (_, *plain) = seen[:5], seen[5:]
    for name, mean in first.items():
        for step, d in enumerate((2 / 11, 3 / 12, 0.3, 0.3)):  # by hand: (1 + i) / (10 + i), until that is above 0.3
            assert torch.equal(kept[step][name], live[step][name])
            assert torch.equal(plain[step][name], live[step][name])
            mean = d * mean + (1 - d) * live[step][name]
            torch.testing.assert_close(average[step][name], mean)
            assert not torch.equal(average[step][name], live[step][name])


def test_what_is_finished_is_kept_where_a_reward_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two checkpoints. The step that failed is made again, with the random numbers that it began with."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    run(everything(), unbroken)
    score = BrightnessScorer.__call__

    def fails(self: BrightnessScorer, images: torch.Tensor, prompts: Sequence[Prompt]) -> Scores:
        found = score(self, images, prompts)
        if lines(broken) and lines(broken)[-1]["step"] == 6:
            raise ConnectionError("the service is gone")
        return found

    with monkeypatch.context() as there, pytest.raises(Exception, match="the service is gone"):
        there.setattr(BrightnessScorer, "__call__", fails)
        run(everything(), broken)
    newest = checkpoint.latest(broken)
    assert newest and checkpoint.read(newest).step == 6
    run(everything(), broken, resume=True)
    assert apart(unbroken, broken) == 0


@pytest.mark.parametrize("step", [5, 14])  # due at 5 and, as the last, at 14; checkpoints are due at 4, 8, 12 and 14
@pytest.mark.parametrize("how", [ConnectionError, SystemExit])  # a failure, which is met; and an end, which is not
def test_what_is_finished_is_kept_where_an_evaluation_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, how: type[BaseException]
) -> None:
    """The step is learned, and saved: a resumed run evaluates it, with the same result, and does not make it again."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    run(everything(), unbroken)
    ask = ToySuite.run

    def fails(self: ToySuite, policy, plan, reward, seed):
        torch.rand(3)  # as a suite may: nobody else is to notice
        if lines(broken) and lines(broken)[-1]["step"] == step - 1:
            raise how("the judge is gone")
        return ask(self, policy, plan, reward, seed)

    with monkeypatch.context() as there, pytest.raises(how, match="the judge is gone"):
        there.setattr(ToySuite, "run", fails)
        run(everything(), broken)
    newest = checkpoint.latest(broken)
    saved = step if how is ConnectionError or step == 14 else 4
    assert newest and checkpoint.read(newest).step == saved
    draws, made = BrightnessScorer.__call__, list[int]()
    with monkeypatch.context() as there:
        there.setattr(BrightnessScorer, "__call__", lambda *asked: made.append(1) or draws(*asked))
        run(everything(), broken, resume=True)
    assert apart(unbroken, broken) == 0
    assert len(made) == 2 * (14 - saved)  # reward and measure of what was left


def test_what_is_finished_is_kept_where_a_measure_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the measure would have said of that step is gone; all else is as if it had not failed."""
    whole = replace(everything(), suites={})
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    run(whole, unbroken)
    spoilt = replace(whole, measures={"again": Brightness(spoil="raise")})
    with pytest.raises(ValueError, match=r"measures\.again: the reward failed at step 1"):
        run(spoilt, broken)
    newest = checkpoint.latest(broken)
    assert newest and checkpoint.read(newest).step == 1
    (broken / "recipe.yaml").write_text((unbroken / "recipe.yaml").read_text())
    run(whole, broken, resume=True)
    expected = lines(unbroken)
    assert expected[1].pop("measure/again_mean") and lines(broken) == expected


def test_who_asks_for_an_end_does_not_wait_for_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked in step 5, which is to be evaluated: the run stops, and is evaluated when it is resumed."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    run(everything(), unbroken)
    monkeypatch.setattr(Run, "_asked", lambda self, place: 15 if self._done == 5 else None)
    with pytest.raises(Stopped, match="stopped after step 5 of 14"):
        run(everything(), broken)
    assert lines(broken)[-1]["step"] == 4 and not (broken / "evaluations" / "heldout-000005.json").exists()
    monkeypatch.undo()
    run(everything(), broken, resume=True)
    assert apart(unbroken, broken) == 0


def test_a_suite_that_asks_other_prompts_than_before_is_compared_with_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(recipe(steps=2, suites={"heldout": ToySuite(), "same": ToySuite()}), folder)
    run(recipe(steps=3, suites={"heldout": ToySuite(each=8), "same": ToySuite()}), folder, resume=True)
    facts = json.loads((folder / "summary.json").read_text())
    assert set(facts["suites"]) == {"same"} and "verdict" not in facts


def test_prompts_that_were_edited_are_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while it is at work: what is finished by then is saved."""
    file, folder = tmp_path / "asked.jsonl", tmp_path / "run"
    rows = [{"id": p.id, "text": p.text, "facts": p.facts} for p in toy_prompts(3, 1)]

    def write(edited: str = "") -> None:
        file.write_text("".join(json.dumps({**row, "text": row["text"] + edited}) + "\n" for row in rows))
        os.utime(file, ns=(1, len(edited)))  # two writes may be nearer than the clock of the disk

    def asks(steps: int) -> Recipe:
        return recipe(steps=steps, source=OnPolicy(str(file), EveryToken(group=8), per_step=3), suites={})

    write()
    run(asks(2), folder)
    write("!")
    with pytest.raises(ValueError, match="its prompts were edited since step-000002"):
        run(asks(3), folder, resume=True)
    write()
    learn = Run.learn

    def edits(self: Run, place, step, laps):
        if step == 4:
            write("?")
        return learn(self, place, step, laps)

    with monkeypatch.context() as there, pytest.raises(ValueError, match="step 4: the prompts of this run were edited"):
        there.setattr(Run, "learn", edits)
        run(asks(5), folder, resume=True)
    newest = checkpoint.latest(folder)
    assert newest and checkpoint.read(newest).step == 3
    write()
    assert run(asks(5), folder, resume=True)[-1]["step"] == 5


def test_what_only_rounds_otherwise_may_change_on_the_way(tmp_path: Path) -> None:
    """Parts of an update and of a draw, which is what a run that found too little memory is told to make smaller."""
    whole = recipe(steps=2, optim=Optim(lr=0.03, micro=24))
    smaller = replace(whole, steps=3, optim=Optim(lr=0.03, micro=6), source=replace(whole.source, rows=8))
    run(whole, tmp_path / "run")
    assert run(smaller, tmp_path / "run", resume=True)[-1]["step"] == 3
    with pytest.raises(ValueError, match=r"optim\.minibatches: 1, and cannot go on with 2"):
        run(replace(whole, steps=4, optim=Optim(lr=0.03, minibatches=2)), tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match=r"started with objective\.ppo_clip\.kl: 0\.0, and cannot go on with 0\.1"):
        run(replace(whole, steps=4, objective=PPOClip(kl=0.1)), tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match=r"started with optim\.ema\.decay: None, and cannot go on with 0\.9"):
        run(replace(whole, steps=4, optim=Optim(lr=0.03, micro=24, ema=Average(0.9))), tmp_path / "run", resume=True)


def test_texts_of_the_next_step_are_read_while_rewards_are_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recipe(steps=3, overlap=True, suites={})
    asked: list[list[str]] = []
    monkeypatch.setattr(ToyPolicy, "read_ahead", lambda self, prompts: asked.append([p.id for p in prompts]))
    run(whole, tmp_path / "run")
    assert asked == [[p.id for p in whole.source.prompts_at(step, whole.seed)] for step in (2, 3)]


def test_every_step_has_a_line_and_evaluations_are_in_theirs(finished: tuple[Path, list[dict]]) -> None:
    _, lines = finished
    assert [line["step"] for line in lines] == list(range(41))
    assert [line["step"] for line in lines if "eval/heldout_verified" in line] == [0, 15, 30, 40]
    first = lines[1]
    for name in (
        "draw/seconds",
        "draw/images_per_second",
        "draw/entropy",
        "score/seconds",
        "update/seconds",
        "step/cpu_seconds",
    ):
        assert first[name] > 0, name
    assert first["score/invalid"] == 0 and first["update/law_gap"] < 1e-6
    assert first["measure/again_mean"] == first["score/brightness_mean"] == first["score/total_mean"]
    assert first["update/ratio_mean"] == pytest.approx(1.0) and first["update/lr"] == 0.03


def test_pictures_lie_where_the_json_says(finished: tuple[Path, list[dict]]) -> None:
    folder, _ = finished
    facts = json.loads((folder / "samples" / "step-000040.json").read_text())
    with Image.open(folder / "samples" / "step-000040.png") as picture:
        sheet = np.asarray(picture) / 255
    (h, w), gap = facts["tile"], facts["gap"]
    assert len(facts["samples"]) == 24
    for i, sample in enumerate(facts["samples"]):
        y, x = gap + i // facts["columns"] * (h + gap), gap + i % facts["columns"] * (w + gap)
        assert sheet[y : y + h, x : x + w].mean() == pytest.approx(sample["total"], abs=2e-3), (
            "its brightness is its score"
        )
        assert sample["parts"] == {"brightness": sample["total"]} and sample["measures"] == {"again": sample["total"]}
        assert (sheet[y - 1, x : x + w] == 1).all() and (sheet[y : y + h, x - 1] == 1).all()
    by_group = [[s["advantage"] for s in facts["samples"] if s["group"] == g] for g in range(3)]
    assert all(abs(sum(group)) < 1e-4 for group in by_group)


def test_evaluations_ask_the_same_thing_each_time(finished: tuple[Path, list[dict]]) -> None:
    folder, lines = finished
    passes = [json.loads(p.read_text()) for p in sorted((folder / "evaluations").glob("heldout-*.json"))]
    assert [p["step"] for p in passes] == [0, 15, 30, 40]
    assert all(p["prompts"] == passes[0]["prompts"] and len(p["prompts"]) == 48 for p in passes)
    with np.load(folder / "evaluations" / "heldout-000040.npz") as values:
        assert values["verified"].mean() == pytest.approx(lines[-1]["eval/heldout_verified"])


def test_the_folder_says_what_it_ran_on(finished: tuple[Path, list[dict]]) -> None:
    folder, _ = finished
    facts = json.loads((folder / "environment.json").read_text())
    assert facts["torch"] == torch.__version__ and facts["seed"] == 0 and facts["device"] == "cpu"
    assert list(folder.glob("events.out.tfevents.*"))
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-000030", "step-000040"]


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    still = tmp_path / "still"
    run(recipe(steps=2), still)
    jumps = itertools.cycle([0.0, 4e9, 1e9, 3e9])
    monkeypatch.setattr("time.time", lambda: next(jumps))
    run(recipe(steps=2), tmp_path / "jumping")
    assert lines(still) == lines(tmp_path / "jumping")
    seconds = json.loads((tmp_path / "jumping" / "summary.json").read_text())["seconds"]
    assert 0 <= seconds < 60


def test_a_run_goes_on_though_its_recipe_is_older_than_a_setting(
    finished: tuple[Path, list[dict]], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "older")
    text = (folder / "recipe.yaml").read_text()
    older = "".join(line for line in text.splitlines(True) if not line.startswith(("  moments:", "scorers:")))
    assert len(older) < len(text) - 20
    (folder / "recipe.yaml").write_text(older)
    measures = {"again": Brightness()}
    assert run(recipe(measures=measures), folder, resume=True)[-1]["step"] == 40
    (folder / "recipe.yaml").write_text(older.replace("  epochs: 1", "  epochs: 2"))
    with pytest.raises(ValueError, match=r"was started with optim\.epochs: 2, and cannot go on with 1"):
        run(recipe(measures=measures), folder, resume=True)


class Heard(Reporter):
    """A reporter whose words are kept."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, quiet=True)
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_more_steps_under_a_schedule_are_another_run(tmp_path: Path, schedule: str) -> None:
    optim = Optim(lr=0.03, schedule=schedule)
    run(recipe(steps=2, optim=optim), tmp_path / "longer")
    told = json.loads((tmp_path / "longer" / "timeline.json").read_text())
    assert told["step"] == 2
    again = Heard(tmp_path / "longer")
    train(recipe(steps=2, optim=optim), tmp_path / "longer", True, again)
    assert json.loads((tmp_path / "longer" / "timeline.json").read_text()) == told  # nothing was left to do
    longer = Heard(tmp_path / "longer")
    train(recipe(steps=4, optim=optim), tmp_path / "longer", True, longer)
    run(recipe(steps=4, optim=optim), tmp_path / "straight")
    same = lines(tmp_path / "longer")[3:] == lines(tmp_path / "straight")[3:]
    warned = any("now falls towards step 4, and did towards 2" in sentence for sentence in longer.said)
    assert same == (schedule == "constant") and warned == (schedule == "cosine")
    assert not any("falls towards" in sentence for sentence in again.said)


def test_a_disk_that_is_full_for_the_reporter_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard meets it while it writes, and once more when it is closed."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("add_scalar", "close"):
        monkeypatch.setattr(f"torch.utils.tensorboard.SummaryWriter.{name}", full)
    with pytest.raises(ValueError, match=r"No space left on device. Free some space and resume the run"):
        run(recipe(steps=2), tmp_path / "full")
    monkeypatch.undo()
    assert run(recipe(steps=2), tmp_path / "full", resume=True)[-1]["step"] == 2


def test_a_run_is_neither_overwritten_nor_mixed(finished: tuple[Path, list[dict]], tmp_path: Path) -> None:
    folder, lines = finished
    with pytest.raises(ValueError, match="holds a run already"):
        run(recipe(), folder)
    with pytest.raises(ValueError, match=r"was started with seed: 0, and cannot go on with 1"):
        run(recipe(seed=1), folder, resume=True)
    with pytest.raises(ValueError, match="no run to resume"):
        run(recipe(), tmp_path / "nowhere", resume=True)
    shutil.copytree(folder / "checkpoints", tmp_path / "headless" / "checkpoints")
    with pytest.raises(ValueError, match=r"has checkpoints, but no recipe\.yaml"):
        run(recipe(), tmp_path / "headless")
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == len(lines)


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    short = run(recipe(steps=3), tmp_path / "run")
    longer = run(recipe(steps=5), tmp_path / "run", resume=True)
    straight = run(recipe(steps=5), tmp_path / "straight")
    assert [line["step"] for line in longer] == [0, 1, 2, 3, 4, 5]
    assert longer[5]["score/total_mean"] == straight[5]["score/total_mean"]
    assert len(short) == 4
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["resumed"][0]["step"] == 3


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("raise", r"reward: the reward failed at step 1: KeyError: 'no such endpoint'"),
        ("shape", r"reward: 'total' has shape \(24, 1\) for 24 samples"),
        ("type", "returns Scores"),
        ("lie", r"sample 2 of step 1, prompt 'toy\d' \('toy number \d'\), scored nan and called valid"),
        ("all", "step 1: none of the 24 samples could be scored"),
    ],
)
def test_a_reward_that_misbehaves_is_named(tmp_path: Path, spoil: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run(recipe(reward=Brightness(spoil=spoil), suites={}, steps=2), tmp_path / "run")


def test_a_measure_that_misbehaves_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"measures\.truth: the reward failed") as caught:
        run(recipe(measures={"truth": Brightness(spoil="raise")}, suites={}), tmp_path / "run")
    assert isinstance(caught.value.__cause__, KeyError)


def test_invalid_scores_are_counted_shown_and_left_out(tmp_path: Path) -> None:
    lines = run(recipe(reward=Brightness(spoil="some"), suites={}, steps=2), tmp_path / "run")
    assert lines[1]["score/invalid"] == 8 and lines[1]["update/samples"] == 16
    facts = json.loads((tmp_path / "run" / "samples" / "step-000001.json").read_text())
    invalid = [s for s in facts["samples"] if not s["valid"]]
    assert len(invalid) == 8
    assert all(s["total"] is None and s["advantage"] == 0 for s in invalid)


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    folder, leashed = tmp_path / "run", recipe(steps=2, suites={}, objective=PPOClip(kl=0.1))
    run(leashed, folder)
    whole = checkpoint.read(folder / "checkpoints" / "step-000002")
    (folder / "checkpoints" / "step-000002").rename(folder / "aside")
    lost = {**whole.weights, "copies/reference/bias": torch.full((3, 4), torch.nan)}
    checkpoint.write(folder, replace(whole, weights=lost), 2)
    with pytest.raises(ValueError, match="step 3: the loss is nan"):
        run(replace(leashed, steps=4), folder, resume=True)
    last = checkpoint.latest(folder)
    assert last is not None and last.name == "step-000002"
    assert torch.equal(checkpoint.read(last).weights["head"], whole.weights["head"])


def test_the_reference_is_kept_when_only_the_advantage_reads_it(tmp_path: Path) -> None:
    lines = run(recipe(advantage=KlInReward(LeaveOneOut(), beta=0.1), suites={}, steps=3), tmp_path / "run")
    assert len(lines) == 4 and all(abs(line["update/law_gap"]) < 1e-6 for line in lines[1:])


def test_the_law_gap_is_seen_when_another_law_is_trained(tmp_path: Path) -> None:
    from burnish.plans.every_token import EveryToken
    from burnish.sources.on_policy import OnPolicy

    gaps = {}
    for law in ("sampled", "conditional"):
        source = OnPolicy("toys:prompts", EveryToken(group=8, guidance=3.0, law=law), per_step=3)
        objective = PPOClip(anchor="recomputed")
        lines = run(recipe(source=source, objective=objective, suites={}, steps=1), tmp_path / law)
        gaps[law] = lines[1]["update/law_gap"]
    assert gaps["sampled"] < 1e-6 and gaps["conditional"] > 0.1


def test_the_same_seed_is_the_same_run_and_another_is_not(tmp_path: Path) -> None:
    rewards = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        lines = run(recipe(seed=seed, steps=3, suites={}, optim=Optim(lr=0.03, minibatches=2)), tmp_path / name)
        rewards.append([line["score/total_mean"] for line in lines[1:]])
    assert rewards[0] == rewards[1] != rewards[2]


def test_comparison_pairs_samples_and_clusters_prompts() -> None:
    suite, policy = ToySuite(each=4), ToyRaster().load(torch.device("cpu"))
    before = passed(suite.run(policy, TokenPlan(), None, 0))
    same = compare(before, passed(suite.run(policy, TokenPlan(), None, 0)))
    assert same["verified"].difference.mean == 0 and same["verified"].difference.verdict() == "not distinguishable"
    assert same["verified"].difference.clusters == 3, "prompts, not samples"
    with torch.no_grad():
        policy.weights["bias"][:, 3] += 3
    better = compare(before, passed(suite.run(policy, TokenPlan(), None, 0)))["verified"]
    assert better.facts()["verdict"] == "better"
    other = Evaluation({}, {}, (Prompt("other", ""),) * 12, torch.zeros(12, 3, 1, 1))
    with pytest.raises(ValueError, match="different prompts"):
        compare(before, passed(other))
