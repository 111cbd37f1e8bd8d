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
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Reward, Scorer
from burnish.models.chat import Chat, Endpoint, Failed, key_from, load_local_chat
from burnish.models.pixels import to_bytes
from burnish.models.released import Dtype
from burnish.types import Prompt, Scores


@dataclass(frozen=True)
class Judge(Reward):
    """Marks of a vision-language model. Set `endpoint` for a server, leave it empty for a local model."""

    model: str = "Qwen/Qwen2.5-VL-3B-Instruct"  # name of the model at the endpoint; hub id or folder of a local one
    question: str = "match"  # match, fake, weird, or the path of a text file like theirs
    endpoint: str = (
        ""  # base address of an OpenAI-compatible server, as in http://localhost:8000/v1; empty: a local model
    )
    key_variable: str = ""  # environment variable that holds the server's key; empty: no key
    ping: bool = False  # ask the server for its models before the run starts
    timeout: float = 60.0  # seconds for one attempt; a reply that trickles in can stretch it to twice that
    retries: int = 3  # further attempts after a failure that may pass, or an unreadable reply
    pause: float = 0.5  # seconds before the first retry; doubled each time up to 30, with jitter
    concurrency: int = 8  # questions under way at once
    encoding: Literal["png", "jpeg"] = "png"  # of the pictures sent to a server
    tokens: int = 256  # longest reply
    scale: float = 0.25  # multiplies the sum of the marks; AR-GRPO divides it by 4
    dtype: Dtype = "bfloat16"  # of a local model's weights
    batch: int = 8  # questions in one forward pass of a local model

    def __post_init__(self) -> None:
        if self.retries < 0 or self.concurrency < 1 or self.timeout <= 0 or self.pause < 0:
            raise ValueError(
                "reward.judge: expected retries of at least 0, concurrency of at least 1, a timeout above 0 and a "
                f"pause of at least 0; got {self.retries}, {self.concurrency}, {self.timeout:g}, {self.pause:g}"
            )

    def load(self, device: torch.device) -> Scorer:
        """Read the question and the model. Raises ValueError for a bad question, address, key or model."""
        question = _read_question(self.question)
        if not self.endpoint:
            chat = load_local_chat(self.model, "reward.judge.model", device, self.dtype, self.batch, self.tokens)
            return _JudgeScorer(chat, question, self.scale)
        if not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(
                f"reward.judge.endpoint: {self.endpoint!r} is no address; expected http://... or https://..."
            )
        chat = Endpoint(
            self.endpoint, self.model, key_from(self.key_variable, "reward.judge.key_variable"), self.timeout,
            self.retries, self.pause, self.concurrency, self.tokens, self.encoding,
        )  # fmt: skip
        if self.ping:
            _ping(chat)
        return _JudgeScorer(chat, question, self.scale)


def _ping(chat: Endpoint) -> None:
    try:
        chat.ping()
    except ValueError as error:
        raise ValueError(f"reward.judge.endpoint: {error}; start the server, or set ping: false to go on") from error


class _JudgeScorer(Scorer):
    def __init__(self, chat: Chat, question: _Question, scale: float) -> None:
        self.chat = chat
        self._question = question
        self._scale = scale

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        """Notes: the marks, or the reason why there are none."""
        from PIL import Image

        pictures = [Image.fromarray(levels) for levels in to_bytes(images)]
        # 8 bits cannot hold a NaN, so a broken picture must not reach the judge as a plausible one.
        sound = images.detach().flatten(1).isfinite().all(1).tolist()
        asked = [i for i, ok in enumerate(sound) if ok]
        questions = [self._question.text.replace("{text}", prompts[i].text) for i in asked]
        answers = self.chat.ask([pictures[i] for i in asked], questions, self._question.marks)
        found: dict[int, Mapping[str, float] | Failed] = dict(zip(asked, answers, strict=True))
        values, notes = [], []
        for i in range(len(pictures)):
            marks = found.get(i, Failed("the picture holds NaN or infinity"))
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
    own = Path(__file__).parent / f"judge_{name}.txt"
    path = own if own.is_file() else Path(name)
    try:
        first, _, text = path.read_text("utf-8").partition("\n")
    except (OSError, UnicodeDecodeError) as error:
        choices = ", ".join(sorted(file.stem.removeprefix("judge_") for file in own.parent.glob("judge_*.txt")))
        raise ValueError(f"reward.judge.question: {name!r} is no text file (choices: {choices}, or a path)") from error
    aspects = tuple(filter(None, (word.strip() for word in first.removeprefix("aspects:").split(","))))
    if not first.startswith("aspects:") or not aspects or not text.strip():
        raise ValueError(
            f"reward.judge.question: line 1 of {path} must read 'aspects: NAME, NAME', and a question follow"
        )
    return _Question(text.strip(), aspects)
