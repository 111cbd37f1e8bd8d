"""Checkpoints: whole or not there, and never believed without looking."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from burnish.engine import checkpoint
from burnish.engine.checkpoint import Checkpoint, Writer, latest, read, write


def example(step: int, size: int = 6) -> Checkpoint:
    torch.manual_seed(step)
    weight = torch.nn.Parameter(torch.randn(size))
    adam = torch.optim.AdamW([weight])
    weight.sum().backward()
    adam.step()
    return Checkpoint(step, step, 1.5, {"w": weight.detach()}, adam.state_dict(), torch.get_rng_state())


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    one = example(7)
    found = read(write(tmp_path, one, keep=2))
    assert (found.step, found.updates, found.seconds) == (7, 7, 1.5)
    assert torch.equal(found.weights["w"], one.weights["w"])
    assert torch.equal(found.optimiser["state"][0]["exp_avg"], one.optimiser["state"][0]["exp_avg"])
    assert found.optimiser["param_groups"] == one.optimiser["param_groups"]
    assert torch.equal(found.random, one.random)


def test_the_newest_are_kept_and_numbers_are_not_words(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    for step in (9, 10, 999999, 1000000):
        write(tmp_path, example(step), keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-1000000", "step-999999"]
    newest = latest(tmp_path)
    assert newest is not None and newest.name == "step-1000000"


def test_an_older_checkpoint_is_offered_by_number(tmp_path: Path) -> None:
    for step in (999998, 999999, 1000000):
        write(tmp_path, example(step), keep=3)
    home = tmp_path / "checkpoints"
    for step, offered in ((999998, None), (999999, "step-999998"), (1000000, "step-999999")):
        spoil(home / f"step-{step}", "missing")
        with pytest.raises(ValueError, match=r"has no optimiser\.pt") as caught:
            read(home / f"step-{step}")
        assert str(caught.value).partition("goes on from ")[2] == (offered or "")
    with pytest.raises(ValueError, match=r"it has no state\.json$"):
        read(home / "unknown")  # comes after no step


def spoil(folder: Path, how: str) -> None:
    weights, optimiser, state = (folder / n for n in ("weights.safetensors", "optimiser.pt", "state.json"))
    match how:
        case "truncated weights":
            os.truncate(weights, weights.stat().st_size - 4)
        case "one bit":
            data = bytearray(weights.read_bytes())
            data[-1] ^= 1
            weights.write_bytes(data)
        case "truncated optimiser":
            os.truncate(optimiser, optimiser.stat().st_size // 2)
        case "truncated state":
            os.truncate(state, 20)
        case "binary state":
            state.write_bytes(b"\xff\xfe\x00")
        case "foreign":
            state.write_text(json.dumps({"epoch": 3}))
        case "missing":
            optimiser.unlink()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated weights", "weights.safetensors is damaged"),
        ("one bit", "weights.safetensors is damaged"),
        ("truncated optimiser", "optimiser.pt is damaged"),
        ("truncated state", "state.json is damaged"),
        ("binary state", "state.json is damaged"),
        ("foreign", "not written by this Burnish"),
        ("missing", "has no optimiser.pt"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_an_older_one_offered(tmp_path: Path, how: str, said: str) -> None:
    write(tmp_path, example(4), keep=2)
    bad = write(tmp_path, example(8), keep=2)
    spoil(bad, how)
    with pytest.raises(ValueError, match=said) as caught:
        read(bad)
    assert "step-000008" in str(caught.value) and "goes on from step-000004" in str(caught.value)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    folder = write(tmp_path, replace(example(4), optimiser={"state": Trap(), "param_groups": []}), keep=2)
    with pytest.raises(ValueError, match="cannot be read"):
        read(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("room", [50_000, 300_000, 480_000])
def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path, room: int) -> None:
    """The system refuses files longer than `room` bytes: first within the weights, then within the optimiser."""
    write(tmp_path, example(4), keep=1)
    big = example(8, size=60_000)  # 240 kB of weights, 480 kB of moments
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(ValueError, match=r"could not save .*step-000008.*step-000004 is whole"):
            write(tmp_path, big, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000004"]
    newest = latest(tmp_path)
    assert newest is not None and read(newest).step == 4
    write(tmp_path, big, keep=1)  # with room again, it goes on
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000008"]


def test_what_a_killed_save_left_is_cleared_and_never_read(tmp_path: Path) -> None:
    folder = write(tmp_path, example(4), keep=2)
    shutil.copytree(folder, tmp_path / "checkpoints" / ".step-000008.partial")
    assert latest(tmp_path) == folder
    write(tmp_path, example(12), keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000004", "step-000012"]


@pytest.mark.parametrize("how", ["rename", "rmtree"])
def test_what_cannot_be_removed_is_a_warning_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The system says that step 4 is busy, at once or when a file of it is gone; whoever had it lets go later."""
    real = {"rename": Path.rename, "rmtree": shutil.rmtree}[how]

    def busy(path: Path, *others: Path, **settings: bool) -> object:
        if "step-000004" not in path.name:
            return real(path, *others, **settings)
        if how == "rmtree":
            (path / "optimiser.pt").unlink(missing_ok=True)
        raise OSError(errno.EBUSY, "Device or resource busy", str(path))

    def names() -> set[str]:
        return {p.name for p in (tmp_path / "checkpoints").iterdir()}

    write(tmp_path, example(4), keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(Path if how == "rename" else checkpoint.shutil, how, busy)
        for step in (8, 12):
            with pytest.warns(RuntimeWarning, match="step-000004.* could not be removed: .*busy"):
                folder = write(tmp_path, example(step), keep=1)
            assert latest(tmp_path) == folder and read(folder).step == step
            # one that is half gone is nobody's choice any more
            assert names() == {folder.name, "step-000004" if how == "rename" else ".step-000004.removed"}
    folder = write(tmp_path, example(16), keep=1)
    assert names() == {folder.name}


def test_a_left_over_that_cannot_be_removed_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "checkpoints" / ".step-000008.partial"
    left.mkdir(parents=True)

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))

    monkeypatch.setattr(checkpoint.shutil, "rmtree", busy)
    with pytest.warns(RuntimeWarning, match="partial takes room"):
        assert read(write(tmp_path, example(12), keep=1)).step == 12
    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match=r"could not save .*step-000008"):
        write(tmp_path, example(8), keep=1)  # in its very place


