"""The judge against a real server on this machine that answers well, badly, late, or not at all, and a local model."""

from __future__ import annotations

import gc
import itertools
import json
import math
import re
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from chat_server import picture_of, pictures_of, question_of
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from burnish.models import chat
from burnish.models.chat import Failed
from burnish.models.pixels import to_bytes
from burnish.rewards.judge import Judge, _read_question

GOOD = '{"objects": 1, "attributes": 0.5, "counts": 1.0, "relations": 0, "quality": 0.25}'


def judge(server, cpu, **settings):
    settings = {"model": "tiny", "timeout": 30.0, "pause": 0.01} | settings
    return Judge(endpoint=server.url, **settings).load(cpu)


def test_a_good_answer_is_the_scaled_sum_of_its_marks(serve, cpu, pictures, prompts):
    server = serve(lambda handler, body, number: handler.say(GOOD))
    scores = judge(server, cpu)(pictures(2, 8, 10), prompts("a red circle", "two {squares}"))
    assert scores.total.tolist() == [2.75 / 4] * 2 and scores.valid.all()
    assert scores.notes["judge"][0] == "objects 1, attributes 0.5, counts 1, relations 0, quality 0.25"
    assert {path for path, _, _ in server.requests} == {"/v1/chat/completions"}
    bodies = sorted((body for _, _, body in server.requests), key=question_of)
    assert "Description: a red circle" in question_of(bodies[0]) and "Description: two {squares}" in question_of(
        bodies[1]
    )
    assert bodies[0]["temperature"] == 0 and bodies[0]["model"] == "tiny" and bodies[0]["max_tokens"] == 256
    kind, sent = picture_of(bodies[0])
    assert kind == "data:image/png"
    np.testing.assert_array_equal(sent, to_bytes(pictures(2, 8, 10))[0])


def test_each_picture_gets_its_own_answer_at_bounded_concurrency(serve, cpu, prompts):
    """The mark is read off the picture, and early questions are answered last."""

    def answer(handler, body, number):
        time.sleep(0.15 if number <= 3 else 0.02)
        handler.say(json.dumps({"real": int(picture_of(body)[1][0, 0, 0]) / 255}))

    server = serve(answer)
    levels = torch.tensor([0, 50, 100, 150, 200, 250, 255, 20, 70])
    images = (levels / 255)[:, None, None, None].expand(-1, 3, 4, 4)
    scores = judge(server, cpu, question="fake", concurrency=3)(images, prompts(*"abcdefghi"))
    torch.testing.assert_close(scores.total, levels / 255 / 4)
    assert 1 < server.most <= 3


def test_jpeg_pictures_and_a_key_from_the_environment(serve, cpu, pictures, prompts, monkeypatch):
    server = serve(lambda handler, body, number: handler.say('{"ordinary": 1}'))
    monkeypatch.setenv("BURNISH_TEST_KEY", "sesame")
    scorer = judge(server, cpu, question="weird", encoding="jpeg", key_variable="BURNISH_TEST_KEY", ping=True)
    assert scorer(pictures(1), prompts("")).total.tolist() == [0.25]
    assert [path for path, _, _ in server.requests] == ["/v1/models", "/v1/chat/completions"]
    assert all(headers["Authorization"] == "Bearer sesame" for _, headers, _ in server.requests)
    assert picture_of(server.requests[1][2])[0] == "data:image/jpeg"


def test_garbage_is_invalid_after_the_retries(serve, cpu, pictures, prompts):
    server = serve(lambda handler, body, number: handler.say("I like it!"))
    scores = judge(server, cpu, retries=2)(pictures(1), prompts("x"))
    assert len(server.requests) == 3
    assert scores.total.isnan().all() and not scores.valid.any()
    assert "found 0 in the reply 'I like it!' (after 3 attempts)" in scores.notes["judge"][0]


def test_a_second_answer_can_be_better(serve, cpu, pictures, prompts):
    server = serve(lambda handler, body, number: handler.say("hm" if number == 1 else GOOD))
    assert judge(server, cpu)(pictures(1), prompts("x")).valid.all() and len(server.requests) == 2


