"""What frozen networks make of texts, made once for each distinct text and remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ROOM = 4 * 2**30  # bytes


class Remembered:
    """Tensors of texts, on the CPU. The text not asked for longest goes first; the last one asked for stays.

    A text goes through the networks by itself: in company its last bits would be others, and a run that was resumed
    asks for texts in other company than one that was not.

    encode  a text to its tensors
    room    bytes remembered from one call to the next
    """

    def __init__(self, encode: Callable[[str], Sequence[Tensor]], room: int = ROOM) -> None:
        self.encoded = 0  # texts that went through the networks, for tests and for the curious
        self._encode, self._room = encode, room
        self._known: OrderedDict[str, tuple[Tensor, ...]] = OrderedDict()
        self._held = 0  # bytes

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> list[tuple[Tensor, ...]]:
        """What `encode` made of each text."""
        for text in texts:
            if text not in self._known:
                self._known[text] = tuple(part.cpu().clone() for part in self._encode(text))  # no view of more
                self._held += _bytes(self._known[text])
                self.encoded += 1
            self._known.move_to_end(text)
        found = [self._known[text] for text in texts]
        while len(self._known) > 1 and self._held > self._room:
            self._held -= _bytes(self._known.popitem(last=False)[1])
        return found


def _bytes(parts: tuple[Tensor, ...]) -> int:
    return sum(part.nbytes for part in parts)
