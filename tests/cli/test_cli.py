"""Commands as people type them: what they print, and that every mistake is one sentence and exit status 2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_llamagen
import torch
import yaml

from burnish.cli.main import main
from burnish.cli.runs import open_model
from burnish.recipe import find


def run(capsys, *words: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as end:
        main(words)
    captured = capsys.readouterr()
    return end.value.code or 0, captured.out, captured.err


def bright(images, prompts):
    return images.mean((1, 2, 3))


def broken(images, prompts):
    raise RuntimeError("the lamp is out")


def lopsided(images, prompts):
    return images.mean((2, 3))


def unknown(images, prompts):
    return images.mean((1, 2, 3)) * float("nan")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a small true LlamaGen, its classes, and a recipe of two steps."""
    folder = tmp_path_factory.mktemp("home")
    spec = tiny_llamagen.spec(folder, text=False)
    lines = "".join(f'{{"text": "thing {i}", "facts": {{"class_id": {i}}}}}\n' for i in range(5))
    (folder / "classes.jsonl").write_text(lines)
    recipe = {
        "policy": {"llamagen": {"gpt": spec.gpt, "tokenizer": spec.tokenizer, "vq": "", "pixels": 8}},
        "source": {
            "on_policy": {
                "prompts": str(folder / "classes.jsonl"),
                "per_step": 2,
                "plan": {"every_token": {"group": 4}},
            }
        },
        "reward": f"{__name__}:bright",
        "objective": {"ppo_clip": {"kl": 0.1}},
        "advantage": "leave_one_out",
        "optim": {"lr": 1e-3, "minibatches": 2},
        "steps": 2,
        "checkpoint_every": 1,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def trained(home) -> Path:
    """The folder of a run of that recipe."""
    with pytest.raises(SystemExit) as end:
        main(["train", str(home / "tiny.yaml"), "--folder", str(home / "run")])
    assert not end.value.code
    return home / "run"


def test_a_run_leaves_its_folder_and_its_page(trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert (trained / "report.html").read_text().startswith("<!")


def test_a_run_can_be_drawn_from_checked_and_reported(trained, tmp_path, capsys):
    code, out, _ = run(
        capsys, "sample", str(trained), "thing 3", "thing 0", "--each", "2", "--out", str(tmp_path / "p")
    )
    assert code == 0
    assert out.splitlines()[2] == f"{tmp_path / 'p' / '0002-thing-0.png'}"
    assert len(list((tmp_path / "p").glob("*.png"))) == 4
    code, out, _ = run(capsys, "check", str(trained))
    assert code == 0 and "can run: 2 steps of 2 prompts x 4 samples" in out
    code, out, _ = run(capsys, "check", str(trained), "--rehearse")
    assert code == 0 and "rehearsed here: " in out and "1 x sample of 8, without gradient" in out
    (trained / "report.html").unlink()
    code, out, _ = run(capsys, "report", str(trained))
    assert code == 0 and (trained / "report.html").is_file()


def test_a_run_is_exported_in_the_format_it_came_in(home, trained, tmp_path, capsys):
    code, out, _ = run(capsys, "export", str(trained), str(tmp_path / "tuned"))
    assert code == 0 and out.strip().endswith(f"tuned: {trained}, after step 2")
    there = f"policy.llamagen.gpt={tmp_path / 'tuned'}"
    base, again, live = (
        dict(open_model(str(name), changes).policy.parameters())
        for name, changes in ((home / "tiny.yaml", []), (home / "tiny.yaml", [there]), (trained, []))
    )
    assert all(torch.equal(again[name], weight) for name, weight in live.items())
    assert not any(torch.equal(again[name], weight) for name, weight in base.items())


def test_a_run_goes_on_where_it_stopped(home, trained, capsys):
    code, _, _ = run(capsys, "train", str(trained), "steps=3", "--resume")
    assert code == 0
    assert json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 3
    code, _, err = run(capsys, "train", str(home / "tiny.yaml"), "--folder", str(trained))
    assert code == 2 and "holds a run already" in err


def test_config_says_where_each_value_came_from(home, capsys):
    code, out, _ = run(capsys, "config", str(home / "tiny.yaml"), "optim.lr=2e-4", "advantage=group_mean")
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines()}
    assert code == 0
    assert rows["optim.lr"].split() == ["0.0002", "command", "line"]
    assert rows["optim.minibatches"].split() == ["2", str(home / "tiny.yaml")]
    assert rows["optim.eps"].split() == ["1e-08", "default"]
    assert rows["advantage.group_mean"] == "command line"


def test_check_names_faults_and_idle_settings(home, capsys):
    code, out, _ = run(capsys, "check", str(home / "tiny.yaml"), "optim.minibatches=3")
    assert code == 2 and "fault    optim.minibatches: 8 samples cannot be cut into 3" in out
    code, out, _ = run(capsys, "check", str(home / "tiny.yaml"), "optim.minibatches=1")
    assert code == 0 and "warning  objective.ppo_clip: clip cannot act" in out


def test_list_has_every_component_and_recipe(capsys):
    code, out, _ = run(capsys, "list", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["objectives"].keys() == set(find.names(next(kind for kind in find.KINDS if kind.word == "objective")))
    assert "scenes/ar_grpo" in found["recipes"]
    assert json.loads(run(capsys, "list", "rewards", "--json")[1]).keys() == {"rewards"}
    assert json.loads(run(capsys, "list", "reward", "--json")[1]).keys() == {"rewards"}


def test_list_systems_has_a_row_for_each_of_the_172(capsys):
    code, out, _ = run(capsys, "list", "systems", "--json")
    rows = json.loads(out)
    assert code == 0 and len(rows) == 172 and len({row["recipe"] for row in rows}) == 172
    assert {row["status"] for row in rows} <= {"built", "experimental", "missing"}
    assert [row["status"] for row in rows if row["recipe"] in ("ar_grpo", "x_omni")] == ["built", "missing"]


MISTAKES = [
    (["train", "scenes/ar_gpro"], "no recipe, file or run called 'scenes/ar_gpro'; did you mean 'scenes/ar_grpo'?"),
    (["train", "{tiny}", "objective.ppo_clip.clp=1"], "PPOClip has no such field; did you mean 'clip'? (choices: "),
    (["train", "{tiny}", "objective=ppo_clp"], "no objective called 'ppo_clp'; did you mean 'ppo_clip'? (choices: "),
    (["train", "{tiny}", "optim.lr=fast"], "recipe.optim.lr: expected float, got str 'fast'"),
    (["train", "{tiny}", "steps=1.5"], "recipe.steps: expected int, got float 1.5"),
    (["train", "{tiny}", "source.on_policy.prompts=absent.txt"], "absent.txt: no such prompt file"),
    (["train", "{tiny}", "source.on_policy.prompts={home}/empty.txt"], "empty.txt: holds no prompts"),
    (["train", "{tiny}", "source.on_policy.prompts={home}/bad.jsonl"], "bad.jsonl, line 2: not JSON"),
    (["train", "{tiny}", "optim.minibatches=5"], "8 samples cannot be cut into 5 equal minibatches"),
    (["train", "{tiny}", "policy.llamagen.gpt={home}/cut"], "cut/gpt.safetensors: not readable as weights"),
    (["train", "{tiny}", "policy.llamagen.gpt={home}/swapped"], "swapped/gpt.safetensors: weights do not fit GPT"),
    (["train", "{tiny}", "reward={module}:broken"], "reward {module}:broken raised RuntimeError: the lamp is out"),
    (["train", "{tiny}", "reward={module}:lopsided"], "must return shape (8,), one number a sample, got shape (8, 3)"),
    (["train", "{tiny}", "reward={module}:unknown"], "reward"),
    (["train", "{tiny}", "reward=nowhere:f"], "cannot import 'nowhere'"),
    (["train", "{tiny}", "--resume"], "which run is to go on?"),
    (["train", "{tiny}", "--run", "a", "--folder", "b"], "give one"),
    (["sample", "{tiny}"], "what is to be drawn?"),
    (["sample", "{home}/cutrun", "thing 1"], "this folder is not a run"),
    (["evaluate", "{tiny}", "policy.llamagen.gpt={home}/cut"], "cut/gpt.safetensors: not readable as weights"),
    (["evaluate", "{tiny}"], "the recipe has no suites; name one (choices: "),
    (["evaluate", "{tiny}", "--suite", "scense"], "no suite called 'scense'; did you mean 'scenes'?"),
    (["export", "{tiny}", "{home}"], "expected a new or an empty folder"),
    (["train", "{tiny}", "optim.ema.decay=2"], "optim.ema: expected a decay from 0 to below 1 and every 1 or more"),
    (["train", "{tiny}", "optim.ema={decay: 0.5, every: 0}"], "got decay 0.5 and every 0"),
    (["list", "rewrads"], "there is no list of 'rewrads'; did you mean 'rewards'?"),
    (["report", "{home}"], "burnish: "),
    (["config", "{home}/twice.yaml"], "found duplicate key steps"),
    (["world", "nothing"], "no command 'nothing'"),
]


@pytest.mark.parametrize(("words", "sentence"), MISTAKES, ids=[" ".join(w)[:60] for w, _ in MISTAKES])
def test_a_mistake_is_a_sentence_and_exit_status_2(words, sentence, home, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (home / "empty.txt").write_text("")
    (home / "bad.jsonl").write_text('{"text": "x"}\n{"text"\n')
    for name, weights in (("cut", "gpt.safetensors"), ("swapped", "tokenizer.safetensors")):
        shutil.copytree(home / "model", home / name, dirs_exist_ok=True)
        content = (home / "model" / weights).read_bytes()
        (home / name / "gpt.safetensors").write_bytes(content[:999] if name == "cut" else content)
    (home / "twice.yaml").write_text("steps: 1\nsteps: 2\n")
    (home / "cutrun").mkdir(exist_ok=True)
    known = {"{tiny}": str(home / "tiny.yaml"), "{home}": str(home), "{module}": __name__}
    for mark, value in known.items():
        words = [word.replace(mark, value) for word in words]
        sentence = sentence.replace(mark, value)
    code, _, err = run(capsys, *words)
    assert code == 2
    assert sentence in err and "Traceback" not in err
    assert err.splitlines()[-1].startswith("burnish: ")


def test_a_damaged_checkpoint_is_named(trained, home, capsys):
    hurt = home / "hurt"
    shutil.copytree(trained, hurt)
    newest = sorted((hurt / "checkpoints").iterdir())[-1] / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    for words in (["sample", str(hurt), "thing 1"], ["train", str(hurt), "steps=9", "--resume"]):
        code, _, err = run(capsys, *words)
        assert code == 2 and "weights.safetensors is damaged" in err and "Traceback" not in err


def test_debug_shows_the_traceback(capsys):
    with pytest.raises(ValueError, match="no recipe, file or run"):
        main(["train", "nothing_like_it", "--debug"])


def test_an_unknown_command_is_exit_status_2(capsys):
    assert run(capsys, "trian")[0] == 2


def test_ctrl_c_is_exit_status_130_and_a_sentence(capsys, monkeypatch):
    def pressed(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("burnish.recipe.read.locate", pressed)
    code, _, err = run(capsys, "config", "ar_grpo")
    assert (code, err) == (130, "burnish: interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--help"], ["list"], ["list", "systems", "--json"]])
def test_a_listing_answers_at_once_and_without_torch(words):
    """0.7 s of processor time: the wall clock of a shared machine says more about its other users."""
    code = f"import sys; from burnish.cli.main import main\ntry: main({words!r})\nexcept SystemExit: pass\n"
    code += (
        "import time; print(time.process_time(), [m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    seconds, loaded = done.stdout.splitlines()[-1].split(maxsplit=1)
    assert loaded == "[]" and float(seconds) < 0.7
