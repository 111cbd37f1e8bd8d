"""The page of a run: what it says is what the folder holds, whole or not, and nothing in it reaches outside."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from burnish.report.folder import read
from burnish.report.html import inline_json, number, percent, yaml
from burnish.report.page import render, write

ATTACK = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'


def visible(page: str) -> str:
    """The words of a page."""
    without = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", without))


def test_the_headline_is_the_paired_difference(made: Path):
    words = visible(write(made).read_text())
    # 24 of 48 right before; after, the first 40 and every second of the last 8: 44.
    assert "Verified on heldout rose by 41.7 points" in words
    assert "50.0" in words and "91.7" in words
    assert "better" in words
    low, high = re.search(r"difference \+([\d.]+) to \+([\d.]+) points, over 48 prompts", words).groups()
    # The deviation of 20 gains among 48 pairs is 0.493, of their mean 0.0712: 41.7 +- 14.
    assert float(low) == pytest.approx(41.7 - 13.95, abs=1.5)
    assert float(high) == pytest.approx(41.7 + 13.95, abs=1.5)


def test_a_metric_that_falls_is_worse_unless_lower_is_better(made: Path):
    words = visible(render(read(made)))
    assert re.search(r"quality 0\.500 0\.440 −0\.060 −0\.060 to −0\.060 worse", words)
    assert re.search(r"fid 20\.00 26\.00 \+6\.000 – no interval", words)  # no values by sample: nothing is claimed


def test_no_difference_is_said_to_be_none(made: Path):
    before = made / "evaluations" / "heldout-000000"
    for end in (".json", ".npz"):
        text = before.with_suffix(end).read_bytes()
        (made / "evaluations" / f"heldout-000060{end}").write_bytes(text.replace(b'"step": 0', b'"step": 60'))
    assert "cannot be told apart from before training" in visible(render(read(made)))


def test_nothing_is_loaded_from_anywhere(made: Path):
    page = write(made).read_text()
    assert not re.search(r"(?:https?:)?//[a-z0-9]", re.sub(r"base64,[^)\"]+", "", page), re.IGNORECASE)
    assert not re.search(r"<(?:link|iframe|object|embed|base)\b", page)
    assert all(uri.startswith("data:") for uri in re.findall(r"""(?:src=["']?|url\()([^)"']+)""", page))
    assert "default-src 'none'" in page


def test_what_people_wrote_stays_text(made: Path):
    for path in (*made.glob("samples/*.json"), *made.glob("evaluations/*.json")):
        data = json.loads(path.read_text())
        for row in data.get("samples", []):
            row["text"] = ATTACK
            row["parts"] = {ATTACK: row["parts"]["quality"], "clip_score": row["parts"]["clip_score"]}
        for prompt in data.get("prompts", []):
            prompt["text"] = ATTACK
        path.write_text(json.dumps(data))
    with (made / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 61, f"score/{ATTACK}_mean": 1.0}) + "\n")
    (made / "recipe.yaml").write_text(f"policy: llamagen\n# {ATTACK}\nname: {json.dumps(ATTACK)}\n{ATTACK}: 1\n")
    environment = {"command": ATTACK, "warnings": [ATTACK], ATTACK: ATTACK}
    (made / "environment.json").write_text(json.dumps(environment))
    page = render(read(made))
    scripts = re.findall(r"<script[^>]*>", page)
    assert set(scripts) == {'<script type="application/json">', "<script>"}
    assert scripts.count("<script>") == 1
    assert "<img" not in page
    assert page.count("</script>") == len(scripts)
    assert "alert(1)" in visible(page)  # shown, as text


def test_json_cannot_close_its_script_and_has_no_nan():
    assert inline_json({"a": "</script>", "b": [float("nan"), 1.0]}) == '{"a":"\\u003c/script>","b":[null,1.0]}'


def test_the_samples_shown_are_the_ones_meant(made: Path):
    page = render(read(made))
    best, worst, disputed = (page.split(f"<h3>{title}")[1] for title in ("Best", "Worst", "Most disputed"))
    rows = json.loads(next(made.glob("samples/*.json")).read_text())["samples"]
    known = [r for r in rows if r["total"] is not None]
    first = [re.search(r"<b>(.*?)</b>", part)[1] for part in (best, worst, disputed)]
    assert first[0] == max(known, key=lambda r: r["total"])["text"]
    assert first[1] == min(known, key=lambda r: r["total"])["text"]
    assert first[2] == rows[5]["text"]


def test_equal_totals_are_neither_best_nor_worst(made: Path):
    path = next(made.glob("samples/*.json"))
    data = json.loads(path.read_text())
    for i, row in enumerate(data["samples"]):
        row |= {"total": float(i == 3), "text": f"prompt {i // 8}"}
    path.write_text(json.dumps(data))
    page = render(read(made)).split("<h3>Best")[1]
    best, worst = page.split("<h3>Worst")[0], page.split("<h3>Worst")[1].split("<h3>Most")[0]
    assert re.findall(r"<b>(.*?)</b><dl>", best) == ["prompt 0"]
    assert re.findall(r"<b>(.*?)</b><dl>", worst)[:4] == ["prompt 0", "prompt 1", "prompt 2", "prompt 3"]
    for row in data["samples"]:
        row["total"] = 1.0
    path.write_text(json.dumps(data))
    assert "Best – all totals are equal" in visible(render(read(made)))


