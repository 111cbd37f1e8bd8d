"""The commands that make the world's checkpoints write models that load as a user loads them. Seconds each, not
minutes: what they are worth is in their logs beside the weights."""

import pytest
import torch

from burnish.formulas.noise import Noise, generator
from burnish.making.command import main
from burnish.making.gpt import careless, mistaken
from burnish.making.looks import spoiled
from burnish.policies.llamagen import LlamaGen
from burnish.rewards.clip_score import ClipScore
from burnish.rewards.image_classifier import ImageClassifier
from burnish.types import TokenPlan
from burnish.worlds.scenes import moving
from burnish.worlds.scenes.classes import class_prompts
from burnish.worlds.scenes.grammar import everything, heldout
from burnish.worlds.scenes.motion import shows
from burnish.worlds.scenes.moving import draw_moving
from burnish.worlds.scenes.render import captions, draw_scene
from burnish.worlds.scenes.verify import satisfies

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    main(["tokenizer", "--seconds", "3", "--out", str(out / "tokenizer")])
    shared = ["--tokenizer", str(out / "tokenizer"), "--seconds", "1", "--scenes", "64"]
    main(["text", *shared, "--out", str(out / "text")])
    main(["classes", *shared, "--mistakes", "0.5", "--out", str(out / "classes")])
    return out


@pytest.mark.slow
@pytest.mark.parametrize("what", ["text", "classes"])
def test_base_models_draw(made, what):
    encoder = str(made / "text" / "encoder") if what == "text" else ""
    spec = LlamaGen(str(made / what), str(made / "tokenizer"), vq="", text_encoder=encoder, pixels=64)
    prompts = heldout(3) if what == "text" else class_prompts()[:3]
    policy = spec.load(CPU)
    rollout = policy.sample(prompts, TokenPlan(guidance=2.0), Noise(0, 0, (0, 1, 2)))
    assert rollout.media.shape == (3, 3, 64, 64)
    assert (policy.logp(rollout) - rollout.logp).abs().max() < 1e-4
    again = spec.load(CPU)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(policy.parameters(), again.parameters(), strict=True))


@pytest.mark.slow
def test_training_goes_on_from_where_it_was(made):
    start, out = str(made / "classes"), str(made / "more")
    arguments = ["--tokenizer", str(made / "tokenizer"), "--seconds", "1", "--scenes", "64"]
    main(["classes", *arguments, "--start", start, "--out", out])
    assert (made / "more" / "gpt.safetensors").exists()


def test_no_caption_is_true_of_its_mistake():
    draws = generator("mistakes")
    for prompt in [*everything(), *class_prompts()]:
        scene = draw_scene(mistaken(prompt.facts), draws)
        assert not satisfies(scene.objects, prompt.facts), prompt.text


def test_the_share_of_careless_captions():
    pairs = captions(2000, generator("pairs"))
    kept = careless(pairs, 0.25, 0, draw_scene)
    wrong = sum(not satisfies(scene.objects, prompt.facts) for prompt, scene in kept)
    assert [p for p, _ in kept] == [p for p, _ in pairs] and wrong == pytest.approx(500, abs=60)
    assert careless(pairs, 0.0, 0, draw_scene) == pairs


def test_no_caption_of_a_motion_is_true_of_its_mistake():
    draws = generator("moving mistakes")
    for prompt in moving.everything():
        video = draw_moving(mistaken(prompt.facts), draws)
        assert not shows([frame.objects for frame in video], prompt.facts), prompt.text
        assert {o.shape for o in video[0].objects} == {o["shape"] for o in prompt.facts["objects"]}


@pytest.mark.slow
def test_clip_and_quality_score(made):
    main(["clip", "--seconds", "1", "--batch", "8", "--out", str(made / "clip")])
    asked = ["--tokenizer", str(made / "tokenizer"), "--seconds", "1", "--scenes", "64"]
    main(["quality", *asked, "--out", str(made / "quality")])
    images, prompts = torch.rand(2, 3, 64, 64), heldout(2)
    clip = ClipScore(weights=str(made / "clip")).load(CPU)(images, prompts)
    quality = ImageClassifier(weights=str(made / "quality"), output="value").load(CPU)(images, prompts)
    assert clip.valid.all() and quality.valid.all()
    assert clip.total.abs().max() <= 1


def test_an_unknown_command_gets_a_sentence():
    with pytest.raises(ValueError, match="no command 'clop'"):
        main(["clop"])


@pytest.mark.parametrize("amount", [0.0, 0.5, 1.0])
def test_pictures_are_spoiled_more_or_less(amount):
    import numpy as np

    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    gaps = [(spoiled(picture, amount, np.random.default_rng(i)) - picture).abs().mean().item() for i in range(12)]
    assert max(gaps) == 0 if amount == 0 else min(gaps) > 0
