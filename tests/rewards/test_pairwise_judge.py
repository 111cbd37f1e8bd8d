"""All pairs of a prompt are asked about; shares won, against a server that always sees the same order."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from chat_server import pictures_of, question_of

from burnish.crew import Workers
from burnish.models.chat import Failed
from burnish.recipe.check import check
from burnish.recipe.read import read
from burnish.rewards.frames import Frames
from burnish.rewards.on_ray import OnRay
from burnish.rewards.pairwise_judge import PairwiseJudge, _read_question
from burnish.rewards.weighted import Weighted
from burnish.types import Prompt

FIRST, SECOND = "Picture 1 is better", "Picture 2 is better"


def gray(*levels: float) -> torch.Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()


def brighter(handler, body, number):
    one, other = (picture.mean() for picture in pictures_of(body))
    handler.say(f"I think so.\n{FIRST if one > other else SECOND}\n")


def judge(server, cpu, **settings):
    return PairwiseJudge(endpoint=server.url, model="tiny", pause=0.01, **settings).load(cpu)


def of(*ids: str) -> list[Prompt]:
    return [Prompt(name, f"text of {name}") for name in ids]


def test_win_rates_within_each_prompt(serve, cpu):
    """Of three: brightest, middle, darkest; of two, in between them: one wins, one loses. Nobody else is compared."""
    server = serve(brighter)
    scores = judge(server, cpu)(gray(0.2, 1.0, 0.8, 0.0, 0.5), of("a", "b", "a", "b", "a"))
    assert scores.total.tolist() == [0.0, 1.0, 1.0, 0.0, 0.5] and scores.valid.all()
    assert scores.notes["pairwise_judge"] == ("won 0 of 2", "won 1 of 1", "won 2 of 2", "won 0 of 1", "won 1 of 2")
    asked = [(question_of(body), [float(p.mean()) / 255 for p in pictures_of(body)]) for _, _, body in server.requests]
    assert len(asked) == 3 + 1
    for words, (one, other) in asked:
        assert f"Description: text of {'b' if {one, other} == {0.0, 1.0} else 'a'}" in words
    assert sorted(round(one, 1) for _, (one, _) in asked) == [0.2, 0.2, 0.8, 1.0], "the earlier sample is shown first"


def test_wins_are_as_many_as_pairs(serve, cpu):
    levels = torch.rand(6, generator=torch.Generator().manual_seed(0)).tolist()
    scores = judge(serve(brighter), cpu)(gray(*levels), of(*"aaaaaa"))
    assert float(scores.total.sum()) * 5 == pytest.approx(6 * 5 / 2)
    assert scores.total.argsort().tolist() == torch.tensor(levels).argsort().tolist()


def test_a_judge_that_likes_the_first_is_put_right_by_both_orders(serve, cpu):
    first = serve(lambda handler, body, number: handler.say(FIRST))
    assert judge(first, cpu)(gray(0.1, 0.9), of("a", "a")).total.tolist() == [1, 0]
    assert judge(first, cpu, orders="both")(gray(0.1, 0.9), of("a", "a")).total.tolist() == [0.5, 0.5]
    assert judge(serve(brighter), cpu, orders="both")(gray(0.1, 0.9), of("a", "a")).total.tolist() == [0, 1]


def unsure_of_gray(handler, body, number):
    if any(abs(float(picture.mean()) / 255 - 0.5) < 0.1 for picture in pictures_of(body)):
        handler.say("Both are fine.")
    else:
        brighter(handler, body, number)


def test_a_reply_without_an_answer_is_left_out_or_half(serve, cpu):
    server = serve(unsure_of_gray)
    some = judge(server, cpu, retries=0)(gray(0.1, 0.5, 0.9), of("a", "a", "a"))
    assert some.valid.tolist() == [True, False, True] and some.total[[0, 2]].tolist() == [0, 1]
    assert "expected one of 'Picture 1 is better' and" in some.notes["pairwise_judge"][1]
    half = judge(server, cpu, retries=0, unread="half")(gray(0.1, 0.5, 0.9), of("a", "a", "a"))
    assert half.total.tolist() == [0.25, 0.5, 0.75]


def refuse(handler, body, number):
    handler.reply(401, b"no key")


def fail(handler, body, number):
    handler.reply(500, b"broken")


def wait(handler, body, number):
    time.sleep(0.6)


def mumble(handler, body, number):
    handler.say("Both are", "length")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "ConnectError"),
        (refuse, "status 401: no key"),
        (fail, "status 500: broken"),
        (wait, "no answer within 0.3 s"),
        (mumble, "the reply was cut off after 2048 tokens"),
    ],
)
def test_no_reply_is_never_half(serve, cpu, answer, why):
    server = serve(answer)
    if not answer:
        server.close()
    timeout = 0.3 if answer is wait else 30.0
    scores = judge(server, cpu, retries=0, unread="half", timeout=timeout)(gray(0.1, 0.9), of("a", "a"))
    assert not scores.valid.any() and scores.total.isnan().all()
    assert all(note.startswith(why) for note in scores.notes["pairwise_judge"])


def test_one_lost_reply_leaves_out_its_comparison(serve, cpu):
    def answer(handler, body, number):
        if {round(float(picture.mean()) / 255, 1) for picture in pictures_of(body)} == {0.1, 0.9}:
            handler.reply(500, b"broken")
        else:
            handler.say("Both are fine.")

    scores = judge(serve(answer), cpu, retries=0, unread="half")(gray(0.1, 0.5, 0.9), of("a", "a", "a"))
    assert scores.notes["pairwise_judge"] == ("won 0.5 of 1", "won 1 of 2", "won 0.5 of 1")


def test_a_verdict_that_was_cut_off_is_none(serve, cpu):
    server = serve(lambda handler, body, number: handler.say(FIRST, "length"))
    scores = judge(server, cpu, retries=0, tokens=7)(gray(0.1, 0.9), of("a", "a"))
    assert not scores.valid.any() and server.requests[0][2]["max_tokens"] == 7


def test_what_cannot_be_compared_has_no_score_and_a_reason(serve, cpu):
    images = gray(0.1, 0.9, 0.5, 0.4)
    images[2, 0, 0, 0] = math.nan
    server = serve(brighter)
    scores = judge(server, cpu)(images, of("a", "a", "a", "alone"))
    assert scores.valid.tolist() == [True, True, False, False] and scores.total[:2].tolist() == [0, 1]
    notes = scores.notes["pairwise_judge"]
    assert notes[2] == "the picture holds NaN or infinity" and "no other sample" in notes[3]
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "winner"),
    [
        (FIRST, 0),
        (f"{FIRST}? No.\n\n**{SECOND}**\n", 1),
        (f"<think>{FIRST}</think><answer> {SECOND} </answer> as I said, not: {FIRST}", 1),
        (f"<think>{FIRST}\n</think>\n {SECOND} ", 1),
        (f"thought without its start\n</think>\n{SECOND}", 1),
        (f"<think>Let me see.\n{FIRST}", None),
        (f"<think>a</think>\n<think>b\n{FIRST}", None),
        (f"It is not true that {FIRST}", None),
        (f"{FIRST}\nThat is all.", None),
        (f"{FIRST}\n{SECOND} and {FIRST}", None),
        (f"<answer>{FIRST}, {SECOND}</answer>", None),
        ("<answer>none</answer>\n" + FIRST, None),
        ("", None),
        ("picture 1 is better", None),
    ],
)
def test_replies_are_read_strictly(reply, winner):
    found = _read_question("better").winner(reply)
    assert isinstance(found, Failed) if winner is None else found == winner


@pytest.mark.parametrize(
    "first", ["answers: one", "one | two", "answers: 1 | 11", "answers: a | b | c", "answers: a |"]
)
def test_a_question_with_other_answers_is_a_sentence(tmp_path, first):
    (tmp_path / "own.txt").write_text(f"{first}\nWhich?")
    with pytest.raises(ValueError, match="must read 'answers: FIRST IS BETTER"):
        _read_question(str(tmp_path / "own.txt"))
    with pytest.raises(ValueError, match="is no text file"):
        _read_question(str(tmp_path / "none.txt"))


def test_groups_have_to_stay_whole():
    judge = PairwiseJudge(endpoint="http://localhost:1/v1")
    assert judge.compares and Weighted({"one": judge}, {"one": 1.0}).compares
    with pytest.raises(ValueError, match="mean would compare frames of one video"):
        Frames(judge)
    assert Frames(judge, join="strip").compares
    with pytest.raises(ValueError, match="workers would part the samples"):
        OnRay(judge, Workers(2))
    asked = ["reward={pairwise_judge: {endpoint: http://localhost:1/v1}}", "suites={}", "measures={}"]
    assert not check(read("scenes/flow_grpo", asked)).faults
    parted = read("scenes/flow_grpo", [*asked, "overlap=true", "source.on_policy.rows=8"])
    assert any("would see some of them" in fault for fault in check(parted).faults)
    sent = read("scenes/flow_grpo", [*asked, "scorers.count=2"])
    assert any("which workers would part" in fault for fault in check(sent).faults)


def test_pref_grpo_as_its_file_says(serve, cpu):
    asked = 'reward.weighted.parts.hps={pairwise_judge: {endpoint: "http://localhost:1/v1", model: tiny, unread: half}}'
    found = read("pref_grpo", [asked, "advantage.win_rate.plain=[hps,clip]"])
    assert found.reward.compares and found.reward.parts["hps"].unread == "half"


def test_two_pictures_go_out_in_order(serve, cpu):
    server = serve(brighter)
    judge(server, cpu)(gray(1.0, 0.0), of("a", "a"))
    kinds = [part["type"] for part in server.requests[0][2]["messages"][0]["content"]]
    assert kinds == ["image_url", "image_url", "text"]
    np.testing.assert_array_equal(pictures_of(server.requests[0][2])[0], np.full((8, 8, 3), 255, np.uint8))