def test_a_server_that_hangs_is_left(serve, cpu, pictures, prompts):
    over = threading.Event()
    server = serve(lambda handler, body, number: over.wait(60))
    start = time.monotonic()
    scores = judge(server, cpu, timeout=0.15, retries=1)(pictures(3), prompts("x", "y", "z"))
    assert time.monotonic() - start < 20
    over.set()
    assert not scores.valid.any() and scores.total.isnan().all()
    assert scores.notes["judge"][0] == "no answer within 0.15 s (after 2 attempts)"


def test_a_reply_that_trickles_in_is_left(serve, cpu, pictures, prompts):
    def drip(handler, body, number):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(600):  # never long enough between two bytes for a read timeout
            handler.wfile.write(b" ")
            time.sleep(0.05)

    start = time.monotonic()
    scores = judge(serve(drip), cpu, timeout=0.25, retries=0)(pictures(1), prompts("x"))
    assert time.monotonic() - start < 20 and scores.notes["judge"][0].startswith("the reply did not end in time")


def test_two_errors_and_then_an_answer(serve, cpu, pictures, prompts):
    server = serve(lambda handler, body, number: handler.reply(500, b"busy") if number < 3 else handler.say(GOOD))
    scores = judge(server, cpu)(pictures(1), prompts("x"))
    assert scores.valid.all() and len(server.requests) == 3


def test_a_refusal_is_not_asked_again(serve, cpu, pictures, prompts):
    server = serve(lambda handler, body, number: handler.reply(404, b"no such model"))
    scores = judge(server, cpu, retries=5)(pictures(1), prompts("x"))
    assert len(server.requests) == 1
    assert scores.notes["judge"][0].startswith("status 404: no such model")


def test_a_closed_connection_is_invalid_and_its_neighbours_are_not(serve, cpu, prompts):
    def answer(handler, body, number):
        if picture_of(body)[1][0, 0, 0] == 255:
            handler.connection.close()
        else:
            handler.say(GOOD)

    images = torch.tensor([0.0, 1.0, 0.5])[:, None, None, None].expand(-1, 3, 4, 4)
    scores = judge(serve(answer), cpu, retries=1)(images, prompts("a", "b", "c"))
    assert scores.valid.tolist() == [True, False, True] and scores.total.isnan().tolist() == [False, True, False]
    assert "after 2 attempts" in scores.notes["judge"][1] and "Error" in scores.notes["judge"][1]


def test_replies_that_are_no_chat_completion_are_invalid(serve, cpu, pictures, prompts):
    for content in (b"", b"[]", b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}', b"\xff\xfe"):
        server = serve(lambda handler, body, number, content=content: handler.reply(200, content))
        assert not judge(server, cpu, retries=0)(pictures(1), prompts("x")).valid.any(), content


def test_pauses_double(serve, cpu, pictures, prompts):
    times = []

    def refuse(handler, body, number):
        times.append(time.monotonic())
        handler.reply(503, b"")

    judge(serve(refuse), cpu, retries=3, pause=0.08)(pictures(1), prompts("x"))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    for gap, longest in zip(gaps, (0.08, 0.16, 0.32), strict=True):
        assert longest / 2 <= gap


def test_a_broken_picture_is_never_sent(serve, cpu, pictures, prompts):
    server = serve(lambda handler, body, number: handler.say(GOOD))
    images = pictures(2)
    images[0, 0, 0, 0] = math.inf
    scores = judge(server, cpu)(images, prompts("x", "y"))
    assert scores.valid.tolist() == [False, True] and len(server.requests) == 1
    assert scores.notes["judge"][0] == "the picture holds NaN or infinity"


def test_what_is_wrong_at_load_is_a_sentence(serve, cpu, tmp_path, monkeypatch):
    server = serve(lambda handler, body, number: None)
    monkeypatch.setenv("BURNISH_TEST_KEY", "wrong")
    monkeypatch.delenv("BURNISH_NO_KEY", raising=False)
    (tmp_path / "headless.txt").write_text("Is it good?")
    cases = [
        (
            {"ping": True, "key_variable": "BURNISH_TEST_KEY"},
            r"reward.judge.endpoint: .*refuses the key \(status 401\)",
        ),
        ({"key_variable": "BURNISH_NO_KEY"}, "key_variable: the environment variable BURNISH_NO_KEY is not set"),
        ({"question": "mtach"}, r"'mtach' is no text file \(choices: fake, match, weird, or a path\)"),
        ({"question": str(tmp_path / "headless.txt")}, "line 1 of .*headless.txt must read 'aspects: NAME, NAME'"),
    ]
    for settings, said in cases:
        with pytest.raises(ValueError, match=said):
            judge(server, cpu, **settings)
    server.close()
    with pytest.raises(ValueError, match=r"reward.judge.endpoint: cannot reach http://127.0.0.1:\d+/v1: Connect"):
        judge(server, cpu, ping=True)


