"""A vision-language model asked which of two pictures is better, for all pairs of a prompt: win rates.

Pref-GRPO (arXiv:2508.20751) asks UnifiedReward-Think. The question is a text file beside this one,
`pairwise_judge_better.txt`, or a file of yours: its first line has the two answers, `answers: A | B`, and `{text}`
stands for the prompt. For UnifiedReward-Think's own words they are `Image 1 is better` and `Image 2 is better`.

The last <answer> of a reply must hold exactly one of the two. In a reply without <answer>, the last line must be one of
them, with nothing but spaces and asterisks around it, and no <think> may be open. Pref-GRPO's released code
(unifiedreward_think.py) takes <answer> only, and gives half otherwise. Here `unread: half` gives half for a whole reply
that does not answer. No reply, or one that was cut off, is never half: that comparison is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Reward, Scorer
from burnish.models.chat import UNSOUND, Chat, ChatSettings, Failed, read_question, sound_pictures
from burnish.prompts import by_prompt
from burnish.types import Prompt, Scores


@dataclass(frozen=True)
class PairwiseJudge(ChatSettings, Reward):
    """Share of the comparisons with other samples of its prompt that a picture wins.

    n samples of a prompt are n (n - 1) / 2 questions. A picture that could be compared with none (alone, not a number,
    or no reply could be read) has no score, and the note says why; where a suite draws one of a prompt, that is all.
    """

    compares = True

    question: str = "better"  # better, or the path of a text file like it
    orders: Literal["one", "both"] = "one"  # both: each pair is asked about twice, and neither is always shown first
    unread: Literal["left_out", "half"] = "left_out"  # a reply without an answer; half: both win half, as released
    tokens: int = 2048  # longest reply; the question lets the model think, and one that is cut off is a failure

    def __post_init__(self) -> None:
        self.check("reward.pairwise_judge")

    def load(self, device: torch.device) -> Scorer:
        """Read the question and the model. Raises ValueError for a bad question, address, key or model."""
        question = _read_question(self.question)
        return _PairwiseScorer(self.chat("reward.pairwise_judge", device), question, self)


class _PairwiseScorer(Scorer):
    def __init__(self, chat: Chat, question: _Question, settings: PairwiseJudge) -> None:
        self.chat, self._question, self._settings = chat, question, settings

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        """Notes: how many comparisons a picture has won, or the reason why there are none."""
        pictures = sound_pictures(images)
        sound = ([i for i in some if pictures[i]] for some in by_prompt(prompts))
        pairs = [pair for some in sound for pair in combinations(some, 2)]
        if self._settings.orders == "both":
            pairs += [(second, first) for first, second in pairs]
        shown = [[one for i in pair if (one := pictures[i])] for pair in pairs]
        asked = [self._question.text.replace("{text}", prompts[first].text) for first, _ in pairs]
        won, compared = [0.0] * len(images), [0] * len(images)
        why = ["no other sample of its prompt can be seen" if picture else UNSOUND.reason for picture in pictures]
        for pair, answer in zip(pairs, self.chat.ask(shown, asked, self._question.winner), strict=True):
            if isinstance(answer, Failed) and not (answer.replied and self._settings.unread == "half"):
                why = [answer.reason if i in pair else old for i, old in enumerate(why)]
                continue
            for place, i in enumerate(pair):
                compared[i] += 1
                won[i] += 0.5 if isinstance(answer, Failed) else float(answer == place)
        values = [w / n if n else math.nan for w, n in zip(won, compared, strict=True)]
        notes = [f"won {w:g} of {n}" if n else reason for w, n, reason in zip(won, compared, why, strict=True)]
        return Scores.of("pairwise_judge", torch.tensor(values, dtype=torch.float32, device=images.device), notes)


@dataclass(frozen=True)
class _Question:
    text: str  # with {text} for the prompt
    answers: tuple[str, str]  # the first picture is better, or the second

    def winner(self, reply: str) -> int | Failed:
        """0 or 1: which picture's answer the last <answer> holds, or the last line is."""
        found = re.findall(r"<answer>(.*?)</answer>", reply, re.DOTALL)
        said = found[-1] if found else _last_line(reply)
        here = [i for i, answer in enumerate(self.answers) if (answer in said if found else answer == said)]
        if len(here) != 1:
            first, second = self.answers
            words = " ".join(reply.split())[-80:]
            return Failed(f"expected one of {first!r} and {second!r} in <answer> or as the last line, got {words!r}")
        return here[0]


def _last_line(reply: str) -> str:
    """The last line with words, or "" while a <think> is open: what is thought is not yet said."""
    if reply.rfind("<think>") > reply.rfind("</think>"):
        return ""
    return next((bare for line in reversed(reply.splitlines()) if (bare := _bare(line))), "")


def _bare(words: str) -> str:
    return words.strip().strip("*").strip()


def _read_question(name: str) -> _Question:
    where = "reward.pairwise_judge.question"
    first, text = read_question(name, Path(__file__), where)
    answers = tuple(filter(None, (_bare(word) for word in first.removeprefix("answers:").split("|"))))
    clear = len(answers) == 2 and answers[0] not in answers[1] and answers[1] not in answers[0]
    if not first.startswith("answers:") or not clear or not text:
        raise ValueError(
            f"{where}: line 1 of {name} must read 'answers: FIRST IS BETTER | SECOND IS BETTER', a question follows"
        )
    return _Question(text, (answers[0], answers[1]))
