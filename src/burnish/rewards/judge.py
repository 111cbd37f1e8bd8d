"""A vision-language model asked in words, answering in marks. AR-GRPO (arXiv 2508.06924) asks Qwen2.5-VL-3B-Instruct.

The question is a text file beside this one: `judge_match.txt` (five marks for agreement with the prompt),
`judge_fake.txt` (does it pass for real), `judge_weird.txt` (is nothing odd), or a file of yours. Its first line names
the marks, each from 0 to 1; `{text}` stands for the prompt. The score is `scale` times the sum of the marks. No answer,
or one that cannot be read without guessing, is an invalid score with the reason in its note; it is never 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Reward, Scorer
from burnish.models.chat import UNSOUND, Chat, ChatSettings, Failed, read_question, sound_pictures
from burnish.types import Prompt, Scores


@dataclass(frozen=True)
class Judge(ChatSettings, Reward):
    """Marks of a vision-language model. Set `endpoint` for a server, leave it empty for a local model."""

    question: str = "match"  # match, fake, weird, or the path of a text file like theirs
    scale: float = 0.25  # multiplies the sum of the marks; AR-GRPO divides it by 4

    def __post_init__(self) -> None:
        self.check("reward.judge")

    def load(self, device: torch.device) -> Scorer:
        """Read the question and the model. Raises ValueError for a bad question, address, key or model."""
        question = _read_question(self.question)
        return _JudgeScorer(self.chat("reward.judge", device), question, self.scale)


class _JudgeScorer(Scorer):
    def __init__(self, chat: Chat, question: _Question, scale: float) -> None:
        self.chat = chat
        self._question = question
        self._scale = scale

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        """Notes: the marks, or the reason why there are none."""
        shown = {i: [picture] for i, picture in enumerate(sound_pictures(images)) if picture}
        questions = [self._question.text.replace("{text}", prompts[i].text) for i in shown]
        answers = self.chat.ask(list(shown.values()), questions, self._question.marks)
        found: dict[int, Mapping[str, float] | Failed] = dict(zip(shown, answers, strict=True))
        values, notes = [], []
        for i in range(len(images)):
            marks = found.get(i, UNSOUND)
            values.append(math.nan if isinstance(marks, Failed) else self._scale * sum(marks.values()))
            notes.append(marks.reason if isinstance(marks, Failed) else _told(marks))
        return Scores.of("judge", torch.tensor(values, dtype=torch.float32, device=images.device), notes)


def _told(marks: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in marks.items())


@dataclass(frozen=True)
class _Question:
    text: str  # with {text} for the prompt
    aspects: tuple[str, ...]  # names of the marks

    def marks(self, reply: str) -> Mapping[str, float] | Failed:
        """The marks in a reply: exactly one JSON object with a number from 0 to 1 for every aspect."""
        found = [answer for answer in _objects(reply) if answer.keys() >= set(self.aspects)]
        if len(found) != 1:
            words = " ".join(reply.split())[:80]
            wanted = ", ".join(self.aspects)
            return Failed(f"expected one JSON object with {wanted}, found {len(found)} in the reply {words!r}")
        for name in self.aspects:
            value = found[0][name]
            # bool is an int in Python; "true" is an answer to another question
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                return Failed(f"{name} is {value!r}, not a number from 0 to 1")
        return {name: float(found[0][name]) for name in self.aspects}


def _objects(reply: str) -> Iterator[dict[str, Any]]:
    """JSON objects in a text, outermost ones only: models like to wrap them in words or code fences."""
    decoder = json.JSONDecoder()
    start = reply.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(reply, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            yield value
        start = reply.find("{", end)


def _read_question(name: str) -> _Question:
    where = "reward.judge.question"
    first, text = read_question(name, Path(__file__), where)
    aspects = tuple(filter(None, (word.strip() for word in first.removeprefix("aspects:").split(","))))
    if not first.startswith("aspects:") or not aspects or not text:
        raise ValueError(f"{where}: line 1 of {name} must read 'aspects: NAME, NAME', and a question follow")
    return _Question(text, aspects)
