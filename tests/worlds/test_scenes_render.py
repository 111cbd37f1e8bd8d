"""The renderer paints what a scene says, and a drawn scene is what its prompt says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from burnish.formulas.noise import generator
from burnish.worlds.scenes.grammar import SHAPES, everything, is_heldout
from burnish.worlds.scenes.render import GAP, PATCH, RGB, Object, Scene, captions, coverage, draw_scene, render
from burnish.worlds.scenes.verify import satisfies


def paint(*objects: Object) -> torch.Tensor:
    return render([Scene(objects, (240.0, 240.0, 240.0))])[0]


@pytest.mark.parametrize("prompt", everything()[::9], ids=lambda p: p.text)
def test_a_drawn_scene_is_what_the_prompt_says(prompt):
    scene = draw_scene(prompt.facts, generator(1, prompt.id))
    assert satisfies(scene.objects, prompt.facts)
    for i, one in enumerate(scene.objects):
        for middle in (one.x, one.y):
            assert one.size / 2 + 1.5 <= middle <= 62.5 - one.size / 2, "the box is within two pixels of the border"
        for other in scene.objects[:i]:
            apart = max(abs(one.x - other.x), abs(one.y - other.y)) - (one.size + other.size) / 2
            assert apart >= GAP - 1.5, "half a pixel of play for each centre, and one for whole pixels"


def test_same_key_same_scene():
    facts = everything()[-1].facts
    assert draw_scene(facts, generator(3)) == draw_scene(facts, generator(3))
    assert draw_scene(facts, generator(3)) != draw_scene(facts, generator(4))


def test_areas_worked_out_by_hand():
    # Boxes of side 20: circle pi 10^2; square (0.92 x 20)^2; triangle 20 x 20 / 2; cross two arms of 7.6 x 20 less
    # their middle. Star: ten triangles of half its tip and dent radii (11.4, 5.6) times sin 36 degrees.
    areas = {
        "circle": 314.16,
        "square": 338.56,
        "triangle": 200.0,
        "cross": 2 * 7.6 * 20 - 7.6**2,
        "star": 10 * 0.5 * 11.4 * 5.6 * np.sin(np.pi / 5),
    }
    for shape in SHAPES:
        cover = coverage(shape, np.array([[0.3, -0.2]]), np.array([20.0]))[0]
        assert cover.sum() == pytest.approx(areas[shape], rel=0.02), shape
        assert cover.shape == (PATCH, PATCH)


def test_pixels_of_a_square():
    image = paint(Object("square", "red", 20.0, 30.0, 20.0))  # half side 9.2: columns 10.8 to 29.2, rows 20.8 to 39.2
    assert image.shape == (3, 64, 64)
    red = torch.tensor(RGB["red"]) / 255
    assert torch.allclose(image[:, 30, 20], red)
    assert torch.allclose(image[:, 30, 9], torch.full((3,), 240 / 255))
    assert torch.allclose(image[:, 30, 11], red)  # wholly inside
    assert torch.allclose(image[:, 30, 10], 0.2 * red + 0.8 * 240 / 255, atol=1e-4)  # a fifth of pixel 10 is covered
    assert torch.allclose(image[:, 50, 20], torch.full((3,), 240 / 255))


def test_the_triangle_and_the_star_point_upwards():
    for shape, widest in (("triangle", range(40, 44)), ("star", range(26, 31))):  # the base; the points left and right
        dark = 1 - paint(Object(shape, "black", 32.0, 32.0, 24.0)).mean(0)
        assert int((dark > 0.5).sum(1).argmax()) in widest, shape
        assert torch.allclose(dark, dark.flip(1), atol=1e-5), f"the {shape} is mirrored in its axis"


def test_objects_over_the_border_are_cut_off():
    image = paint(Object("circle", "blue", 0.0, 0.0, 24.0))
    assert torch.allclose(image[:, 0, 0], torch.tensor(RGB["blue"]) / 255)
    assert torch.allclose(image[:, 40, 40], torch.full((3,), 240 / 255))


def test_captions_are_true_and_stay_in_their_split():
    pairs = captions(300, generator(5), "train")
    assert not any(is_heldout(p.facts) for p, _ in pairs)
    assert all(satisfies(s.objects, p.facts) for p, s in pairs)
    assert any(is_heldout(p.facts) for p, _ in captions(100, generator(5)))
    assert len({p.facts["category"] for p, _ in pairs}) == 6
