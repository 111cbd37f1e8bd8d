"""What is remembered of texts takes the bytes it says, whatever it was a part of."""

from __future__ import annotations

import torch
from torch import Tensor

from burnish.models.remembered import Remembered


def test_sizes_of_each_text_are_added_up() -> None:
    asked: list[str] = []

    def encode(text: str) -> tuple[Tensor]:
        asked.append(text)
        return (torch.full((len(text),), len(text), dtype=torch.uint8),)

    known = Remembered(encode, room=5)
    assert [len(part) for (part,) in known(["a", "bb", "a", "cc"])] == [1, 2, 1, 2]  # five bytes
    known(["a"])
    known(["ddd"])  # "bb" and "cc" go: one alone leaves six bytes
    known(["a", "ddd"])
    assert asked == ["a", "bb", "cc", "ddd"] and known.encoded == 4
    known(["eeeeee"])  # more than there is room for: it stays, alone
    known(["eeeeee"])
    assert asked[4:] == ["eeeeee"]
    known(["a"])
    assert asked[5:] == ["a"]


def test_nothing_that_was_encoded_with_it_is_kept() -> None:
    def encode(text: str) -> tuple[Tensor]:
        return (torch.zeros(4, 8, requires_grad=True).mul(2)[len(text)],)

    for (part,) in Remembered(encode)(["a", "bb"]):
        assert part.untyped_storage().nbytes() == part.nbytes == 32 and not part.requires_grad
