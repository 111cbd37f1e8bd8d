"""The verifier reads what the renderer painted, and is not to be talked into anything else."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import burnish
from burnish.formulas.noise import generator
from burnish.types import Prompt
from burnish.worlds.scenes.grammar import COLOURS, SHAPES, everything, parse, prompt
from burnish.worlds.scenes.read import UNREADABLE, read
from burnish.worlds.scenes.render import BACKGROUNDS, Object, Scene, captions, render
from burnish.worlds.scenes.verify import accuracy, damaged, main, reconstructed, requirements, satisfies, stands, verify

SHIPPED = Path(burnish.__file__).parent / "worlds/scenes/weights/tokenizer"
BACK = (240.0, 240.0, 236.0)
CIRCLE, STAR = Object("circle", "red", 16.0, 32.0, 20.0), Object("star", "blue", 46.0, 34.0, 20.0)


def picture(*objects: Object, back: tuple[float, float, float] = BACK) -> torch.Tensor:
    return render([Scene(objects, back)])


def right(text: str, image: torch.Tensor) -> bool:
    return bool(verify(image, [prompt(text)]).right[0])


@pytest.mark.parametrize("how", ["none", "blur", "jpeg"])
def test_right_on_rendered_scenes(how):
    shares, mistakes = accuracy(200, partial(damaged, how=how, rng=generator(11, how)), seed=11)
    assert shares["all"] >= 0.995, mistakes
    assert shares["mismatched"] >= 0.995


def test_every_object_on_every_background_is_read_as_it_is():
    scenes = [
        Scene((Object(shape, colour, 31.3, 33.8, size, shade),), (float(r), float(g), float(b)))
        for shape in SHAPES
        for colour in COLOURS
        for r, g, b in BACKGROUNDS.values()
        for size, shade in ((18.0, 0.93), (24.0, 1.05))
    ]
    for scene, seen in zip(scenes, read(damaged(render(scenes), "blur", generator(0))), strict=True):
        (true,), (found,) = scene.objects, seen
        assert (found.shape, found.colour) == (true.shape, true.colour), (scene, found)
        assert math.hypot(found.x - true.x, found.y - true.y) < 0.5
        assert found.size == pytest.approx(true.size, abs=0.5)
        if true.colour != "black":  # a few levels of noise are a large part of black
            assert found.shade == pytest.approx(true.shade, abs=0.03)


def test_a_verdict_agrees_with_the_record_for_every_pairing_of_scene_and_prompt():
    scenes = [s for _, s in captions(60, generator(12))]
    seen = read(render(scenes))
    pairs = [(s, o, p.facts) for s, o in zip(scenes, seen, strict=True) for p in everything()[::4]]
    truth = [satisfies(s.objects, facts) for s, _, facts in pairs]
    assert [satisfies(o, facts) for _, o, facts in pairs] == truth
    assert 40 <= sum(truth) < 0.2 * len(truth), "most pairings are wrong, so that rejecting is what is tested"


@pytest.mark.parametrize(
    "images",
    [
        torch.ones(2, 3, 64, 64),
        torch.full((2, 3, 64, 64), 0.92),
        torch.zeros(2, 3, 64, 64),
        torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
        0.94 + 0.3 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
        0.94 + 0.04 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
        torch.full((2, 3, 64, 64), torch.nan),
    ],
    ids=["white", "light", "black", "noise", "light noise", "faint noise", "nan"],
)
def test_pictures_that_show_nothing_are_rejected_for_every_prompt(images):
    for objects in read(images):
        assert not any(satisfies(objects, p.facts) for p in everything())


def test_counts_are_exact_and_nothing_else_is_there():
    both = picture(CIRCLE, STAR)
    assert right("a circle and a star", both) and right("a star and a circle", both)
    assert right("a red circle and a blue star", both)
    assert not right("a blue circle and a red star", both)  # colours belong to their shapes
    assert not right("a circle", both)  # an object too many
    assert right("a circle", picture(CIRCLE)) and right("a red circle", picture(CIRCLE))
    assert not right("a blue circle", picture(CIRCLE))
    three = [Object("square", "green", x, y, 18.0) for x, y in ((14.0, 14.0), (46.0, 14.0), (30.0, 44.0))]
    assert right("three squares", picture(*three)) and not right("two squares", picture(*three))
    assert not right("three squares", picture(*three, Object("circle", "red", 55.0, 50.0, 14.0)))


def test_positions_and_their_margin():
    both = picture(CIRCLE, STAR)
    assert right("a circle left of a star", both) and right("a star right of a circle", both)
    for wrong in (
        "a circle right of a star",
        "a circle above a star",
        "a circle below a star",
        "a star left of a circle",
    ):
        assert not right(wrong, both), wrong
    at = lambda x, y: Object("star", "blue", x, y, 20.0)  # noqa: E731
    one = at(30.0, 30.0)
    assert stands(one, at(38.0, 30.0), "left of") and not stands(one, at(37.0, 30.0), "left of")
    assert stands(one, at(42.0, 50.0), "left of") and not stands(one, at(41.9, 50.0), "left of")  # 12 = 0.6 x 20
    assert stands(one, at(30.0, 45.0), "above") and not stands(one, at(30.0, 45.0), "below")  # y grows downwards


def test_blobs_that_are_no_object_count_and_fit_nothing():
    touching = picture(Object("circle", "red", 24.0, 32.0, 20.0), Object("star", "blue", 40.0, 32.0, 20.0))
    assert UNREADABLE in {word for o in read(touching)[0] for word in (o.shape, o.colour)}
    assert not right("a red circle and a blue star", touching)
    bar = picture(CIRCLE)
    bar[:, :, 50:54, 30:60] = torch.tensor([0.1, 0.1, 0.1]).view(3, 1, 1)
    assert len(read(bar)[0]) == 2 and not right("a circle", bar)
    speck = picture(CIRCLE)
    speck[:, :, 50:53, 50:53] = 0.0  # nine pixels of dirt are no object
    assert right("a circle", speck)
    for odd in (replace(CIRCLE, size=11.0), replace(CIRCLE, size=40.0, x=32.0), replace(CIRCLE, x=3.0)):
        assert not right("a circle", picture(odd)), odd
    brown = picture(CIRCLE)
    brown[:, :, :, :] = torch.where(brown[:, 1:2] < 0.6, torch.tensor([0.35, 0.45, 0.45]).view(1, 3, 1, 1), brown)
    assert not right("a circle", brown)  # a colour that the world does not have
    two_tone = picture(CIRCLE)
    two_tone[:, :, :, 19:] = picture(replace(CIRCLE, colour="purple"))[:, :, :, 19:]  # the right third
    assert read(two_tone)[0][0].colour == UNREADABLE and not right("a red circle", two_tone)
    (dark,) = read(picture(CIRCLE, back=(150.0, 150.0, 150.0)))
    assert [(o.shape, o.colour) for o in dark] == [(UNREADABLE, UNREADABLE)]  # no background of this world


def test_reasons_say_what_is_missing():
    texts = ["a blue circle", "three circles", "a circle below a star", "a circle", "a red circle and a blue star"]
    images = torch.cat([picture(CIRCLE), picture(CIRCLE), picture(CIRCLE, STAR), picture(CIRCLE, STAR), picture()])
    verdicts = verify(images, [prompt(t) for t in texts])
    assert verdicts.reasons == (
        "wants 1 blue circle, sees red",
        "wants three circles, sees 1 circle",
        "wants the circle below the star",
        "wants 1 object in all, sees two objects",
        "wants 1 circle, sees no circles",
    )
    # shape, not colour, total; neither count nor total; all but the relation; shape, not total; nothing of five
    assert verdicts.share.tolist() == pytest.approx([2 / 3, 0, 3 / 4, 1 / 2, 0])


def test_requirements_of_a_relation_without_both_objects():
    unmet = [r.reason for r in requirements([CIRCLE], parse("a circle above a star")) if not r.met]
    assert unmet[1] == "wants the circle above the star, does not see both"


def test_a_picture_reads_the_same_in_any_batch():
    images = render([s for _, s in captions(9, generator(13))])
    assert read(images) == [read(image[None])[0] for image in images]
    assert read(images[:0]) == []


def test_wrong_input_gets_a_sentence():
    with pytest.raises(ValueError, match=r"prompt 'x1'.*does not know the word 'dragon'"):
        verify(picture(CIRCLE), [Prompt("x1", "a dragon")])
    assert verify(picture(CIRCLE), [Prompt("x2", "a red circle")]).right.all()  # no facts, but the text says them
    with pytest.raises(ValueError, match=r"\(b, 3, 64, 64\), not \(1, 3, 32, 32\)"):
        verify(torch.ones(1, 3, 32, 32), [prompt("a circle")])
    with pytest.raises(ValueError, match="1 pictures for 2 prompts"):
        verify(picture(CIRCLE), [prompt("a circle")] * 2)
    with pytest.raises(ValueError, match="choose none, blur or jpeg"):
        damaged(picture(CIRCLE), "rain", generator(0))


def test_the_command_prints_a_table(capsys):
    main(["--scenes", "20"])
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["all"] == ["100.00"] * 3


def test_a_tokenizer_that_knows_nothing_leaves_nothing_to_read(tmp_path):
    from burnish.models.llamagen.files import save_model
    from burnish.models.llamagen.vq import VQConfig, VQModel

    torch.manual_seed(0)
    save_model(VQModel(VQConfig(32, (1, 1, 1, 1), 32, 12, 8)), tmp_path)
    shares, mistakes = accuracy(6, partial(reconstructed, tokenizer=tmp_path))
    assert shares["all"] == 0.0 and len(mistakes) == 6


@pytest.mark.slow
def test_right_on_reconstructions_of_the_tokenizer_that_is_shipped():
    shares, mistakes = accuracy(200, partial(reconstructed, tokenizer=SHIPPED), seed=31)
    assert shares["all"] >= 0.97, mistakes
    assert shares["mismatched"] >= 0.97


@pytest.mark.slow
def test_right_on_six_hundred_scenes_of_another_seed():
    shares, mistakes = accuracy(600, partial(damaged, how="none", rng=generator(0)), seed=21)
    assert shares["all"] >= 0.995, mistakes
