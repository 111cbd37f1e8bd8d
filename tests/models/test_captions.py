"""Captions that a T5 encodes: left-padded, each once, and remembered as far as there is room."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_llamagen
import torch

from burnish.models.captions import Captions

CPU = torch.device("cpu")
SLOT = 16 * 4  # bytes of a token's features
LONG, MIDDLE, SHORT, OTHER = "a red circle and a star", "a red circle", "star", "two blue stars above a square"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_llamagen.spec(folder, text=True)
    return folder / "t5"


def test_a_text_lies_at_the_end_of_its_slots(encoder: Path) -> None:
    features, visible = Captions(encoder, 9, CPU)([SHORT, LONG, SHORT])
    lengths = visible.sum(1)
    assert lengths[0] == lengths[2] < lengths[1] <= 9
    assert all(row.tolist() == sorted(row.tolist()) for row in visible)
    assert not features[~visible].any() and features[visible].any(1).all()
    assert torch.equal(features[0], features[2])


def test_what_is_remembered_is_bounded_by_bytes(encoder: Path) -> None:
    """Texts are as long as they are: what one long text takes, two short ones may have."""
    lengths = Captions(encoder, 9, CPU)([LONG, MIDDLE, SHORT, OTHER])[1].sum(1).tolist()
    long, middle, short, other = lengths
    assert short + middle < long + middle < long + other + short
    captions = Captions(encoder, 9, CPU, room=SLOT * (long + middle))
    whole = captions([LONG, MIDDLE])[0]
    assert captions.encoded == 2
    assert torch.equal(captions([LONG, MIDDLE])[0], whole) and captions.encoded == 2
    captions([LONG])  # so that MIDDLE is the one not asked for longest
    captions([SHORT])
    captions([LONG, SHORT])
    assert captions.encoded == 3
    assert torch.equal(captions([MIDDLE])[0], whole[1:])
    assert captions.encoded == 4
    captions([SHORT, MIDDLE])  # LONG, asked for before these, made room
    assert captions.encoded == 4
    captions([LONG])
    assert captions.encoded == 5


def test_more_than_there_is_room_for_can_be_asked_at_once(encoder: Path) -> None:
    texts = [LONG, MIDDLE, SHORT, OTHER]
    captions = Captions(encoder, 9, CPU, room=1)
    assert torch.equal(captions(texts)[0], Captions(encoder, 9, CPU)(texts)[0])
    captions([OTHER])
    assert captions.encoded == 4  # the last one stays
    captions([LONG])
    assert captions.encoded == 5


def test_what_a_text_is_does_not_depend_on_its_company(encoder: Path) -> None:
    texts = [LONG, MIDDLE, SHORT, OTHER]
    together = Captions(encoder, 9, CPU)(texts)[0]
    assert torch.equal(together, torch.cat([Captions(encoder, 9, CPU)([text])[0] for text in texts]))
