"""Which samples of a draw share a part of their way, so that it is computed once.

States are numbered from 0, the starting noise, to `steps`, the picture. `leader[i, j]` is one of the samples that have
the same state j as sample i. Independent samples lead themselves everywhere. A sample may skip states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def tree(
    group: int, steps: int, stochastic: Sequence[int], forks: Sequence[tuple[int, int]], shared_start: bool
) -> tuple[Int[Tensor, "g s"], Bool[Tensor, "g t"]]:
    """(leader, drawn) of one group, s = steps + 1 and t = steps. `drawn[i, j]`: step j of sample i is drawn at random.

    With a shared start, samples part at the first step that is drawn at random and does not fork. With forks a group
    holds `group / leaves` trees; a branch parts into its children in the step that it forks at.
    """
    leaves = math.prod(children for _, children in forks)
    drawn = torch.zeros(group, steps, dtype=torch.bool)
    drawn[:, list(stochastic)] = True
    if not forks:
        parted = min(stochastic, default=steps) if shared_start else -1
        samples = torch.arange(group).unsqueeze(1).expand(group, steps + 1)
        return torch.where(torch.arange(steps + 1) > parted, samples, 0 if shared_start else samples), drawn
    children = dict(forks)
    leader = torch.empty(group, steps + 1, dtype=torch.long)
    below = leaves  # samples that share a state
    for state in range(steps + 1):
        leader[:, state] = torch.arange(group) // below * below
        if state in children:
            below //= children[state]
    if shared_start:
        parted = min(children)
        leader[:, : parted + 1] = 0
    return leader, drawn


def star(
    group: int, steps: int, branches: Sequence[int], ways: Sequence[Sequence[int]] = ()
) -> tuple[Int[Tensor, "g s"], Bool[Tensor, "g t"]]:
    """(leader, drawn) of one group whose samples leave one deterministic path, equally many at each step of `branches`.

    A sample is drawn at random in the step it leaves by, and in no other (TempFlow-GRPO, G2RPO). With several `ways`
    for each branch, the n-th sample on each of them is the same until their ways part.
    """
    each = group // len(branches)
    leaves_at = torch.tensor(branches).repeat_interleave(each).unsqueeze(1)
    samples = torch.arange(group).unsqueeze(1)
    longest = int(leaves_at.argmax())  # a sample that stays on the path as long as any
    on_way = each // max(1, len(ways) // len(branches))
    likes = samples // each * each + samples % on_way + torch.arange(0, each, on_way)  # the same one on every way
    seen = visited(group, steps, ways)
    alike = (seen[likes] == seen.unsqueeze(1)).cumprod(2)  # their ways to a state are one
    own = likes.gather(1, alike.argmax(1))  # the first such
    leader = torch.where(torch.arange(steps + 1) > leaves_at, own, longest)
    return leader, torch.arange(steps) == leaves_at


def visited(group: int, steps: int, ways: Sequence[Sequence[int]]) -> Bool[Tensor, "g s"]:
    """visited[i, j]: sample i of a group goes through state j. Equally many take each way; () is one through all."""
    seen = torch.zeros(max(1, len(ways)), steps + 1, dtype=torch.bool)
    for row, way in zip(seen, ways or [range(steps + 1)], strict=True):
        row[list(way)] = True
    return seen.repeat_interleave(group // len(seen), 0)


def ends(seen: Bool[Tensor, "b s"]) -> Int[Tensor, "b t"]:
    """Where a step from each state ends: the next one that is visited."""
    last = seen.shape[1] - 1
    later = torch.where(seen, torch.arange(last + 1), last)
    return later.flip(1).cummin(1).values.flip(1)[:, 1:]


def lanes(
    candidates: int, steps: int, parted: Sequence[int], chosen: Int[Tensor, "n p"]
) -> Int[Tensor, "n*candidates s"]:
    """leader of n ways of `candidates` samples each, that part in the steps `parted` and go on from the one `chosen`.

    All samples of a way have one state, that of the chosen sample after a step they part in, of the first otherwise.
    """
    first = torch.arange(len(chosen)) * candidates
    leader = first.unsqueeze(1).repeat(1, steps + 1)
    leader[:, [step + 1 for step in parted]] += chosen
    return leader.repeat_interleave(candidates, 0)


def authors(leader: Int[Tensor, "b s"], candidates: int, parted: Sequence[int]) -> Int[Tensor, "b t"]:
    """Who draws what sample i draws in step j: the leader of the state after it, or i itself as a candidate."""
    author = leader[:, 1:].clone()
    if candidates > 1:
        author[:, list(parted)] = torch.arange(len(leader)).unsqueeze(1)
    return author


def evaluations(leader: Int[Tensor, "b s"], seen: Bool[Tensor, "b s"]) -> Tensor:
    """Network evaluations that each sample stands for, (b); one that n samples share counts 1/n for each of them."""
    total = torch.zeros(len(leader))
    for column, here in zip(leader[:, :-1].T, seen[:, :-1].T, strict=True):
        _, inverse, count = column[here].unique(return_inverse=True, return_counts=True)
        total[here] += 1 / count[inverse]
    return total
