"""Scenes that move: sentences, splits, videos of which they are true, and a verifier that is not to be talked round."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from burnish.formulas.noise import generator
from burnish.rewards.scenes_verified import ScenesVerified
from burnish.suites.scenes import Scenes
from burnish.types import Prompt
from burnish.worlds.scenes import grammar, moving
from burnish.worlds.scenes.motion import accuracy, checks, judge, main, shows
from burnish.worlds.scenes.moving import CATEGORIES, captions, draw_moving, prompt, render_moving
from burnish.worlds.scenes.render import GAP, SIDE, Object
from burnish.worlds.scenes.verify import damaged

CPU = torch.device("cpu")
STAR = Object("star", "blue", 50.0, 50.0, 18.0)


def track(*places: tuple[float, float], shape: str = "circle", colour: str = "red") -> list[Object]:
    return [Object(shape, colour, x, y, 18.0) for x, y in places]


def line(begin: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    return [tuple(place) for place in np.linspace(begin, end, 8)]


def right(text: str, *tracks: list[Object]) -> bool:
    return shows(list(zip(*tracks, strict=True)), prompt(text).facts)


# --- sentences --------------------------------------------------------------------------------------------------------


def test_counts_worked_out_by_hand():
    # 5 x 4; 6 x 5 x 4; 20 ordered pairs x 4 x 6; 20 pairs x 4 x 3 directions; 20 x 2.
    sizes = Counter(p.facts["category"] for p in moving.everything())
    assert sizes == {"motion": 20, "painted": 120, "beside": 480, "both": 240, "towards": 40}
    assert tuple(sizes) == CATEGORIES


def test_every_sentence_means_its_facts():
    prompts = moving.everything()
    assert len({p.text for p in prompts}) == len({p.id for p in prompts}) == len(prompts)
    assert all(prompt(p.text.upper() + ".") == p for p in prompts)
    asked = prompt("a star moving up and a blue square").facts
    assert [o["shape"] for o in asked["objects"]] == ["star", "square"] and asked["objects"][1]["colour"] == "blue"
    assert asked["motions"] == ("up", "still") and asked["relation"] is None
    assert prompt("a circle moving away from a star").facts["motions"] == ("away from", "still")
    assert prompt("a red circle") == grammar.prompt("a red circle")
    with pytest.raises(ValueError, match="does not know the word 'rolling'"):
        prompt("a circle rolling right")


def test_no_held_out_combination_is_in_any_training_prompt_read_from_its_words():
    train, held = moving.train(), moving.heldout()
    assert {p.id for p in train} | {p.id for p in held} == {p.id for p in moving.everything()}
    assert {p.id for p in train}.isdisjoint(p.id for p in held)
    for p in train:
        words = p.text.split()
        for i, word in enumerate(words[:-2]):
            assert not (words[i + 1] == "moving" and (word, words[i + 2]) in moving.HELD_MOTIONS), p.text
        for pair in pairwise(words):
            assert pair not in grammar.HELD_COLOURS, p.text
        assert frozenset(w for w in words if w in grammar.SHAPES) not in grammar.HELD_PAIRS, p.text
    for part in (train, held):
        assert {p.facts["category"] for p in part} == set(CATEGORIES)
    assert {w for p in train for w in p.text.split()} == set(moving.vocabulary())


def test_categories_take_turns():
    assert Counter(p.facts["category"] for p in moving.evenly()) == dict.fromkeys(CATEGORIES, 64)
    assert len({p.id for p in moving.evenly()}) == 320
    assert Counter(p.facts["category"] for p in moving.of_two()) == dict.fromkeys(("beside", "both", "towards"), 64)
    assert all(len(p.facts["objects"]) == 2 for p in moving.of_two())
    asked = moving.heldout(12)
    assert [p.facts["category"] for p in asked] == [CATEGORIES[i % 5] for i in range(12)]
    assert asked == moving.heldout(20)[:12] and asked != moving.heldout(12, seed=1)


# --- videos -----------------------------------------------------------------------------------------------------------


def test_what_is_drawn_is_true_and_fits():
    rng = generator(3)
    for p in moving.everything()[::9]:
        frames = draw_moving(p.facts, rng)
        assert len(frames) == 8 and len({f.background for f in frames}) == 1
        assert shows([f.objects for f in frames], p.facts), p.text
        for frame in frames:
            for o in frame.objects:
                assert o.size / 2 + 2 <= min(o.x, o.y) and max(o.x, o.y) <= SIDE - o.size / 2 - 2
            if len(frame.objects) == 2:
                a, b = frame.objects
                assert max(abs(a.x - b.x), abs(a.y - b.y)) >= (a.size + b.size) / 2 + GAP - 1e-9


def test_no_frame_tells_which_way():
    """Reversed, a video is as likely one of the opposite sentence: the frames alone say nothing."""
    opposite = {"right": "left", "up": "down", "towards": "away from"}
    for word, other in opposite.items():
        second = " a star" if word == "towards" else ""
        asked, reverse = (prompt(f"a circle moving {w}{second}").facts for w in (word, other))
        frames = [f.objects for f in draw_moving(asked, generator(4, word))]
        assert shows(frames, asked) and shows(frames[::-1], reverse) and not shows(frames, reverse)


def test_captions_are_of_their_split():
    pairs = captions(30, generator(5), "heldout")
    assert all(moving.is_heldout(p.facts) for p, _ in pairs) and len({p.facts["category"] for p, _ in pairs}) == 5
    with pytest.raises(ValueError, match="moving prompts have no split 'test'; choose train, heldout or all"):
        captions(1, generator(5), "test")  # pyright: ignore[reportArgumentType]


# --- the verifier -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["none", "blur"])
def test_right_on_rendered_videos(how):
    shares, mistakes = accuracy(25, partial(damaged, how=how, rng=generator(6, how)), seed=6)
    for name in ("all", "reversed", "frozen", "mismatched"):
        assert shares[name] == 1, (name, mistakes)


@pytest.mark.parametrize(
    ("text", "end", "met"),
    [
        ("a circle moving right", (30, 20), True),
        ("a circle moving right", (28, 20), False),  # 8 pixels are too few
        ("a circle moving right", (35, 29), True),
        ("a circle moving right", (35, 31), False),  # as much down as right
        ("a circle moving left", (35, 20), False),
        ("a circle moving down", (20, 35), True),
        ("a circle moving up", (20, 35), False),
    ],
)
def test_what_counts_as_a_direction(text, end, met):
    assert right(text, track(*line((20, 20), end))) is met


def test_a_motion_is_steady():
    path = line((12, 20), (40, 20))
    assert right("a circle moving right", track(*path))
    assert not right("a circle moving right", track(*path[:4], path[2], *path[5:]))  # a step back of four pixels
    assert not right("a circle moving right", track(*[path[0]] * 4, *[path[7]] * 4))  # a jump


def test_what_is_not_said_to_move_stands_still():
    text, star = "a circle moving right and a blue star", [STAR] * 8
    path = track(*line((12, 20), (40, 20)))
    assert right(text, path, star)
    assert right(text, path, [replace(STAR, x=50 + 3 * (i % 2)) for i in range(8)])
    assert not right(text, path, [replace(STAR, y=50 - i) for i in range(8)])
    assert not right(text, track(*[(12, 20)] * 8), [replace(STAR, x=20 + 3.0 * i) for i in range(8)])  # the other moves


def test_towards_is_a_matter_of_distance():
    path, star = line((12, 12), (34, 34)), [STAR] * 8
    assert right("a circle moving towards a star", track(*path), star)
    assert right("a circle moving away from a star", track(*path[::-1]), star)
    assert not right("a circle moving towards a star", track(*line((12, 50), (12, 26))), star)  # past it


def test_an_object_keeps_its_colour():
    path = line((12, 20), (40, 20))
    changed = [*track(*path[:5]), *track(*path[5:], colour="blue")]
    assert not right("a circle moving right", changed) and not right("a red circle moving right", changed)
    assert "red then blue" in checks([[o] for o in changed], prompt("a circle moving right").facts)[-2][0].reason


def test_every_frame_counts():
    path = track(*line((12, 20), (40, 20)))
    frames = [[o] for o in path]
    facts = prompt("a circle moving right").facts
    for spoiled in ([], [path[4], STAR], [replace(path[4], shape="square")]):
        assert not shows([*frames[:4], spoiled, *frames[5:]], facts)


def test_share_is_of_what_is_met_and_a_reason_is_given():
    """A circle that stands still is there, alone and of one colour, in all frames: three of four. It does not move."""
    asked = prompt("a circle moving right")
    still = render_moving([tuple([draw_moving(asked.facts, generator(7))[0]] * 8)])
    found = judge(still, [asked])
    assert not found.right[0] and found.share[0] == 0.75
    assert found.reasons[0] == "wants the circle moving right, it goes +0 right, +0 down"
    assert [o.shape for o in found.seen[0]] == ["circle"]
    empty = torch.cat([still[:, :4], still[:, :4, :, :1, :1].expand(-1, -1, -1, SIDE, SIDE)], 1)
    assert judge(empty, [asked]).share[0] == 0.25  # there and alone in four frames of eight, and then lost


# --- reward and suite -------------------------------------------------------------------------------------------------


def test_the_reward_reads_videos_pictures_and_text_alone():
    pairs = captions(6, generator(8))
    videos = render_moving([frames for _, frames in pairs])
    asked = [p if i % 2 else Prompt(str(i), p.text) for i, (p, _) in enumerate(pairs)]
    score = ScenesVerified().load(CPU)
    assert score(videos, asked).total.tolist() == [1] * 6
    assert score(videos.flip(1), asked).total.tolist() == [0] * 6
    videos[2, 5, 0, 9, 9] = torch.nan
    assert score(videos, asked).valid.tolist() == [True, True, False, True, True, True]
    with pytest.raises(ValueError, match="asks for a motion, which a picture cannot show; draw videos"):
        score(videos[:, 0], asked)


def test_a_sentence_without_motion_is_asked_of_every_frame():
    asked = grammar.prompt("a red circle")
    frames = draw_moving(prompt("a red circle moving up").facts, generator(9))
    bare = replace(frames[3], objects=())
    whole, spoiled = render_moving([frames, (*frames[:3], bare, *frames[4:])]).split(1)
    assert judge(whole, [asked]).right[0] and not judge(spoiled, [asked]).right[0]


def test_the_suite_asks_held_out_motions():
    asked = Scenes("moving", count=10).questions()
    assert all(moving.is_heldout(p.facts) for p in asked) and len({p.facts["category"] for p in asked}) == 5
    assert not any(moving.is_heldout(p.facts) for p in Scenes("moving_train", count=10).questions())
    assert Scenes.videos and ScenesVerified.videos


def test_the_command_prints_a_table(capsys):
    main(["--scenes", "2", "--damage", "none"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["right,", "percent", "none"] and lines[6].split() == ["all", "100.00"]
