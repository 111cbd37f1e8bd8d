"""Caption features: a frozen T5 encoder from transformers, run once for each distinct text and remembered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from burnish.models.remembered import ROOM, Remembered


class Captions:
    """Features of texts, left-padded as LlamaGen was trained (section 1, item 3 of the notes).

    encoder  a transformers T5 encoder with its tokenizer, in a folder
    length   slots; longer texts are cut
    room     bytes remembered. A text of FLAN-T5-XL takes 8 kB a token
    """

    def __init__(self, encoder: Path, length: int, device: torch.device, room: int = ROOM) -> None:
        from transformers import AutoTokenizer, T5EncoderModel

        self.length, self.device = length, device
        self._tokenizer = AutoTokenizer.from_pretrained(encoder)
        model: Any = T5EncoderModel.from_pretrained(encoder)
        self._model = model.to(device).eval().requires_grad_(False)
        self._known = Remembered(self._encode, room)

    @property
    def width(self) -> int:
        return self._model.config.d_model

    @property
    def encoded(self) -> int:
        """Texts that went through the network so far."""
        return self._known.encoded

    def __call__(self, texts: Sequence[str]) -> tuple[Float[Tensor, "p t f"], Bool[Tensor, "p t"]]:
        """Features of each text, and which slots hold one. Slots before the text are zero."""
        features = torch.zeros(len(texts), self.length, self.width)
        visible = torch.zeros(len(texts), self.length, dtype=torch.bool)
        for row, (known,) in enumerate(self._known(texts)):
            features[row, self.length - len(known) :] = known
            visible[row, self.length - len(known) :] = True
        return features.to(self.device), visible.to(self.device)

    def _encode(self, text: str) -> tuple[Tensor]:
        tokens = self._tokenizer(clean(text), truncation=True, max_length=self.length, return_tensors="pt")
        tokens = tokens.to(self.device)
        hidden = self._model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return (hidden[0].float(),)


def clean(text: str) -> str:
    """A caption as LlamaGen's T5 saw it: entities decoded, Unicode mended, tags dropped, lower case, single spaces."""
    import html

    import ftfy
    from bs4 import BeautifulSoup

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    if "<" in text:
        text = BeautifulSoup(text, features="html.parser").get_text(" ")
    return " ".join(text.lower().split())
