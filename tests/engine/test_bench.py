"""What a step costs: operations and bytes counted by hand, seconds by more than one clock, growth, and the page."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import several
import tiny_diffusers as tiny
import torch
import torch.nn.functional as F
import toys
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from toy_run import recipe

from burnish.advantages.group_norm import GroupNorm
from burnish.advantages.kl_in_reward import KlInReward
from burnish.cli.bench import _or_states, _sizes, said
from burnish.cli.main import main
from burnish.core import Footprint, LatentPlan, Planner
from burnish.engine.bench import Bench, Stage, Work, bench, growth
from burnish.formulas.noise import Noise
from burnish.laps import lap, recorded
from burnish.machine import forget_peak, held, matrix_rate, memory_rate, peak
from burnish.models.linear_layers import PackedLinear
from burnish.models.llamagen.files import save_model
from burnish.models.llamagen.gpt import GPT, GPTConfig
from burnish.plans.all_steps import AllSteps
from burnish.report.bench import render
from burnish.sources.on_policy import OnPolicy
from burnish.transitions.flow_sde import FlowSDE

FLOAT = 4


def test_a_product_by_hand():
    a, b = torch.randn(2, 3), torch.randn(3, 4)
    with Work() as work:
        a @ b
    assert work.by_type == {torch.float32: 2 * 2 * 3 * 4}
    assert work.traffic == FLOAT * (6 + 12 + 8)


def test_work_that_can_be_fused_moves_nothing():
    a, b = torch.randn(2, 3), torch.randn(3, 4)
    with Work() as work:
        F.rms_norm((a @ b).to(torch.bfloat16).T.reshape(2, 4).float(), (4,)).softmax(-1).add_(1)
    assert work.traffic == FLOAT * (6 + 12 + 8)


def test_numbers_that_lie_in_memory_once_are_read_once():
    a, b = torch.randn(3, 3), torch.randn(4, 3)
    with Work() as work:
        a @ a
    assert work.traffic == FLOAT * (9 + 9)
    with Work() as work:
        torch.bmm(a.expand(5, 3, 3), b.T.expand(5, 3, 4))
    assert work.traffic == FLOAT * (9 + 12 + 5 * 12) and work.operations == 5 * 2 * 3 * 3 * 4


@torch.no_grad()
def test_a_token_step_reads_weights_once_and_the_keys_and_values_there_is_room_for():
    dim, heads, vocabulary, rows, position = 32, 2, 12, 3, 6
    gpt = GPT(GPTConfig(dim=dim, layers=2, heads=heads, vocabulary=vocabulary, classes=5))
    cache = gpt.cache(rows, 17, torch.float32, torch.device("cpu"))
    with Work() as work:
        gpt.output(gpt.next(torch.zeros(rows, dtype=torch.long), position, 4, cache, None))
    layers = [layer for layer in gpt.modules() if isinstance(layer, torch.nn.Linear)]
    assert len(layers) == 2 * 5 + 1
    ends = sum(rows * (layer.in_features + layer.out_features) for layer in layers)
    weights = sum(layer.weight.numel() for layer in layers)
    assert position + 2 < cache.room == 17
    seen = 2 * rows * cache.room * dim  # the prefix, tokens up to this one, and empty slots
    scores = rows * heads * cache.room  # out of one product, and into the other
    attention = seen + 2 * rows * dim + 2 * scores  # a query in, a value out
    assert work.traffic == FLOAT * (weights + ends + 2 * attention)


def test_products_of_whole_numbers_are_in_no_share_of_a_floating_rate():
    a, b = torch.ones(32, 16, dtype=torch.int8), torch.ones(16, 8, dtype=torch.int8)
    with Work() as work:
        torch.ops.aten._int_mm(a, b)
        torch.ones(2, 3) @ torch.ones(3, 4)
    assert (work.operations, work.whole_operations) == (2 * 2 * 3 * 4, 2 * 32 * 16 * 8)
    assert work.traffic == (32 * 16 + 16 * 8 + 4 * 32 * 8) + FLOAT * (6 + 12 + 8)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is without oneDNN")
def test_a_product_with_packed_weights_is_counted_as_any_other():
    x, weight = torch.randn(2, 5, 3), torch.randn(4, 3)
    layer = PackedLinear(weight, torch.float32)
    with Work() as work:
        layer(x)
    assert work.by_type == {torch.float32: 2 * 2 * 5 * 3 * 4}
    assert work.traffic == FLOAT * (2 * 5 * 3 + 4 * 3 + 2 * 5 * 4)


def test_a_backward_pass_is_twice_the_forward_one():
    a, b = torch.randn(5, 3, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    with Work() as work:
        (a @ b).sum().backward()
    assert work.operations == 3 * 2 * 5 * 3 * 4


def test_attention_is_counted_where_a_processor_fuses_it():
    q, k, v = (torch.randn(1, 2, 6, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 6 * 6 * 8  # two heads
    with Work() as work:
        out = F.scaled_dot_product_attention(q, k, v)
        assert work.operations == 2 * product
        out.sum().backward()
    assert work.operations == 2 * product + 5 * product  # scores again, and four products


@pytest.mark.parametrize("kind", ["sd3", "sd"])
def test_a_real_network_against_torchs_own_counter(tmp_path: Path, kind: str):
    """With attention written out: torch's does not know what a processor fuses."""
    policy = getattr(tiny, kind)(tmp_path).load(torch.device("cpu"))
    prompts = tiny.prompts(2)
    x = Noise(0, 1, tuple(range(len(prompts))), "x").normal(policy.network.shape, "x")

    def once() -> None:
        policy.velocity(x, torch.full((len(x),), 0.5), prompts).sum().backward()

    with sdpa_kernel(SDPBackend.MATH):
        once()  # texts are encoded
        with Work() as work:
            once()
        with FlopCounterMode(display=False) as theirs:
            once()
    assert work.operations == theirs.get_total_flops() > 0
    assert work.traffic > 3 * FLOAT * sum(weight.numel() for _, weight in policy.parameters())


