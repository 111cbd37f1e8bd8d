"""Laws of the prompts: sentences and facts are one thing, and no held-out combination leaks into training."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from burnish.worlds.scenes import grammar
from burnish.worlds.scenes.classes import CLASSES, class_prompts
from burnish.worlds.scenes.grammar import CATEGORIES, COLOURS, SHAPES


def test_counts_worked_out_by_hand():
    # 4 phrases x 5 shapes; 5 x 4 ordered pairs; 3 numbers x 5; 6 x 5; 20 pairs x 4 relations; 20 x (6 x 5).
    sizes = Counter(p.facts["category"] for p in grammar.everything())
    assert sizes == {"single": 20, "two": 20, "counting": 15, "colours": 30, "position": 80, "attribution": 600}


def test_every_sentence_means_its_facts_and_no_two_are_equal():
    prompts = grammar.everything()
    assert len({p.text for p in prompts}) == len({p.id for p in prompts}) == len(prompts)
    for prompt in prompts:
        assert grammar.parse(prompt.text) == prompt.facts
    assert grammar.parse("  A red Circle. ")["objects"] == ({"shape": "circle", "colour": "red", "count": 1},)
    assert grammar.parse("a star above a cross") == {
        "world": "scenes",
        "category": "position",
        "objects": (
            {"shape": "star", "colour": None, "count": 1},
            {"shape": "cross", "colour": None, "count": 1},
        ),
        "relation": "above",
        "phrase": None,
    }


def test_split_is_a_partition():
    train, held = grammar.train(), grammar.heldout()
    assert {p.id for p in train}.isdisjoint(p.id for p in held)
    assert {p.id for p in train} | {p.id for p in held} == {p.id for p in grammar.everything()}
    for part in (train, held):
        assert {p.facts["category"] for p in part} == set(CATEGORIES)


def test_no_heldout_combination_is_in_any_training_prompt_read_from_its_words():
    singular = {"circles": "circle", "squares": "square", "triangles": "triangle", "stars": "star", "crosses": "cross"}
    for prompt in grammar.train():
        words = [singular.get(w, w) for w in prompt.text.split()]
        shapes = [w for w in words if w in SHAPES]
        for before, word in pairwise(words):
            assert (before, word) not in grammar.HELD_COLOURS, prompt.text
            number = {v: k for k, v in grammar.NUMBERS.items()}.get(before)
            assert (number, word) not in grammar.HELD_COUNTS, prompt.text
        assert frozenset(shapes) not in grammar.HELD_PAIRS, prompt.text


def test_every_word_is_trained_on_and_every_shape_is_held_out_somewhere():
    assert {w for p in grammar.train() for w in p.text.split()} == set(grammar.vocabulary())
    for category in CATEGORIES:
        held = {o["shape"] for p in grammar.heldout() if p.facts["category"] == category for o in p.facts["objects"]}
        assert held == set(SHAPES), category
    assert {c for c, _ in grammar.HELD_COLOURS} == set(COLOURS)


def test_balanced_heldout_takes_turns_and_extends():
    some = grammar.heldout(60)
    assert Counter(p.facts["category"] for p in some) == dict.fromkeys(CATEGORIES, 10)
    assert grammar.heldout(120)[:60] == some
    assert grammar.heldout(60, seed=1) != some
    counted = Counter(p.id for p in some if p.facts["category"] == "counting")
    assert set(counted.values()) == {2}  # five prompts, ten places
    assert grammar.heldout(0) == ()


def test_sentences_outside_the_grammar_are_told_what_would_work():
    with pytest.raises(ValueError, match=r"'crcle'; did you mean 'circle'"):
        grammar.parse("a red crcle")
    with pytest.raises(ValueError, match="nearest one is 'a red circle'"):
        grammar.parse("red circle")
    with pytest.raises(ValueError, match="nearest one is 'three squares'"):
        grammar.parse("three square")
    with pytest.raises(ValueError, match="not a sentence"):
        grammar.parse("")
    with pytest.raises(ValueError, match="choose train, heldout or all"):
        grammar.choose("test")  # pyright: ignore[reportArgumentType]


def test_classes_are_numbered_in_order():
    prompts = class_prompts()
    assert len(prompts) == len(CLASSES) == 30
    for number, (prompt, (colour, shape)) in enumerate(zip(prompts, CLASSES, strict=True)):
        assert prompt.facts["class_id"] == number
        assert prompt.facts["objects"] == ({"shape": shape, "colour": colour, "count": 1},)
