"""What a chart is given to draw."""

from __future__ import annotations

import json
import re

from burnish.report.curves import charts, thinned


def drawn(page: str, title: str) -> dict:
    card = page.split(f"<h4>{title} ")[1]
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', card, re.DOTALL)[1])


def test_the_band_is_one_deviation_either_way():
    page = charts({"score/total_mean": ([1, 2], [1.0, 3.0]), "score/total_std": ([1, 2], [0.5, None])})
    (series,) = drawn(page, "Total reward")["series"]
    assert series == {"name": "total", "x": [1, 2], "y": [1.0, 3.0], "lo": [0.5, None], "hi": [1.5, None]}


def test_stages_are_stacked_and_read_out_alone():
    page = charts({"draw/seconds": ([1, 2], [1.0, 2.0]), "update/seconds": ([2], [3.0])})
    draw, update = drawn(page, "Seconds by stage")["series"]
    assert (draw["lo"], draw["y"], draw["v"]) == ([0, 0], [1, 2], [1, 2])
    assert (update["lo"], update["y"], update["v"]) == ([2], [5], [3])


def test_each_metric_is_shown_once_and_absent_charts_are_named():
    page = charts({"score/total_mean": ([1], [1.0]), "score/clip_mean": ([1], [2.0])})
    assert [s["name"] for s in drawn(page, "Reward parts")["series"]] == ["clip"]
    assert "law gap" in page.split("No curve for")[1]


def test_a_reward_called_verified_is_not_the_evaluation():
    page = charts({"eval/heldout_verified": ([0], [0.5]), "eval/heldout_reward_scenes_verified": ([0], [0.5])})
    assert [s["name"] for s in drawn(page, "Evaluations")["series"]] == ["heldout verified"]


def test_a_long_curve_is_means_of_equal_stretches():
    steps, values = thinned(list(range(10)), [float(v) for v in range(10)], longest=4)
    assert steps == [2, 5, 8, 9]
    assert values == [1, 4, 7, 9]
    assert thinned([1, 2], [None, 1.0], longest=1) == ([2], [1.0])
    assert thinned([1, 2], [None, None], longest=1) == ([2], [None])


def test_the_law_gap_is_on_a_log_axis_beside_its_limit():
    data = drawn(charts({"update/law_gap": ([1], [2e-6])}), "Law gap")
    assert data["log"] is True and data["guide"] == 1e-4