@pytest.mark.parametrize(
    "address",
    [
        "localhost:80",
        "http://",
        "http://a b",
        "http://[bad/v1",
        "http://localhost:80a0/v1",
        "http://localhost:99999/v1",
    ],
)
def test_a_bad_address_is_a_sentence_at_load(cpu, address):
    said = f"reward.judge.endpoint: {address!r} is no address; expected http"
    with pytest.raises(ValueError, match=re.escape(said)):
        Judge(endpoint=address).load(cpu)


@pytest.mark.parametrize(
    ("name", "value"),
    [("retries", -1), ("pause", -0.5), ("concurrency", 0), ("tokens", 0), ("batch", 0), ("timeout", 0)],
)
def test_a_number_out_of_range_is_a_sentence_when_made(name, value):
    with pytest.raises(ValueError, match=rf"^reward\.judge\.{name}: expected (at least|more than) .*, got {value}$"):
        Judge(**{name: value})


def test_a_reply_that_was_cut_off_is_invalid(serve, cpu, pictures, prompts):
    """Even one that could be read: more may have been to come."""
    server = serve(lambda handler, body, number: handler.say(GOOD, "length"))
    scores = judge(server, cpu, retries=0)(pictures(1), prompts("x"))
    assert not scores.valid.any()
    assert scores.notes["judge"][0].startswith("the reply was cut off after 256 tokens")


def test_a_picture_of_several_questions_is_encoded_once(serve, cpu, monkeypatch):
    server, count, encoded = serve(lambda handler, body, number: handler.say("yes")), [], chat.encoded
    monkeypatch.setattr(chat, "encoded", lambda *given: count.append(1) or encoded(*given))
    dark, light, same = (Image.new("RGB", (2, 2), (level,) * 3) for level in (0, 255, 255))
    shown = [[dark, light], [light, dark], [same], [dark]]
    assert judge(server, cpu, concurrency=1).chat.ask(shown, ["?"] * 4, str) == ["yes"] * 4
    assert len(count) == 3  # two are equal, and two objects
    sent = [[int(picture[0, 0, 0]) for picture in pictures_of(body)] for _, _, body in server.requests]
    assert sent == [[0, 255], [255, 0], [255], [0]]


# reading a reply


@pytest.mark.parametrize(
    ("reply", "marks"),
    [
        (GOOD, [1, 0.5, 1, 0, 0.25]),
        (f"Here you are:\n```json\n{GOOD}\n```\nBye {{now}}", [1, 0.5, 1, 0, 0.25]),
        (GOOD.replace("{", '{"why": "{a} b", ', 1), [1, 0.5, 1, 0, 0.25]),
        ("", None),
        (GOOD[:-4], None),
        (GOOD + GOOD, None),  # which of the two?
        (f'{{"answer": {GOOD}}}', None),
        (GOOD.replace('"counts": 1.0, ', ""), None),
        (GOOD.replace("0.25", "1.5"), None),
        (GOOD.replace("0.25", "-0.1"), None),
        (GOOD.replace("0.25", "true"), None),
        (GOOD.replace("0.25", '"0.25"'), None),
        (GOOD.replace("0.25", "NaN"), None),
        (GOOD.replace("0.25", "null"), None),
        ("{" * 5000, None),
    ],
)
def test_replies_are_read_strictly(reply, marks):
    found = _read_question("match").marks(reply)
    assert isinstance(found, Failed) if marks is None else list(found.values()) == marks


