"""The tokenizer of the scenes' text encoders: one token a word, in the format of transformers' fast tokenizers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "</s>", "<unk>", "<s>")  # ids 0 to 3; T5 pads with 0 and ends with 1


def word_tokenizer(words: Iterable[str], length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of lower-case words; each text ends with </s>."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    table = {word: number for number, word in enumerate([*SPECIAL, *sorted(set(words))])}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="<s>",
        model_max_length=length,
    )