def test_tiles_show_the_right_picture(made: Path, tmp_path: Path):
    """A sheet of known colours is cut where the reporter put its pictures."""
    from burnish.report.folder import Sheet
    from burnish.report.pictures import sprite

    whole = np.full((2 + 2 * 6, 2 + 3 * 7, 3), 255, np.uint8)  # 3 columns of 5 wide, rows of 4 high, gap 2
    for i in range(6):
        whole[2 + i // 3 * 6 : 2 + i // 3 * 6 + 4, 2 + i % 3 * 7 : 2 + i % 3 * 7 + 5] = i * 40
    Image.fromarray(whole).save(tmp_path / "sheet.png")
    sheet = Sheet(tmp_path / "sheet.png", count=6, columns=3, width=5, height=4, gap=2)
    cut = sprite(sheet, [4, 1, 5])
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(cut.uri.partition(",")[2]))))
    assert (cut.columns, cut.rows, picture.shape) == (2, 2, (8, 10, 3))
    assert (picture[:4, :5] == 160).all() and (picture[:4, 5:] == 40).all() and (picture[4:, :5] == 200).all()
    assert cut.place(1) == "--x:100.000%;--y:0.000%" and cut.place(2) == "--x:0.000%;--y:100.000%"


@pytest.mark.parametrize(("side", "frames"), [(64, 1), (64, 9), (320, 1)])
def test_a_sprite_is_no_longer_than_a_browser_takes(tmp_path: Path, side: int, frames: int):
    """Chromium leaves a variable of more than 2 MB empty: films of 60 tiles were not to be seen."""
    from burnish.report.folder import Sheet
    from burnish.report.pictures import sprite

    count, columns, grain = 64, 8, 1 if side == 64 else 4  # pixels of one colour
    random = np.random.default_rng(0)
    tall = 8 * side // grain
    noise = random.integers(0, 256, (frames, tall, tall, 3), dtype=np.uint8).repeat(grain, 1).repeat(grain, 2)
    whole = [Image.fromarray(frame) for frame in noise]
    moving = {"save_all": True, "append_images": whole[1:], "duration": 120} if frames > 1 else {}
    whole[0].save(tmp_path / "sheet.png", **moving)
    cut = sprite(Sheet(tmp_path / "sheet.png", count, columns, width=side, height=side, gap=0), range(count))
    assert len(cut.uri) < 2 * 2**20
    with Image.open(io.BytesIO(base64.b64decode(cut.uri.partition(",")[2]))) as shown:
        assert getattr(shown, "n_frames", 1) == frames and shown.size == (8 * side, 8 * side)
        assert cut.uri.startswith(f"data:image/{(shown.format or '').lower()};")


def test_a_run_that_is_still_going(tmp_path: Path, write_run):
    folder = write_run(tmp_path / "young", steps=3, finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "score/total_me')  # being written
    words = visible(render(read(folder)))
    assert "not finished: 3 of 60 steps" in words
    assert "Verified on heldout was 50.0" in words
    assert "a second pass is needed" in words
    assert "--resume" in words
    assert "could not be read" not in words


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("metrics.jsonl", "Curves – metrics.jsonl has no step yet"),
        ("recipe.yaml", "Recipe – recipe.yaml is not in the folder"),
        ("environment.json", "Environment – environment.json is not in the folder"),
        ("evaluations/*", "Result – nothing has been evaluated yet"),
        ("evaluations/*.png", "Before and after – the evaluation heldout saved no pictures"),
        ("evaluations/*.npz", "no interval, so no claim"),
        ("samples/*", "Samples – none are saved yet"),
        ("samples/*.png", "Samples – the pictures of step 60 are not in the folder"),
        ("summary.json", "not finished: 60 of 60 steps"),
    ],
)
def test_a_missing_piece_is_named(made: Path, gone: str, said: str):
    for path in made.glob(gone):
        path.unlink()
    assert said in visible(render(read(made)))


@pytest.mark.parametrize("name", ["samples/step-000060.json", "evaluations/heldout-000060.png", "summary.json"])
def test_a_broken_file_is_named(made: Path, name: str):
    (made / name).write_bytes((made / name).read_bytes()[:20])
    assert f"{Path(name).name} could not be read" in visible(render(read(made)))


def test_not_a_run_folder(tmp_path: Path):
    with pytest.raises(ValueError, match=r"not a run folder; one has metrics\.jsonl"):
        write(tmp_path)
    with pytest.raises(ValueError, match="no such run folder"):
        write(tmp_path / "nowhere")


def test_the_page_is_replaced_whole(made: Path):
    first = write(made).read_text()
    assert write(made).read_text() == first
    assert not list(made.glob(".report*"))


def test_numbers_as_they_are_read():
    assert number(0.12345, sign=True) == "+0.123"
    assert number(-12.3) == "\u221212.30"
    assert number(1234.5) == "1,234"
    assert number(2e-6) == "2e\u22126"
    assert number(float("nan")) == "–"
    assert percent(0.5) == "50.0\u202f%"


def test_yaml_is_marked_and_escaped():
    assert yaml("lr: 1e-5  # small") == (
        '<span class="k">lr</span>:<span class="d"> 1e-5 </span><span class="c"> # small</span>'
    )
    assert "<b>" not in yaml("note: <b>x</b>")