@pytest.mark.parametrize("name", ["match", "fake", "weird"])
def test_every_question_asks_for_what_it_reads(name):
    question = _read_question(name)
    example = question.text[question.text.rindex("{") :]
    assert set(json.loads(example)) == set(question.aspects)
    assert ("{text}" in question.text) == (name == "match")


# a local model


def save_llava(folder, reply, norm=0.0, ends=(0, 2)):
    """A LLaVA of one layer. With a final norm of zero all logits are equal, and greedy decoding says token 0.

    Its one word is also its end; with `ends` of (2,) it says the word for ever.
    """
    words = {reply: 0, "<image>": 1, "<pad>": 2, "<unk>": 3, "USER:": 4}
    words |= {f"w{i}": i for i in range(5, 40)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", additional_special_tokens=["<image>"]
    )
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"eos_token_id": list(ends), "pad_token_id": 2, "bos_token_id": 3}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**small, image_size=16, patch_size=8),
        text_config=LlamaConfig(**small, vocab_size=40, num_key_value_heads=2, **special),
        image_token_index=1, vision_feature_layer=-1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    torch.nn.init.constant_(model.model.language_model.norm.weight, norm)
    model.save_pretrained(folder)
    template = (
        "{% for m in messages %}USER: {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
    )
    pixels = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(pixels, tokenizer, 8, "default", template, num_additional_image_tokens=1).save_pretrained(folder)


@pytest.mark.parametrize(("reply", "value"), [('{"real":1}', 0.25), ("lovely", None)])
def test_a_local_model_is_asked_in_batches(tmp_path, cpu, pictures, prompts, reply, value):
    save_llava(tmp_path, reply)
    scorer = Judge(str(tmp_path), question="fake", tokens=1, batch=2, dtype="float32").load(cpu)
    runs = []
    scorer.chat.model.model.vision_tower.register_forward_hook(lambda _m, _a, out: runs.append(len(out[0])))
    scores = scorer(pictures(3, 20, 24), prompts("a", "b", "c"))
    assert runs == [2, 1]
    assert scores.valid.tolist() == [value is not None] * 3
    if value is None:
        assert scores.total.isnan().all() and "'lovely'" in scores.notes["judge"][0]
    else:
        assert scores.total.tolist() == [value] * 3


def test_a_local_model_that_does_not_end_is_cut_off(tmp_path, cpu, pictures, prompts):
    save_llava(tmp_path, '{"real":1}', ends=(2,))
    scores = Judge(str(tmp_path), question="fake", tokens=1, dtype="float32").load(cpu)(pictures(1), prompts("a"))
    assert not scores.valid.any() and scores.notes["judge"][0] == "the reply was cut off after 1 tokens"


def test_replies_do_not_depend_on_who_else_is_asked(tmp_path, cpu, pictures):
    """Questions of different lengths, and about two pictures, share a batch: they must be padded on the left."""
    save_llava(tmp_path, "yes", norm=5.0)
    questions, images = ["w7", "w9 w11 w6 w8 w30 w31 w12", "w20 w21"], pictures(3, 16, 16)
    one, two, three = (Image.fromarray(levels) for levels in to_bytes(images))
    photos = [[one], [two], [two, three]]

    def replies(batch):
        scorer = Judge(str(tmp_path), question="fake", tokens=6, batch=batch, dtype="float32").load(cpu)
        return scorer.chat.ask(photos, questions, str)

    assert replies(3) == replies(1) and len(set(replies(1))) > 1


def test_judges_of_one_local_model_share_its_weights(tmp_path, cpu):
    save_llava(tmp_path, "yes")
    fake, weird = (
        Judge(str(tmp_path), question=question, tokens=1, dtype="float32").load(cpu) for question in ("fake", "weird")
    )
    assert fake.chat.model is weird.chat.model
    assert Judge(str(tmp_path), question="fake", tokens=1, dtype="bfloat16").load(cpu).chat.model is not fake.chat.model
    weights = weakref.ref(fake.chat.model)
    del fake, weird
    gc.collect()
    assert weights() is None


def test_a_local_model_that_is_not_there_is_a_sentence(tmp_path, cpu):
    with pytest.raises(ValueError, match=r"reward.judge.model: no AutoModelForImageTextToText could be read"):
        Judge(str(tmp_path)).load(cpu)
