"""Caption features: a frozen T5 encoder from transformers, run once for each distinct text and remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Captions:
    """Features of texts, left-padded as LlamaGen was trained (section 1, item 3 of the notes).

    encoder  a transformers T5 encoder with its tokenizer, in a folder
    length   slots; longer texts are cut
    keep     texts remembered; the one not asked for longest goes first
    """

    def __init__(self, encoder: Path, length: int, device: torch.device, keep: int = 50_000, rows: int = 64) -> None:
        from transformers import AutoTokenizer, T5EncoderModel

        self.length, self.device, self.keep, self.rows = length, device, keep, rows
        self.encoded = 0  # texts that went through the network, for tests and for the curious
        self._tokenizer = AutoTokenizer.from_pretrained(encoder)
        model: Any = T5EncoderModel.from_pretrained(encoder)
        self._model = model.to(device).eval().requires_grad_(False)
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    @property
    def width(self) -> int:
        return self._model.config.d_model

    def __call__(self, texts: Sequence[str]) -> tuple[Float[Tensor, "p t f"], Bool[Tensor, "p t"]]:
        """Features of each text, and which slots hold one. Slots before the text are zero."""
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        for start in range(0, len(new), self.rows):
            self._encode(new[start : start + self.rows])
        features = torch.zeros(len(texts), self.length, self.width)
        visible = torch.zeros(len(texts), self.length, dtype=torch.bool)
        for row, text in enumerate(texts):
            self._known.move_to_end(text)
            known = self._known[text]
            features[row, self.length - len(known) :] = known
            visible[row, self.length - len(known) :] = True
        while len(self._known) > self.keep:
            self._known.popitem(last=False)
        return features.to(self.device), visible.to(self.device)

    @torch.no_grad()
    def _encode(self, texts: Sequence[str]) -> None:
        tokens = self._tokenizer(
            [clean(text) for text in texts], padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        ).to(self.device)
        hidden = self._model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        for text, row, mask in zip(texts, hidden.float().cpu(), tokens.attention_mask.bool().cpu(), strict=True):
            self._known[text] = row[mask]
        self.encoded += len(texts)


def clean(text: str) -> str:
    """A caption as LlamaGen's T5 saw it: entities decoded, Unicode mended, tags dropped, lower case, single spaces."""
    import html

    import ftfy
    from bs4 import BeautifulSoup

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    if "<" in text:
        text = BeautifulSoup(text, features="html.parser").get_text(" ")
    return " ".join(text.lower().split())
