"""Prompt files: what is read, and which line is wrong."""

from __future__ import annotations

import pytest

from burnish.prompts import read_prompts
from burnish.types import Prompt


def none() -> list[Prompt]:
    return []


def twins() -> list[Prompt]:
    return [Prompt("a", "x"), Prompt("a", "y")]


def words() -> list[str]:
    return ["x"]


def test_a_text_file_is_one_prompt_a_line(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a red square\n\n  two stars \n")
    assert read_prompts(str(path)) == (Prompt("1", "a red square"), Prompt("3", "two stars"))


def test_a_json_lines_file_brings_facts(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "x", "id": 7, "facts": {"class_id": 3}}\n{"text": "y"}\n')
    assert read_prompts(str(path)) == (Prompt("7", "x", {"class_id": 3}), Prompt("2", "y"))


def test_an_edited_file_is_read_again(tmp_path):
    import os

    path = tmp_path / "p.txt"
    path.write_text("one\n")
    read_prompts(str(path))
    path.write_text("two\n")
    os.utime(path, ns=(1, 1))
    assert read_prompts(str(path))[0].text == "two"


def test_a_function_gives_prompts():
    from burnish.worlds.scenes.grammar import train

    assert read_prompts("burnish.worlds.scenes.grammar:train") == train()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("p.txt", b"", "p.txt: holds no prompts"),
        ("p.txt", b"\n  \n", "p.txt: holds no prompts"),
        ("p.txt", b"good\n\xff\xfe\n", "p.txt: not a text file in UTF-8 (byte 5)"),
        ("p.jsonl", b'{"text": "x"}\n{"text": \n', "p.jsonl, line 2: not JSON: Expecting value at column"),
        ("p.jsonl", b'{"text": "x"}\n["y"]\n', "p.jsonl, line 2: expected an object such as"),
        ("p.jsonl", b'{"txt": "x"}\n', "p.jsonl, line 1: no key called 'txt' (choices: facts, id, text)"),
        ("p.jsonl", b'{"id": 3}\n', "p.jsonl, line 1: 'text' must be a string, got None"),
        ("p.jsonl", b'{"text": "x", "facts": 3}\n', "p.jsonl, line 1: 'facts' must be an object, got 3"),
        ("p.jsonl", b'{"text": "x", "id": 1}\n{"text": "y", "id": 1}\n', "two prompts have the id '1'"),
    ],
)
def test_a_bad_file_gets_a_sentence_with_the_line(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as problem:
        read_prompts(str(tmp_path / name))
    assert sentence in str(problem.value)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("absent.txt", "absent.txt: no such prompt file"),
        ("prompts.csv", "prompts come from a .txt file, a .jsonl file or a module:function"),
        ("nowhere_at_all:f", "cannot import 'nowhere_at_all'"),
        (f"{__name__}:nothing", "has no function 'nothing'"),
        (f"{__name__}:none", "holds no prompts"),
        (f"{__name__}:twins", "two prompts have the id 'a'"),
        (f"{__name__}:words", "must return a sequence of burnish.types.Prompt, got list"),
    ],
)
def test_a_bad_name_gets_a_sentence(name, sentence):
    with pytest.raises(ValueError) as problem:
        read_prompts(name)
    assert sentence in str(problem.value)