def test_stretches_are_counted_by_every_clock():
    with Work() as work, recorded(clock=lambda: work.operations) as operations, recorded() as seconds:
        with lap("small"):
            torch.randn(2, 2) @ torch.randn(2, 2)
        with lap("large"):
            torch.randn(4, 4) @ torch.randn(4, 4)
            time.sleep(0.01)
    assert (operations.spent("small"), operations.spent("large")) == (16, 128)
    assert seconds.spent("large") >= 0.01


def test_a_recipe_is_measured_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    found = bench(recipe(reward=toys.Brightness(pause=0.2)), steps=2)
    assert isinstance(found, Bench) and not list(tmp_path.iterdir())
    assert (found.images, found.steps, found.processes, found.evaluations) == (24, 2, 1, 0)
    score, step = found.stages["score"], found.stages["step"]
    assert score.seconds >= 0.2 and score.cpu_seconds < score.seconds / 2  # it slept
    assert step.seconds >= max(found.stages[name].seconds for name in ("draw", "score", "update"))
    assert found.matrix_rate > 1e8 and found.memory_rate > 1e7 and found.arithmetic.startswith("float")
    assert bench(recipe(overlap=True), steps=1) is not None


def test_evaluations_and_operations_grow_with_the_group(tmp_path: Path):
    from burnish.recipe.read import read

    (tmp_path / "prompts.txt").write_text("".join(f"{text}\n" for text in tiny.TEXTS))
    whole = read("flow_grpo")
    policy = tiny.sd3(tmp_path / "weights")
    source = replace(whole.source, prompts=str(tmp_path / "prompts.txt"), per_step=2)
    assert isinstance(source.plan, AllSteps)

    def at(group: int) -> Bench:
        plan = replace(source.plan, group=group, steps=2, evaluation_steps=2)
        changed = replace(
            whole, policy=policy, source=replace(source, plan=plan), reward=toys.Brightness(), device="cpu"
        )
        found = bench(replace(changed, optim=replace(whole.optim, micro=0, minibatches=1)), steps=1)
        assert found is not None
        return found

    small, large = at(2), at(4)
    assert large.images == 2 * small.images and large.evaluations == 2 * small.evaluations
    sizes = [2, 4]
    for stage in ("draw", "decode", "update"):
        operations = [one.stages[stage].operations for one in (small, large)]
        assert growth(sizes, operations) == pytest.approx(1, abs=0.05), stage
    assert small.stages["decode"].operations < small.stages["draw"].operations < small.stages["step"].operations


