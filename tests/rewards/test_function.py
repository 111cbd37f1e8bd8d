"""A callable of the user's as a reward: what it may return, and what is said when it returns something else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from burnish.rewards.function import Function
from burnish.types import Prompt, Scores

IMAGES = torch.rand(3, 3, 4, 4)
PROMPTS = [Prompt(str(i), "x") for i in range(3)]


def asked(function) -> Scores:
    return Function("mine:score", function).load(torch.device("cpu"))(IMAGES, PROMPTS)


@pytest.mark.parametrize(
    "found",
    [[1, 2, 3], (1.0, 2.0, 3.0), np.array([1, 2, 3]), torch.tensor([1, 2, 3]), torch.tensor([1.0, 2, 3]).double()],
)
def test_numbers_of_any_kind_are_scores(found):
    scores = asked(lambda images, prompts: found)
    assert scores.total.tolist() == [1, 2, 3] and scores.total.dtype == torch.float32
    assert list(scores.parts) == ["score"] and scores.valid.all()


def test_what_is_not_finite_is_invalid_and_not_zero():
    scores = asked(lambda images, prompts: [1.0, math.nan, math.inf])
    assert scores.valid.tolist() == [True, False, False]
    assert scores.total[1:].isnan().all()


def test_scores_pass_through():
    given = Scores.of("own", torch.ones(3), ["a", "b", "c"])
    assert asked(lambda images, prompts: given) is given


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ([1.0, 2.0], r"reward mine:score must return shape \(3,\), one number a sample, got shape \(2,\)"),
        (1.0, r"got shape \(\)"),
        (torch.ones(3, 1), r"got shape \(3, 1\)"),
        (Scores.of("own", torch.ones(2)), r"got shape \(2,\)"),
        (None, "reward mine:score must return one number for each sample, got NoneType"),
        (["a", "b", "c"], "must return one number for each sample, got list"),
        (torch.ones(3, dtype=torch.complex64), "must return real numbers"),
    ],
)
def test_anything_else_gets_a_sentence(found, sentence):
    with pytest.raises(ValueError, match=sentence):
        asked(lambda images, prompts: found)


def test_what_it_raises_is_named_and_kept():
    def broken(images, prompts):
        raise KeyError("colour")

    with pytest.raises(ValueError, match="reward mine:score raised KeyError: 'colour'") as problem:
        asked(broken)
    assert isinstance(problem.value.__cause__, KeyError)


def test_a_name_is_imported_when_it_is_loaded():
    found = Function("numpy:ones_like").load(torch.device("cpu"))
    with pytest.raises(ValueError, match="numpy:ones_like"):
        found(IMAGES, PROMPTS)
    with pytest.raises(ValueError, match="cannot import 'nowhere_at_all'"):
        Function("nowhere_at_all:f").load(torch.device("cpu"))
    with pytest.raises(ValueError, match="no function 'absent'; a reward given in Python must be given again"):
        Function("numpy:absent").load(torch.device("cpu"))
