"""Copies of weights: what a block sees, and that live weights come out of it as they went in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from burnish.core import Copy
from burnish.models.weights import Copies


@pytest.fixture
def live() -> list[tuple[str, torch.nn.Parameter]]:
    torch.manual_seed(0)
    return [("a", torch.nn.Parameter(torch.randn(3, 2))), ("b", torch.nn.Parameter(torch.randn(4)))]


def drifted(live: list[tuple[str, torch.nn.Parameter]], copies: Copies) -> None:
    """Two updates, so that live, averaged and reference weights are all different."""
    for _ in range(2):
        with torch.no_grad():
            for _, weight in live:
                weight.add_(torch.randn_like(weight))
        copies.advance(1, "update")


def test_averages_move_by_their_decay_and_the_reference_does_not(live: list) -> None:
    copies = Copies([("x", torch.nn.Parameter(torch.tensor([8.0])))])
    (x,) = copies._live.values()
    copies.keep({"old": Copy(0.75), "reference": Copy()})
    with torch.no_grad():
        x.fill_(0.0)
    copies.advance(1, "update")  # 0.75 * 8 + 0.25 * 0
    copies.advance(1, "update")  # 0.75 * 6
    with copies.using("old"):
        assert x.item() == 4.5
    with copies.using("reference"):
        assert x.item() == 8.0
    assert x.item() == 0.0


def test_a_decay_that_rises_is_a_function_of_the_step() -> None:
    nft = Copy(0.5, rise=0.001, every="step")
    assert [nft.decay_at(step) for step in (1, 100, 499, 500, 9000)] == [0.001, 0.1, 0.499, 0.5, 0.5]
    late = Copy(0.999, rise=0.0075, flat=75)
    assert [late.decay_at(step) for step in (1, 75, 76, 1000)] == [0.0, 0.0, 0.0075, 0.999]
    assert Copy().decay_at(7) is None and Copy(0.9).decay_at(7) == 0.9
    warm = Copy(0.9, warmup=True)
    assert [warm.decay_at(step) for step in (1, 8, 79, 80, 81, 1000)] == [2 / 11, 0.5, 80 / 89, 0.9, 0.9, 0.9]


def test_an_average_with_an_interval_moves_in_its_steps() -> None:
    copies = Copies([("x", torch.nn.Parameter(torch.tensor([8.0])))])
    copies.keep({"ema": Copy(0.5, every="step", interval=3)})
    with torch.no_grad():
        copies.live[0][1].fill_(0.0)
    seen = []
    for step in range(1, 8):
        copies.advance(step, "update")
        copies.advance(step, "step")
        seen.append(copies.state()["copies/ema/x"].item())
    assert seen == [8, 8, 4, 4, 4, 2, 2]
    parts = [Copies.part(copies.state(), name) for name in ("live", "ema", "reference")]
    assert parts == [{"x": torch.tensor([0.0])}, {"x": torch.tensor([2.0])}, {}]


def test_a_decay_of_one_freezes_a_copy_and_of_zero_copies(live: list) -> None:
    """To the last bit, however often the live weights moved."""
    copies, start = Copies(live), [w.detach().clone() for _, w in live]
    copies.keep({"frozen": Copy(1.0), "step": Copy(1.0, every="step"), "near": Copy(0.0)})
    for step in range(1, 21):
        drifted(live, copies)
        copies.advance(step, "step")
    now = [w.detach().clone() for _, w in live]
    for name, expected in (("frozen", start), ("step", start), ("near", now)):
        with copies.using(name):
            assert all(torch.equal(w, was) for (_, w), was in zip(live, expected, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(start, now, strict=True))


def test_copies_of_a_step_stay_through_its_updates() -> None:
    copies = Copies([("x", torch.nn.Parameter(torch.tensor([8.0])))])
    (x,) = copies._live.values()
    copies.keep({"old": Copy(0.0, every="step")})
    with torch.no_grad():
        x.fill_(2.0)
    copies.advance(1, "update")
    with copies.using("old"):
        assert x.item() == 8.0
    copies.advance(1, "step")
    with copies.using("old"):
        assert x.item() == 2.0


@pytest.mark.parametrize("name", ["old", "reference"])
@pytest.mark.parametrize("fails", [False, True])
def test_live_weights_are_bitwise_unchanged_after_a_block(live: list, name: str, fails: bool) -> None:
    copies = Copies(live)
    copies.keep({"old": Copy(0.9), "reference": Copy()})
    drifted(live, copies)
    before = [(w.data_ptr(), w.detach().clone()) for _, w in live]
    try:
        with copies.using(name):
            assert not any(torch.equal(w, was) for (_, w), (_, was) in zip(live, before, strict=True))
            if fails:
                raise RuntimeError("in the middle")
    except RuntimeError:
        assert fails
    for (_, weight), (pointer, was) in zip(live, before, strict=True):
        assert weight.data_ptr() == pointer and torch.equal(weight, was)
    with copies.using(name):  # and the block can be entered again
        pass


def test_live_changes_nothing_and_nested_or_unknown_copies_are_refused(live: list) -> None:
    copies = Copies(live)
    copies.keep({"old": Copy(0.9)})
    with copies.using("live"):
        pass
    with pytest.raises(ValueError, match=r"'reference'.*kept: live, old"), copies.using("reference"):
        pass
    with copies.using("old"), pytest.raises(ValueError, match="inside"), copies.using("live"):
        pass
    with pytest.raises(ValueError, match="live"):
        copies.keep({"live": Copy()})


def test_an_adapter_switched_off_stands_for_the_reference(live: list) -> None:
    seen = []

    @contextmanager
    def off() -> Iterator[None]:
        seen.append("off")
        yield
        seen.append("on")

    copies = Copies(live, off)
    copies.keep({"reference": Copy(), "old": Copy(0.5)})
    assert not any("reference" in name for name in copies.state())
    with copies.using("reference"):
        assert seen == ["off"]
    assert seen == ["off", "on"]
    copies.keep({"reference": Copy(0.5)})  # an averaged reference moves: the adapter cannot stand for it
    assert "copies/reference/a" in copies.state()


def test_state_comes_back_bitwise_and_is_not_shared(live: list) -> None:
    copies = Copies(live)
    copies.keep({"old": Copy(0.9)})
    drifted(live, copies)
    state = copies.state()
    drifted(live, copies)
    assert not torch.equal(state["a"], live[0][1])
    copies.restore(state)
    again = copies.state()
    assert again.keys() == state.keys() == {"a", "b", "copies/old/a", "copies/old/b"}
    assert all(torch.equal(again[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("b"), "lack 'b'"),
        (lambda s: s.update(c=torch.zeros(1)), "'c'"),
        (lambda s: s.update(b=torch.zeros(5)), r"'b' is torch.float32 \(5,\), here it is torch.float32 \(4,\)"),
        (lambda s: s.update(b=s["b"].half()), r"float16"),
    ],
)
def test_state_that_does_not_fit_changes_nothing(live: list, change, said: str) -> None:
    copies = Copies(live)
    state = {key: value + 1 for key, value in copies.state().items()}
    change(state)
    was = live[0][1].detach().clone()
    with pytest.raises(ValueError, match=said):
        copies.restore(state)
    assert torch.equal(live[0][1], was)


def test_a_copy_is_renewed_when_told_and_then_is_the_live_weights(live: list) -> None:
    """Also the reference of an adapter, which switching the adapter off does not give once it has moved."""

    @contextmanager
    def off() -> Iterator[None]:
        yield

    copies = Copies(live, off)
    copies.keep({"reference": Copy(renewed=True), "start": Copy()})
    drifted(live, copies)
    now = [w.detach().clone() for _, w in live]
    with copies.using("reference"):
        assert not any(torch.equal(w, was) for (_, w), was in zip(live, now, strict=True))
    copies.renew("reference")
    with copies.using("reference"):
        assert all(torch.equal(w, was) for (_, w), was in zip(live, now, strict=True))
    drifted(live, copies)
    with copies.using("reference"):
        assert all(torch.equal(w, was) for (_, w), was in zip(live, now, strict=True))
    for name in ("start", "live", "none"):
        with pytest.raises(ValueError, match="those that are: reference"):
            copies.renew(name)


def test_only_what_was_asked_for_is_trained_and_copied(live: list) -> None:
    copies = Copies(live)
    copies.narrow(["b$"])
    copies.keep({"old": Copy(0.5)})
    (a, b) = (weight for _, weight in live)
    assert [name for name, _ in copies.live] == ["b"] and b.requires_grad and not a.requires_grad
    assert set(copies.state()) == {"b", "copies/old/b"}


@pytest.mark.parametrize(("pattern", "said"), [("c", "'c' in its name .*a, b"), ("(", "not a regular expression")])
def test_a_pattern_that_fits_nothing_is_refused(live: list, pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Copies(live).narrow(["a", pattern])
    assert all(weight.requires_grad for _, weight in live)