def test_what_samples_are_compared_with_is_part_of_the_update():
    """The pass that an advantage's reference takes: it is made before the advantage, and is no score."""
    plain, compared = (bench(several.raster(advantage=one), steps=1) for one in (GroupNorm(), KlInReward(GroupNorm())))
    assert plain and compared and plain.stages["score"].operations == compared.stages["score"].operations == 0
    assert compared.stages["update"].operations > 1.2 * plain.stages["update"].operations  # 4 passes for 3
    assert compared.stages["draw"].operations == plain.stages["draw"].operations


@dataclass(frozen=True)
class Turns(Planner):
    """Two steps and six in turns."""

    def at(self, step: int) -> LatentPlan:
        steps = 6 if step % 2 else 2
        return LatentPlan(group=2, steps=steps, stochastic=tuple(range(steps - 1)), transition=FlowSDE())

    def evaluation(self) -> LatentPlan:
        return self.at(0)


@pytest.mark.parametrize(("steps", "states"), [(1, 2), (2, (2 + 6) / 2), (3, 2)])
def test_what_is_counted_are_steps_of_the_plans_that_were_timed(steps: int, states: float):
    """Steps 2, 3 and 4 are timed: of two states, six, and two. Texts of both were never seen before."""
    whole = several.flow(source=OnPolicy("several:things", Turns(), per_step=3), overlap=False)
    found = bench(whole, steps=steps)
    alone = bench(replace(whole, source=replace(whole.source, plan=AllSteps(FlowSDE(), group=2, steps=2))), steps=1)
    assert found is not None and alone is not None and found.images == alone.images == 6
    assert found.stages["draw"].operations / alone.stages["draw"].operations == pytest.approx(states / 2, rel=0.02)


