"""Scores of a rollout, checked; and what to do about groups that teach nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from burnish.core import Policy, Scorer, Source
from burnish.formulas.groups import flat
from burnish.laps import lap
from burnish.types import Rollout, Scores, concatenate, moved, take

ATTEMPTS = 4  # draws of one step, the first included, before a flat group is given up


@dataclass(frozen=True)
class Scored:
    """Samples with their scores, and which of them count in the loss."""

    rollout: Rollout
    scores: Scores
    keep: Bool[Tensor, " b"]
    flat: int  # groups of the first draw whose scores were all equal
    drawn: int  # samples drawn in all, refills included
    evaluations: float  # of the network for all of these; 0 for a policy whose draws do not count them


def scored(rollout: Rollout, scorer: Scorer, name: str, step: int) -> Scores:
    """The scores of a rollout, without gradient and on its device.

    Raises ValueError, naming reward, step, sample and prompt, for a reward that raises, or returns the wrong shape or a
    value that is not finite and yet called valid.
    """
    b = len(rollout)
    try:
        with lap("scoring"), torch.no_grad():
            found = Scores.require(scorer(rollout.media, rollout.prompts))
    except Exception as e:  # a reward may be anybody's code: there is no naming what it raises
        raise ValueError(f"{name}: the reward failed at step {step}: {type(e).__name__}: {e}") from e
    for what, value in {"total": found.total, "valid": found.valid, **found.parts}.items():
        if value.shape != (b,):
            raise ValueError(
                f"{name}: {what!r} has shape {tuple(value.shape)} for {b} samples (first: sample {rollout.ids[0]}, "
                f"prompt {rollout.prompts[0].id!r}); one value for each picture was expected, shape ({b},)"
            )
    wrong = (found.valid & ~torch.isfinite(found.total)).nonzero()
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(
            f"{name}: sample {rollout.ids[i]} of step {step}, prompt {rollout.prompts[i].id!r} "
            f"({rollout.prompts[i].text!r}), scored {float(found.total[i])} and called valid; "
            "a score that cannot be computed is valid = False (Scores.of does that by itself)"
        )
    total = found.total.detach()
    parts = {name: value.detach() for name, value in found.parts.items()}
    return moved(replace(found, total=total, parts=parts).noted(), rollout.logp.device)


def settled(
    first: tuple[Rollout, Scores],
    flat_groups: Literal["keep", "drop", "refill"],
    source: Source,
    policy: Policy,
    scorer: Scorer,
    step: int,
    seed: int,
) -> Scored:
    """Keep, drop or refill the groups whose valid scores are all equal.

    A refilled group is replaced by the first of up to ATTEMPTS - 1 later draws of its prompt that is not flat; if none
    is, it stays and does not count. Only the prompts of flat groups are drawn again.
    """
    rollout, scores = first
    dull = flat(scores.total, rollout.group, scores.valid)
    dull_at_first = len(rollout.group[dull].unique())
    drawn, evaluations = len(rollout), _evaluations(rollout)
    if flat_groups == "refill":
        place = {prompt.id: number for number, prompt in enumerate(source.prompts_at(step, seed))}
        for attempt in range(1, ATTEMPTS):
            if not dull.any():
                break
            asked = {rollout.prompts[i].id for i in dull.nonzero().squeeze(1).tolist()}
            again = source.draw(policy, step, seed, attempt, scorer, sorted(place[name] for name in asked))
            drawn, evaluations = drawn + len(again), evaluations + _evaluations(again)
            fresh = scored(again, scorer, "reward", step)
            rollout, scores = _replaced((rollout, scores), dull, (again, fresh))
            dull = flat(scores.total, rollout.group, scores.valid)
    keep = scores.valid if flat_groups == "keep" else scores.valid & ~dull
    return Scored(rollout, scores, keep, dull_at_first, drawn, evaluations)


def _evaluations(rollout: Rollout) -> float:
    return 0.0 if rollout.evaluations is None else float(rollout.evaluations.sum())


def _replaced(old: tuple[Rollout, Scores], dull: Tensor, new: tuple[Rollout, Scores]) -> tuple[Rollout, Scores]:
    """Flat groups of `old` give way to the groups of the same number in `new` that are not flat."""
    lively = ~flat(new[1].total, new[0].group, new[1].valid)
    better = set(new[0].group[lively].tolist()) & set(old[0].group[dull].tolist())
    if not better:
        return old
    names = torch.tensor(sorted(better), device=old[0].group.device)
    stay = (~torch.isin(old[0].group, names)).nonzero().squeeze(1)
    come = torch.isin(new[0].group, names).nonzero().squeeze(1)
    rollout = concatenate([take(old[0], stay), take(new[0], come)])
    scores = concatenate([take(old[1], stay), take(new[1], come)])
    order = rollout.group.argsort(stable=True)  # groups where they were: samples of one prompt lie together
    return take(rollout, order), take(scores, order)


def something_valid(scores: Scores, step: int) -> None:
    """Raises ValueError if no score at all could be computed."""
    if not scores.valid.any():
        said = next((n for notes in scores.notes.values() for n in notes if n), "the reward left no note")
        raise ValueError(
            f"step {step}: none of the {len(scores.valid)} samples could be scored ({said}); "
            "the weights were not changed"
        )
