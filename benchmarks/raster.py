"""What drawing and learning raster tokens costs, in ratios that carry over to another machine. Random weights, one run.

python benchmarks/raster.py                          # LlamaGen-B, class and text, 8 images of 256 tokens, CPU
python benchmarks/raster.py --size tiny --repeats 1  # seconds

floor   the matrix products that this work cannot do without, one after another, and nothing else: those of drawing with
        weights that lie as the processor reads them, those of learning by F.linear
naive   the loop of benchmarks/naive.py on the same weights; its greedy tokens and its gradients must be ours
step    drawing, the reference's log-probabilities, the policy's and the gradient; no decoding, no optimiser
encode  what a step reads besides. Text: FLAN-T5-XL of random weights, ours once for each caption and over its words;
        the naive step for each image, over 120 slots, and again for the reference and for the policy. Class: VQ-16's
        codes of a real image for each sample, which nobody uses; ours makes none
quick   blocks in eight bits while drawing, and everything else in bfloat16; of drawing it is called both
gap     of a law: mean difference of what a policy says of its tokens while drawing and while scoring
cpu     processor seconds over all threads; ratios are medians over rounds in which all take their turn
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from naive import NaiveLoop, learn, slots_of
from torch import Tensor

from burnish.formulas.noise import Noise
from burnish.models.arithmetic import quick_in_bf16
from burnish.models.linear_layers import CastLinear, PackedLinear
from burnish.models.llamagen.gpt import GPT, GPTConfig, released_gpt
from burnish.models.llamagen.vq import RELEASED_VQ, VQConfig, VQModel
from burnish.policies.llamagen import LlamaGen, LlamaGenPolicy
from burnish.types import Prompt, TokenPlan, take

TINY = GPTConfig(dim=64, layers=2, heads=2, vocabulary=256, classes=10)
ATTENTION = ("scaled_dot_product", "flash_attention", "efficient_attention", "aten::bmm", "aten::baddbmm")
PRODUCTS = (
    "aten::mm",
    "aten::addmm",
    "aten::linear",
    "aten::matmul",
    "aten::_int_mm",
    "mkldnn::_linear_pointwise",
)
BETA = 0.01  # of the divergence, as in AR-GRPO
APART = 0.1  # nats that the reference is away, so that the divergence has a gradient


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    size: str  # a released size, or tiny
    kind: str  # class or text
    images: int  # drawn at once
    group: int  # images of one prompt
    update_images: int  # in one forward and backward pass
    tokens: int  # of an image
    guidance: float
    threads: int
    repeats: int
    device: str
    precision: str


class FixedCaptions:
    """Stands where the text encoder stands, with features of its own for each text: encoding is not measured here."""

    def __init__(self, lengths: list[int], slots: int, width: int, device: torch.device) -> None:
        self.visible = torch.arange(slots)[None] >= slots - torch.tensor(lengths)[:, None]
        self.features = torch.randn(len(lengths), slots, width) * self.visible[..., None]
        self.visible, self.features = self.visible.to(device), self.features.to(device)

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        rows = [int(text) for text in texts]
        return self.features[rows], self.visible[rows]


def make_policy(setting: Setting) -> tuple[LlamaGenPolicy, tuple[Prompt, ...]]:
    """A policy of random weights whose tokenizer has one pixel a token, so that `sample` is drawing and little else."""
    torch.manual_seed(0)
    device = torch.device(setting.device)
    config = TINY if setting.size == "tiny" else released_gpt(setting.size, setting.kind == "text")
    if setting.kind == "text":
        config = replace(config, caption_dim=config.caption_dim or 32)
    gpt = GPT(config).to(device).eval()
    torch.nn.init.normal_(gpt.output.weight, std=0.05)
    vq = VQModel(VQConfig(32, (1,), 32, config.vocabulary, 8)).to(device).eval().requires_grad_(False)
    prompts = -(-setting.images // setting.group)
    lengths = [20 + 7 * i for i in range(prompts)]
    captions = FixedCaptions(lengths, config.caption_length, config.caption_dim, device) if config.caption_dim else None
    side = round(setting.tokens**0.5)
    spec = LlamaGen("", "", vq="", pixels=side, precision="bf16" if setting.precision == "bf16" else "fp32")
    asked = (Prompt(str(i), str(i), {"class_id": i % config.classes}) for i in range(prompts))
    rows = tuple(p for p in asked for _ in range(setting.group))[: setting.images]
    return LlamaGenPolicy(spec, gpt, vq, captions, device), rows


def text_encoder(width: int) -> Any:
    """Of random weights, in the shape of FLAN-T5-XL, or small where captions are narrower than its own."""
    from transformers import T5Config, T5EncoderModel

    layers, heads = (24, 32) if width == 2048 else (2, 2)
    config = T5Config(
        d_model=width, d_ff=5 * width // 2, num_layers=layers, num_heads=heads, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config).eval().requires_grad_(False)


def encoding(policy: LlamaGenPolicy, prompts: tuple[Prompt, ...], setting: Setting) -> dict[str, Callable[[], object]]:
    """What our step and the naive one encode before they draw and learn: captions, or images that nobody asked for."""
    if policy.captions is None:
        vq = VQModel(RELEASED_VQ["VQ-16"] if setting.size != "tiny" else VQConfig(32, (1,), 32, 256, 8)).eval()
        images = torch.rand(setting.images, 3, *[vq.config.cell * round(setting.tokens**0.5)] * 2)
        return {"encode, ours": lambda: None, "encode, naive": torch.no_grad()(lambda: vq.encode(images))}
    captions: Any = policy.captions
    encoder = text_encoder(captions.features.shape[-1])
    words = torch.randint(encoder.config.vocab_size, captions.visible.shape)

    @torch.no_grad()
    def ours() -> None:
        for row, length in zip(words, captions.visible.sum(1).tolist(), strict=True):
            encoder(row[None, :length])

    @torch.no_grad()
    def theirs() -> None:
        rows = torch.tensor([int(p.text) for p in prompts])
        for part in (rows, *rows.split(setting.update_images) * 2):
            encoder(words[part], attention_mask=captions.visible[part].flip(1).long())

    return {"encode, ours": ours, "encode, naive": theirs}


Products = list[tuple[int, Tensor]]  # rows that a weight is multiplied with


def prefix_products(model: GPT, prompts: int) -> Products:
    """Of the prefixes of the prompts and of no prompt. One null prefix serves equal lengths, here none are equal."""
    if model.config.caption_dim:
        rows = prompts * model.config.prefix
        projection = [(rows, w) for n, w in model.cls_embedding.named_parameters() if n.startswith("cap_proj")]
        return (projection + layer_products(model, rows)) * 2
    return layer_products(model, prompts) + layer_products(model, 1)


def layer_products(model: GPT, rows: int) -> Products:
    return [(rows, w) for name, w in model.layers.named_parameters() if w.dim() == 2]


def draw_products(model: GPT, setting: Setting, prompts: int) -> Products:
    """Both branches through the layers for every token but the last; guidance before the head, so the head once."""
    step = layer_products(model, 2 * setting.images)
    head = [(setting.images, model.output.weight)]
    return prefix_products(model, prompts) + head + (step + head) * (setting.tokens - 1)


def update_products(model: GPT, setting: Setting, prompts: int, chunk: int) -> Products:
    rows = setting.update_images * setting.tokens
    head = [(len(part), model.output.weight) for part in torch.empty(rows, 0).split(chunk)]
    return prefix_products(model, prompts) + layer_products(model, rows) * 2 + head


def run_products(products: Products, inputs: Mapping[tuple[int, int], Tensor], cast: bool) -> Tensor:
    """Forward and backward."""
    with torch.autocast(next(iter(inputs.values())).device.type, torch.bfloat16, enabled=cast):
        for rows, weight in products:
            x = inputs[rows, weight.shape[1]].requires_grad_()
            y = F.linear(x, weight)
            torch.autograd.grad(y, (x, weight), y.detach())
    return y


def laid_out(products: Products, cast: bool) -> dict[Tensor, Callable[[Tensor], Tensor]]:
    """A product with each of the weights, in the way that is the quickest for drawing."""
    dtype = torch.bfloat16 if cast else torch.float32
    weights = {weight for _, weight in products}
    layer = PackedLinear if next(iter(weights)).device.type == "cpu" else CastLinear
    return {weight: layer(weight.detach(), dtype) for weight in weights}


@torch.no_grad()
def run_forward(
    products: Products, inputs: Mapping[tuple[int, int], Tensor], by: Mapping[Tensor, Callable[[Tensor], Tensor]]
) -> None:
    for rows, weight in products:
        by[weight](inputs[rows, weight.shape[1]])


def inputs_of(products: Products) -> dict[tuple[int, int], Tensor]:
    return {(rows, w.shape[1]): torch.randn(rows, w.shape[1], device=w.device) for rows, w in products}


@dataclass(frozen=True)
class Took:
    wall: float  # seconds
    cpu: float  # processor seconds over all threads


def turns(jobs: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[Took]]:
    """All jobs take their turn, `repeats` rounds after one that does not count, so that noise meets them alike."""
    took: dict[str, list[Took]] = {name: [] for name in jobs}
    for _ in range(repeats + 1):
        for name, job in jobs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            if device.type == "cuda":
                torch.cuda.synchronize()
            took[name].append(Took(time.perf_counter() - wall, time.process_time() - cpu))
    return {name: rounds[1:] for name, rounds in took.items()}


def median(rounds: list[Took], what: str = "wall") -> float:
    return statistics.median(asdict(each)[what] for each in rounds)


def ratio(a: list[Took], b: list[Took], what: str) -> float:
    return statistics.median(asdict(x)[what] / asdict(y)[what] for x, y in zip(a, b, strict=True))


def summed(a: list[Took], b: list[Took]) -> list[Took]:
    """Two jobs of a round as one."""
    return [Took(x.wall + y.wall, x.cpu + y.cpu) for x, y in zip(a, b, strict=True)]


def shares(job: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Share of the time in matrix products, in attention, and in everything else (torch.profiler, self time)."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        job()
    found = {"products": 0.0, "attention": 0.0, "rest": 0.0}
    for event in profile.key_averages():
        took = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        kind = "products" if event.key in PRODUCTS else "rest"
        found["attention" if any(part in event.key for part in ATTENTION) else kind] += took
    return {name: took / sum(found.values()) for name, took in found.items()}


def measure_drawing(
    policy: LlamaGenPolicy, prompts: tuple[Prompt, ...], setting: Setting
) -> Iterator[tuple[str, float]]:
    plan, noise = TokenPlan(guidance=setting.guidance), Noise(0, 0, tuple(range(len(prompts))))
    products = draw_products(policy.gpt, setting, len({p.id for p in prompts}))
    inputs = inputs_of(products)
    cast = setting.precision == "bf16"
    by = laid_out(products, cast)
    quicker = {"eight bits": changed(policy, draw_precision="int8")}
    if not cast and quick_in_bf16(policy.device):
        quicker["bfloat16"] = changed(policy, precision="bf16")
        quicker["both"] = changed(policy, precision="bf16", draw_precision="int8")
    jobs: dict[str, Callable[[], object]] = {
        "draw": lambda: policy.sample(prompts, plan, noise),
        "floor": lambda: run_forward(products, inputs, by),
    }
    jobs |= {name: lambda one=one: one.sample(prompts, plan, noise) for name, one in quicker.items()}
    if setting.device == "cpu" and not cast:
        greedy = replace(plan, top_k=1)
        jobs["greedy"] = lambda: policy.sample(prompts, greedy, noise)
        jobs["naive"] = lambda: naive(policy, prompts, setting)
        drawn = policy.sample(prompts, greedy, noise).decisions[0].ids
        same = bool(torch.equal(drawn, naive(policy, prompts, setting)))
        yield "greedy tokens are those of the naive loop", float(same)
        assert same, "the naive loop drew other tokens"
    took = turns(jobs, setting.repeats, policy.device)
    yield "draw, images/s", len(prompts) / median(took["draw"])
    yield "draw, seconds", median(took["draw"])
    yield "draw, floor seconds", median(took["floor"])
    what = "cpu" if setting.device == "cpu" else "wall"
    yield f"draw / floor, {what}", ratio(took["draw"], took["floor"], what)
    for name, one in quicker.items():
        yield f"draw / draw in {name}, {what}", ratio(took["draw"], took[name], what)
        rollout = one.sample(prompts, plan, noise)
        with torch.no_grad():
            yield f"law gap of {name}, nats", float((one.logp(rollout) - rollout.logp).abs().mean())
        if "naive" in took:
            yield f"naive / ours in {name}, cpu", ratio(took["naive"], took[name], "cpu")
    if "naive" in took:
        yield "naive, seconds", median(took["naive"])
        yield "naive / ours, greedy, cpu", ratio(took["naive"], took["greedy"], "cpu")
    for name, share in shares(jobs["draw"], policy.device).items():
        yield f"draw, share of {name}", share


def changed(policy: LlamaGenPolicy, **fields: Any) -> LlamaGenPolicy:
    """The same networks in other settings."""
    return LlamaGenPolicy(replace(policy.spec, **fields), policy.gpt, policy.vq, policy.captions, policy.device)


def slots(policy: LlamaGenPolicy, prompts: tuple[Prompt, ...]) -> tuple[Tensor, Tensor]:
    """Prefixes of all images and as many of no prompt, as the naive loop has them, and which slots hold something."""
    if policy.captions is None:
        classes = torch.tensor([p.facts["class_id"] for p in prompts])
        return slots_of(policy.gpt, classes, None), torch.ones(2 * len(prompts), 1, dtype=torch.bool)
    features, visible = policy.captions([p.text for p in prompts])
    return slots_of(policy.gpt, None, features), torch.cat([visible, visible])


def naive(policy: LlamaGenPolicy, prompts: tuple[Prompt, ...], setting: Setting) -> Tensor:
    """Tokens of the naive loop, from setting up its cache on, as it does for every batch."""
    with torch.no_grad():
        return NaiveLoop(policy.gpt, *slots(policy, prompts), setting.tokens).greedy(setting.guidance)


def measure_update(
    policy: LlamaGenPolicy, prompts: tuple[Prompt, ...], setting: Setting
) -> Iterator[tuple[str, float]]:
    """Log-probability of the sampled law, both branches of guidance, and its gradient: one micro-batch of GRPO."""
    plan, b = TokenPlan(guidance=setting.guidance), setting.update_images
    rollout = policy.sample(prompts, plan, Noise(0, 0, tuple(range(len(prompts)))))
    rollout = take(rollout, torch.arange(b))
    advantage = torch.linspace(-1, 1, b, device=policy.device).unsqueeze(1)

    def update() -> None:
        logp = policy.logp(rollout)
        ((logp - rollout.logp).exp() * advantage).mean().neg().backward()
        policy.gpt.zero_grad(set_to_none=True)

    products = update_products(policy.gpt, setting, len({p.id for p in rollout.prompts}), policy.spec.logp_tokens)
    inputs = inputs_of(products)
    floor = lambda: run_products(products, inputs, cast=setting.precision == "bf16")  # noqa: E731
    took = turns({"update": update, "floor": floor}, setting.repeats, policy.device)
    for name, share in shares(update, policy.device).items():
        yield f"update, share of {name}", share
    what = "cpu" if setting.device == "cpu" else "wall"
    yield f"update of {b} images, seconds", median(took["update"])
    yield "update, floor seconds", median(took["floor"])
    yield f"update / floor, {what}", ratio(took["update"], took["floor"], what)
    with torch.no_grad():
        yield "law gap, nats", float((policy.logp(rollout) - rollout.logp).abs().mean())


def measure_step(policy: LlamaGenPolicy, prompts: tuple[Prompt, ...], setting: Setting) -> Iterator[tuple[str, float]]:
    """A step of GRPO as AR-GRPO was released: drawn with guidance, learned under the prompt alone."""
    plan, noise = (
        TokenPlan(guidance=setting.guidance, top_k=1, law="conditional"),
        Noise(0, 0, tuple(range(len(prompts)))),
    )
    advantage = torch.linspace(-1, 2, len(prompts))  # greedy images of one prompt are one image: not of sum 0

    def ours(policy: LlamaGenPolicy) -> None:
        rollout = policy.sample(prompts, plan, noise)
        for part in torch.arange(len(prompts)).split(setting.update_images):
            some = take(rollout, part)
            with torch.no_grad():
                reference = policy.logp(some) + APART
            logp = policy.logp(some)
            away = reference - logp
            gain = (logp - logp.detach()).exp() * advantage[part, None]
            (BETA * (away.exp() - away - 1) - gain).mean().mul(len(part) / len(prompts)).backward()

    def theirs() -> None:
        ids = naive(policy, prompts, setting)
        for part in torch.arange(len(prompts)).split(setting.update_images):
            prefix, visible = slots(policy, tuple(prompts[i] for i in part.tolist()))
            half = len(part)
            share = half / len(prompts)
            learn(policy.gpt, prefix[:half], visible[:half], ids[part], share * advantage[part], share * BETA, APART)

    def gradient(step: Callable[[], None]) -> Tensor:
        policy.gpt.zero_grad(set_to_none=True)
        step()
        return torch.cat([weight.grad.flatten() for weight in policy.gpt.parameters() if weight.grad is not None])

    one, other = gradient(lambda: ours(policy)), gradient(theirs)
    apart = float((one - other).norm() / other.norm())
    yield "step, gradients apart", apart
    assert apart < 1e-3, "the naive step has another gradient"
    jobs = {"ours": lambda: ours(policy), "naive": theirs}
    if quick_in_bf16(policy.device):
        quick = changed(policy, precision="bf16", draw_precision="int8")
        jobs["quick"] = lambda: ours(quick)
    took = turns(jobs | encoding(policy, prompts, setting), setting.repeats, policy.device)
    policy.gpt.zero_grad(set_to_none=True)
    for name, rounds in took.items():
        yield f"step, {name}, cpu seconds", median(rounds, "cpu")
    naive_whole = summed(took["naive"], took["encode, naive"])
    for name in [name for name in jobs if name != "naive"]:
        yield f"naive step / {name}, cpu", ratio(took["naive"], took[name], "cpu")
        whole = summed(took[name], took["encode, ours"])
        yield f"naive step / {name}, both with encoding, cpu", ratio(naive_whole, whole, "cpu")


def measure_decoding(setting: Setting) -> Iterator[tuple[str, float]]:
    """The VQ-16 tokenizer alone, one picture at a time."""
    device = torch.device(setting.device)
    vq = VQModel(RELEASED_VQ["VQ-16"]).to(device).eval()
    ids = torch.randint(vq.config.codes, (1, setting.tokens), device=device)
    took = turns({"decode": torch.no_grad()(lambda: vq.decode(ids))}, setting.repeats, device)
    yield "decode with VQ-16, seconds an image", median(took["decode"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="B", help="a released size of LlamaGen, or tiny")
    parser.add_argument("--kind", choices=["class", "text", "both"], default="both")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--group", type=int, default=8, help="images of one prompt")
    parser.add_argument("--update-images", type=int, default=2, help="images of one forward and backward pass")
    parser.add_argument("--tokens", type=int, default=256, help="of an image; a square number")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument(
        "--parts", nargs="+", choices=["draw", "update", "step", "decode"], default=["draw", "update", "step", "decode"]
    )
    parser.add_argument(
        "--json", action="store_true", help="the numbers as JSON on standard output, the rest on standard error"
    )
    asked = vars(parser.parse_args())
    kind, parts, as_json = (asked.pop(name) for name in ("kind", "parts", "json"))
    out = sys.stderr if as_json else sys.stdout
    torch.set_num_threads(asked["threads"])
    results = []
    for each in ["class", "text"] if kind == "both" else [kind]:
        setting = Setting(**asked, kind=each)
        policy, prompts = make_policy(setting)
        print(f"\n{setting}\ntorch {torch.__version__}, {torch.get_num_threads()} threads", file=out, flush=True)
        numbers = {}
        measured = {"draw": measure_drawing, "update": measure_update, "step": measure_step}
        for part in parts:
            if part == "step" and (setting.device != "cpu" or setting.precision != "fp32"):
                continue  # the naive loop is written for it
            found = measure_decoding(setting) if part == "decode" else measured[part](policy, prompts, setting)
            for name, value in found:
                numbers[name] = value
                print(f"  {name:<45} {value:.4g}", file=out, flush=True)
        results.append({"setting": asdict(setting), "numbers": numbers})
    if as_json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
