"""Scores that processes share out are those of one process, also where samples of a prompt are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from threading import Barrier
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from burnish.core import Scorer
from burnish.engine.ranks import Ranks, ScoresTogether
from burnish.types import Prompt, Scores

T = TypeVar("T")


class Threads(Ranks):
    """Processes that are threads of this one."""

    def __init__(self, number: int, table: list, barrier: Barrier) -> None:
        self.number, self.count = number, len(table)
        self._table, self._barrier = table, barrier

    def gathered(self, value: T) -> list[T]:
        self._table[self.number] = value
        self._barrier.wait(60)
        found = list(self._table)
        self._barrier.wait(60)
        return found

    def first(self, make: Callable[[], T]) -> T:
        raise NotImplementedError

    def add(self, tensors: Sequence[Tensor]) -> None:
        raise NotImplementedError

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()


class Wins(Scorer):
    """Share of the other samples of its prompt, of a call, that a sample beats; the note says which it met."""

    def __init__(self) -> None:
        self.seen: list[int] = []  # samples of each call

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        self.seen.append(len(prompts))
        values = images.flatten(1).mean(1)
        same = torch.tensor([[p.id == other.id for other in prompts] for p in prompts]).fill_diagonal_(False)
        beaten = (values[:, None] > values) & same
        met = [",".join(f"{float(value):.3f}" for value in values[row]) for row in same]
        return Scores.of("wins", beaten.sum(1) / same.sum(1), met)


def of_all(names: str, count: int) -> tuple[Scores, list[Scores], list[Wins]]:
    """The scores of prompts with these names: of one process, of each of `count`, and who scored them."""
    prompts = tuple(Prompt(name, name) for name in names)
    images = torch.rand(len(prompts), 3, 2, 2, generator=torch.Generator().manual_seed(1))
    scorers, barrier, table = [Wins() for _ in range(count)], Barrier(count), [None] * count
    everyone = [ScoresTogether(scorer, Threads(i, table, barrier)) for i, scorer in enumerate(scorers)]
    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(lambda one: one(images, prompts), everyone))
    return Wins()(images, prompts).noted(), found, scorers


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("names", ["aaabbbccc", "aabbbbbbcdd", "abcabcab", "aaaaaa", "abcdefg"])
def test_the_number_of_processes_changes_no_score(names: str, count: int) -> None:
    alone, found, scorers = of_all(names, count)
    for scores in found:
        assert torch.equal(scores.total.nan_to_num(-1), alone.total.nan_to_num(-1))
        assert torch.equal(scores.valid, alone.valid) and scores.notes == alone.notes
        assert torch.equal(scores.parts["wins"].nan_to_num(-1), alone.parts["wins"].nan_to_num(-1))
    seen = [sum(scorer.seen) for scorer in scorers]
    assert sum(seen) == len(names), "each sample is scored once"
    assert sum(map(bool, seen)) == min(count, len(set(names))), "whoever can have a prompt has one"


def test_prompts_that_are_asked_once_are_shared_out_evenly() -> None:
    assert [scorer.seen for scorer in of_all("abcdefgh", 4)[2]] == [[2]] * 4