def test_what_changes_while_it_is_written_is_not_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, real = threading.Event(), checkpoint._fill

    def slow(folder: Path, one: Checkpoint) -> None:
        assert go.wait(60)
        real(folder, one)

    monkeypatch.setattr(checkpoint, "_fill", slow)
    one = example(7)
    moments = one.optimiser["state"][0]["exp_avg"]
    moment, random = moments.clone(), one.random.clone()
    with Writer(tmp_path, keep=2) as writer:
        writer.write(one)
        for tensor in (moments, one.random):
            tensor.zero_()
        writer.look()  # does not wait
        assert latest(tmp_path) is None
        go.set()
    found = read(tmp_path / "checkpoints" / "step-000007")
    assert torch.equal(found.weights["w"], one.weights["w"]) and torch.equal(found.random, random)
    assert torch.equal(found.optimiser["state"][0]["exp_avg"], moment)
    assert found.optimiser["param_groups"] == one.optimiser["param_groups"]


def test_they_are_written_in_their_order(tmp_path: Path) -> None:
    with Writer(tmp_path, keep=2) as writer:
        for step in (1, 2, 3):
            writer.write(example(step))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000002", "step-000003"]


def test_what_could_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")

    def told(ask: str) -> None:
        with Writer(tmp_path, keep=2) as writer:
            writer.write(example(1))
            if ask == "write":
                writer.write(example(2))
            while ask == "look":
                writer.look()

    for ask in ("write", "look", "leave"):
        with pytest.raises(ValueError, match="could not save"):
            told(ask)
    with pytest.raises(KeyError, match="worse"), Writer(tmp_path, keep=2) as writer:
        writer.write(example(1))
        raise KeyError("worse")