def test_growth_by_hand():
    assert growth([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert growth([8, 2], [5, 5]) == pytest.approx(0)
    for sizes, seconds in (([1], [1]), ([2, 2], [1, 3]), ([1, 2], [0, 1])):
        with pytest.raises(ValueError, match="growth needs two sizes"):
            growth(sizes, seconds)


def test_shares_by_hand():
    stage = Stage(seconds=2.0, cpu_seconds=4.0, operations=6e9, whole_operations=9e9, traffic=1e9)
    found = Bench("cpu", 2, 1, 10, 5, {"step": stage}, 0.0, 0, 0, "float32", matrix_rate=30e9, memory_rate=5e9)
    assert found.share_of_rate(stage) == pytest.approx(0.1) and found.share_of_traffic(stage) == pytest.approx(0.1)
    assert found.as_dict()["stages"]["step"]["images_per_second"] == 5
    assert "besides 9.0 G operations in whole numbers a step: not in the share" in "\n".join(said("recipe", found))
    found = replace(found, stages={"step": replace(stage, whole_operations=0.0)})
    assert "whole numbers" not in "\n".join(said("recipe", found))


def test_what_a_machine_can_do():
    device = torch.device("cpu")
    assert matrix_rate(torch.float32, device, side=128) > 1e8
    assert 1e8 < memory_rate(device, size=2**24) < 1e13
    before = held(device)
    forget_peak(device)
    torch.ones(2**24)
    after = peak(device)
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not forget a peak")
    assert after - before > 0.9 * FLOAT * 2**24
    forget_peak(device)
    assert peak(device) < after  # freed, and forgotten


def told(values: list[str], sizes: list[float], unit: str = "a.group", whole: float = 0.0) -> dict:
    stages = {
        "draw": Stage(1.0, 1.0, 4e9, whole, 2e9),
        "decode": Stage(0.25, 0.25, 1e9, 0.0, 1e8),
        "score": Stage(0.1, 0.1, 0.0, 0.0, 1e6),
        "update": Stage(2.0, 2.0, 9e9, 0.0, 3e9),
        "step": Stage(3.1, 3.1, 13e9, whole, 5e9),
    }
    one = Bench("a <fine> device", 1, 2, 16, 5, stages, 352, 10**9, 0, "float32", 40e9, 8e9).as_dict()
    facts = {"recipe": "scenes/<x>", "changes": ["a=<b>"], "benches": [one for _ in values or [1]]}
    grown = {"vary": "a.group", "values": values, "clock": "seconds", "growth": {"draw": 1.02, "update": 0.98}}
    grown |= {"sizes": sizes, "unit": unit, "growth_at_the_end": {"draw": 1.31, "update": 0.99}}
    return {**facts, **(grown if values else {})}


def test_the_page_shows_numbers_and_places_under_the_roof():
    page = render(told([], []))
    assert "<fine>" not in page and "<x>" not in page and "2 processes of 1 thread:" in page
    for number in ("16.00", "4.000", "8.000", "10.0\u202f%", "25.0\u202f%"):  # images/s, G operations, shares of draw
        assert number in page, number
    roof = re.search(r'class="roof" d="M(.*?)"', page)
    place = r'<circle cx="([\d.]+)" cy="([\d.]+)"'
    circles = re.findall(place, page)
    assert roof and len(circles) == 4  # scores have no matrix products
    (_, _), (ridge, top), (_, end) = (map(float, point.split()) for point in roof[1].split("L"))
    assert top == end and all(float(y) > top for _, y in circles)  # nothing above the roof
    draw, decode = circles[0], circles[1]
    assert float(draw[0]) < ridge < float(decode[0])  # 2 and 10 operations a byte, the ridge at 5
    assert "whole numbers" not in page and "can be fused" in page
    rounded = render(told([], [], whole=2e9))
    assert len(re.findall(place, rounded)) == 2 and "Besides 2.000 G operations in whole numbers" in rounded
    grown = render(told(["2", "4.5"], [2, 4.5]))
    said = "to the power of 1.020 (drawing, with decoding; 1.310 from the second largest to the largest), 0.980 (update"
    assert "group 4.5" in grown and said in grown
    assert "B: 1,000 parameters" in render(told(["B", "L"], [1000, 3000], "parameters"))


def test_what_costs_grow_with():
    small, large = (Footprint(parameters, 8, tokens, 16, 32, 2) for parameters, tokens in ((100, 64), (400, 64)))
    wide = replace(small, tokens=256)
    assert _sizes("policy.size", ["B", "L"], [small, large]) == ([100, 400], "parameters")
    assert _sizes("policy.pixels", ["64", "128"], [small, wide]) == ([64, 256], "tokens")
    assert _sizes("plan.group", ["2", "4"], [small, small]) == ([2, 4], "plan.group")
    assert _sizes("plan.group", ["2", "4"], [None, None]) == ([2, 4], "plan.group")
    assert _or_states("a.pixels", [64, 128], "a.pixels", [48, 192]) == ([48, 192], "numbers of a state")
    for unit, states in (("a.group", [48, 48]), ("a.group", [0, 0]), ("a.group", [0, 48]), ("tokens", [48, 192])):
        assert _or_states("a.group", [2, 4], unit, states) == ([2, 4], unit)
    with pytest.raises(ValueError, match="its values are no numbers"):
        _sizes("policy.precision", ["fp32", "bf16"], [small, small])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, page = tmp_path / "bench.json", tmp_path / "bench.html"
    asked = ["scenes/ar_grpo_c2i", "source.on_policy.per_step=1", "source.on_policy.plan.every_token.group=2"]
    with pytest.raises(SystemExit) as end:
        main(["bench", *asked, "--steps", "1", "--json", str(out), "--page", str(page)])
    printed = capsys.readouterr().out
    assert not end.value.code and "2 images a step; median of 1 steps" in printed
    assert "read and written, of matrix products, attention and convolutions alone" in printed
    kept = json.loads(out.read_text())
    assert kept["changes"] == asked[1:] and kept["benches"][0]["stages"]["draw"]["operations"] > 1e8
    assert "Roofline" in page.read_text()


def test_growth_with_the_size_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Two networks of unlike shapes: the same tokens, and costs against their parameters."""
    for name, layers in (("small", 1), ("large", 3)):
        save_model(GPT(GPTConfig(dim=64, layers=layers, heads=2, vocabulary=256, classes=20)), tmp_path / name)
    asked = ["scenes/ar_grpo_c2i", "source.on_policy.per_step=1", "source.on_policy.plan.every_token.group=2"]
    vary = f"policy.llamagen.gpt={tmp_path / 'small'},{tmp_path / 'large'}"
    with pytest.raises(SystemExit) as end:
        main(["bench", *asked, "--steps", "1", "--vary", vary, "--json", str(tmp_path / "grown.json")])
    assert not end.value.code and "grow as parameters to the power of" in capsys.readouterr().out
    grown = json.loads((tmp_path / "grown.json").read_text())
    assert grown["sizes"][1] > 1.5 * grown["sizes"][0]
    assert set(grown["growth"]) == {"draw", "update", "operations", "memory"}
    assert grown["growth_at_the_end"] == grown["growth"], "of two sizes"


def test_growth_of_a_denoiser_is_with_its_state_and_not_with_the_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Twice the side, four times the numbers: costs in proportion to these have the power 1, not 2."""
    (tmp_path / "prompts.txt").write_text("".join(f"{text}\n" for text in tiny.TEXTS))
    tiny.sd3(tmp_path / "weights")
    policy = {"weights": tmp_path / "weights", "precision": "fp32", "text_length": 7}
    plan = {"group": 2, "steps": 2, "evaluation_steps": 2}
    asked = [
        *(f"policy.sd3.{name}={value}" for name, value in policy.items()),
        *(f"source.on_policy.plan.all_steps.{name}={value}" for name, value in plan.items()),
        f"source.on_policy.prompts={tmp_path / 'prompts.txt'}",
        *("source.on_policy.per_step=1", "reward=jpeg", "optim.minibatches=1", "optim.micro=0", "device=cpu"),
    ]
    out = tmp_path / "grown.json"
    with pytest.raises(SystemExit) as end:
        main(["bench", "flow_grpo", *asked, "--steps", "1", "--vary", "policy.sd3.pixels=16,32", "--json", str(out)])
    assert not end.value.code and "grow as numbers of a state to the power of" in capsys.readouterr().out
    grown = json.loads(out.read_text())
    assert (grown["unit"], grown["sizes"]) == ("numbers of a state", [4 * 8 * 8, 4 * 16 * 16])
    decoded = [one["stages"]["decode"]["operations"] for one in grown["benches"]]
    assert growth(grown["sizes"], decoded) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("vary", ["steps", "steps=1", "steps=1,1", "steps=1,", "steps=0,1", "optim.lr=1,1.0"])
def test_what_cannot_be_varied(vary: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["bench", "scenes/ar_grpo", "--vary", vary])
    assert end.value.code == 2 and "--vary" in capsys.readouterr().err
