"""LlamaGen as a policy: raster image tokens, class- or text-conditional. Sun et al. 2024, arXiv:2406.06525.

The law drawn from and the law trained are one (`law: sampled`): softmax of the guided logits over the temperature,
within top-k and top-p. AR-GRPO as released draws from that and trains `law: conditional`; the gap is metered.
Prefixes are computed once for each distinct prompt and shared by its samples (models/llamagen/gpt.py says why that is
exact); guidance mixes outputs before the head, which is linear, so that the head runs once and not twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from burnish.core import Footprint, PolicySpec
from burnish.formulas.guidance import guided
from burnish.formulas.noise import Noise
from burnish.formulas.tokens import draw_with_logp, law_logits, logp_of
from burnish.laps import lap
from burnish.models.arithmetic import DTYPES, Precision, autocast, quick_in_bf16
from burnish.models.captions import Captions
from burnish.models.eight_bits import in_eight_bits
from burnish.models.linear_layers import CastLinear, packed, with_linear_layers
from burnish.models.llamagen.files import gpt_shape, load_gpt, load_vq, save_model, vq_shape
from burnish.models.llamagen.gpt import GPT, Cache, GPTConfig, Prefix, Slots, released_gpt
from burnish.models.llamagen.static import StaticSteps, padded
from burnish.models.llamagen.vq import RELEASED_VQ, VQModel, decode_in_chunks
from burnish.models.lora import Lora, adapt, adapters_at_work, adapters_off, merged
from burnish.models.places import fetch
from burnish.models.sharding import full, shard
from burnish.models.weights import Copies, KeepsCopies
from burnish.prompts import distinct_prompts
from burnish.types import Law, Plan, Prompt, Rollout, TokenPlan, Tokens


@dataclass(frozen=True)
class LlamaGen(PolicySpec):
    """LlamaGen's GPT with its tokenizer."""

    gpt: str  # weights: a released .pt, .safetensors, a folder from `burnish export`, or owner/repository:file on a hub
    tokenizer: str  # weights of the VQ tokenizer, likewise
    size: str = ""  # released size of the GPT: B, L, XL, XXL, 3B, ...; empty where a config.json says it
    vq: Literal["VQ-8", "VQ-16", ""] = "VQ-16"  # released tokenizer; empty where a config.json says it
    text_encoder: str = ""  # folder or hub id of the T5 encoder of a text-conditional model; empty: class-conditional
    pixels: int = 256  # side of a picture; the tokens of a side are this over 8 or 16
    precision: Precision = "fp32"  # of the arithmetic; weights and optimiser are float32 always
    lora: Lora | None = None  # train adapters instead of all weights
    recompute: bool = False  # keep less of the forward pass and compute it again for the backward pass
    logp_tokens: int = 4096  # tokens whose logits over the whole vocabulary exist at once
    draw_precision: Literal["same", "int8"] = (
        "same"  # of the blocks' products while drawing. int8: what drew is recorded, and law_gap tells how far it is
    )
    compile: bool = (
        False  # drawing of a token, by torch.compile, in CUDA graphs on a GPU: minutes for each number of rows
    )
    speculative: int = 0  # tokens that are guessed and checked in each pass while drawing; the law stays as it is
    decode_rows: int = 64  # pictures decoded at once
    decode_precision: Literal["fp32", "bf16", "fastest"] = (
        "fp32"  # of the tokenizer's arithmetic; fastest: bf16 where the processor has it. The law is not touched by it
    )

    def __post_init__(self) -> None:
        if self.speculative < 0:
            raise ValueError(f"speculative must be 0 (each token by a pass of its own) or more, got {self.speculative}")
        if self.speculative and self.compile:
            raise ValueError("speculative and compile: passes that guess tokens are not compiled; one of the two")

    def footprint(self) -> Footprint:
        """Sizes, without reading weights. Raises ValueError where neither `size` nor a config.json says them."""
        shape = released_gpt(self.size, bool(self.text_encoder)) if self.size else gpt_shape(fetch(self.gpt))
        total, cell = _count(shape), RELEASED_VQ[self.vq].cell if self.vq else vq_shape(fetch(self.tokenizer)).cell
        # wqkv, wo, w1 and w3, w2: an adapter has `rank` numbers for every input and output
        sides = 4 * shape.dim + 2 * shape.dim + 3 * (shape.dim + shape.hidden)
        trainable = self.lora.rank * shape.layers * sides if self.lora else total
        return Footprint(
            parameters=total,
            trainable=trainable,
            tokens=(self.pixels // cell) ** 2,
            vocabulary=shape.vocabulary,
            width=shape.dim,
            layers=shape.layers,
            bytes_per_number=2 if self.precision == "bf16" else 4,
            recompute=self.recompute,
        )

    def load(self, device: torch.device) -> LlamaGenPolicy:
        """Read the weights. Raises ValueError for files that are missing, cut short, or do not fit."""
        shape = released_gpt(self.size, bool(self.text_encoder)) if self.size else None
        gpt = load_gpt(fetch(self.gpt), shape)
        vq = load_vq(fetch(self.tokenizer), RELEASED_VQ[self.vq] if self.vq else None)
        captions = None
        if bool(self.text_encoder) != bool(gpt.config.caption_dim):
            kind = "text-conditional and needs" if gpt.config.caption_dim else "class-conditional and has no use for"
            raise ValueError(f"policy.llamagen: {self.gpt} is {kind} a text_encoder")
        if self.text_encoder:
            captions = Captions(fetch(self.text_encoder), gpt.config.caption_length, device)
            if captions.width != gpt.config.caption_dim:
                raise ValueError(
                    f"policy.llamagen.text_encoder: {self.text_encoder} gives features of width {captions.width}, "
                    f"but {self.gpt} takes {gpt.config.caption_dim}"
                )
        if gpt.config.vocabulary > vq.config.codes:
            raise ValueError(
                f"policy.llamagen: the GPT draws from {gpt.config.vocabulary} tokens, "
                f"the tokenizer knows {vq.config.codes}"
            )
        if self.pixels % vq.config.cell:
            raise ValueError(
                f"policy.llamagen.pixels: {self.pixels} is not a multiple of the tokenizer's {vq.config.cell}"
            )
        return LlamaGenPolicy(self, gpt.to(device).eval(), vq.to(device).eval().requires_grad_(False), captions, device)


def _count(shape: GPTConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in GPT(shape).parameters())


class LlamaGenPolicy(KeepsCopies):
    """A loaded LlamaGen. `gpt` is trained; tokenizer and text encoder never are."""

    def __init__(self, spec: LlamaGen, gpt: GPT, vq: VQModel, captions: Captions | None, device: torch.device):
        self.spec, self.gpt, self.vq, self.captions, self.device = spec, gpt, vq, captions, device
        self.side = spec.pixels // vq.config.cell
        self._cache: Cache | None = None
        self._divided = False  # among processes
        self._drawn: dict[bool, GPT] = {}  # copies that draw where they have to stay, by whether adapters are at work
        self.passes = 0  # of the network for the last rollout's tokens, where some were guessed
        quick = spec.decode_precision == "fastest" and quick_in_bf16(device)
        self._decodes_bf16 = quick or spec.decode_precision == "bf16"
        if spec.lora:
            adapt(gpt, spec.lora, ("wqkv", "wo", "w1", "w2", "w3"))  # every linear layer of the blocks
        off = partial(adapters_off, gpt) if spec.lora else None
        self.copies = Copies([(n, p) for n, p in gpt.named_parameters() if p.requires_grad], off)

    # --- drawing -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], plan: Plan, noise: Noise) -> Rollout:
        assert isinstance(plan, TokenPlan), f"{type(plan).__name__} is no plan for tokens"
        rows, distinct = distinct_prompts(prompts)
        with autocast(self.device, self.spec.precision):
            tokens = self._draw(distinct, rows.to(self.device), plan, noise)
        if self.device.type != "cpu" and not self.spec.compile:  # its memory is the update's; graphs know where it lies
            self._cache = None
        with lap("decode"), torch.autocast(self.device.type, torch.bfloat16, enabled=self._decodes_bf16):
            media = decode_in_chunks(self.vq, tokens.ids, self.spec.decode_rows).float()
        return Rollout(tuple(prompts), rows, (tokens,), media, plan, noise.ids)

    @torch.no_grad()
    def read_ahead(self, prompts: Sequence[Prompt]) -> None:
        if self.captions is not None:
            with autocast(self.device, self.spec.precision):
                self.captions([prompt.text for prompt in distinct_prompts(prompts)[1]])

    def _draw(self, distinct: Sequence[Prompt], rows: Int[Tensor, " b"], plan: TokenPlan, noise: Noise) -> Tokens:
        b, n = len(rows), self.side**2
        whole = self._whole()
        branches = self._branches(whole, distinct, rows, with_null=plan.guidance != 1.0)
        prefix = whole.prefix(Slots.concatenate(branches))
        gpt = self._drawing(whole)
        plain = _plain(plan, "sampled")
        room = len(branches) * b
        cache = self._room(padded(room) if self.spec.compile else room)
        bias = gpt.fill(cache, prefix)
        uniform = noise.uniform(n).to(self.device)
        if self.spec.speculative and n > 1:
            return self._guessed(gpt, prefix, plan, cache, bias, uniform)
        next_token = StaticSteps(gpt, self.side, cache).next if self.spec.compile else gpt.next
        ids = torch.empty(n, b, dtype=torch.long, device=self.device)
        logp, entropy = torch.empty(2, n, b, device=self.device)
        hidden = gpt.first(prefix)
        for i in range(n):
            mixed = self._mixed(hidden.split(b), plan)
            ids[i], logp[i], entropy[i] = self._picked(gpt, mixed, plain, uniform[:, i])
            if i + 1 < n:
                hidden = next_token(ids[i].repeat(len(branches)), i, self.side, cache, bias)
        order = torch.arange(n, device=self.device).expand(b, n)
        return Tokens(ids.T.contiguous(), logp.T.contiguous(), torch.ones_like(logp.T), order, entropy.T.contiguous())

    def _picked(self, gpt: GPT, mixed: Tensor, plain: TokenPlan, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens after outputs (n, dim), by one number each, with their log-probability and the entropy of the law."""
        return draw_with_logp(law_logits(gpt.output(mixed).float(), None, plain, "sampled"), uniform)

    def _whole(self) -> GPT:
        """The network, or a copy of all of it where its weights are divided: to draw a token would gather them anew."""
        if not self._divided:
            return self.gpt
        with torch.device("meta"):
            gpt = GPT(self.gpt.config)
        gpt.load_state_dict({name: full(tensor) for name, tensor in self.gpt.state_dict().items()}, assign=True)
        return gpt

    def _drawing(self, gpt: GPT) -> GPT:
        """The network that draws: its blocks have been rounded if so asked for. The head, which decides, never is."""
        if self.spec.draw_precision == "int8":
            gpt = in_eight_bits(gpt, "layers")
        dtype = DTYPES[self.spec.precision]
        if not self.spec.compile:
            return packed(gpt, dtype, self.device)
        if dtype != torch.float32:
            gpt = with_linear_layers(gpt, "", lambda weight: CastLinear(weight, dtype))
        if gpt is self.gpt:
            return gpt
        # Graphs know weights by where they lie: the first copy takes the values of the others.
        first = self._drawn.setdefault(bool(self.spec.lora) and adapters_at_work(gpt), gpt)
        if first is not gpt:
            for kept, fresh in zip(first.buffers(), gpt.buffers(), strict=True):
                kept.copy_(fresh)
        return first

    def _guessed(
        self, gpt: GPT, prefix: Prefix, plan: TokenPlan, cache: Cache, bias: Tensor | None, uniform: Tensor
    ) -> Tokens:
        """The same tokens in fewer passes: predictive sampling by fixed points. Wiggers and Hoogeboom, 2002.09928.

        Which token is drawn is a function of its logits and its number, which is keyed. So a pass over the last known
        token and some guesses tells one token more than these, of which those up to the first wrong guess are the ones
        that a pass for each would have drawn: nothing is accepted by chance, and the law is the same. Others are the
        next guesses. A pass over several rounds otherwise than a pass for one, so that in bfloat16 some pictures may
        differ; the log-probability is that of the logits which drew.
        """
        plain, (b, n), width = _plain(plan, "sampled"), uniform.shape, 1 + self.spec.speculative
        ids = torch.zeros(b, n + width + 1, dtype=torch.long, device=self.device)
        logp, entropy = torch.zeros(2, b, n + width + 1, device=self.device)
        uniform = torch.nn.functional.pad(uniform, (0, width + 1), value=0.5)
        branches = len(prefix.last) // b

        def draw(hidden: Tensor, at: Int[Tensor, "b k"]) -> Int[Tensor, "b k"]:
            """The tokens at places `at`, which become part of the picture or guesses."""
            mixed = self._mixed(hidden.split(b), plan).flatten(0, 1)
            found = [part.view(at.shape) for part in self._picked(gpt, mixed, plain, uniform.gather(1, at).flatten())]
            for kept, part in zip((ids, logp, entropy), found, strict=True):
                kept.scatter_(1, at, part.to(kept.dtype))
            return found[0]

        self.passes, known = 1, torch.ones(b, dtype=torch.long, device=self.device)  # tokens of each picture
        draw(gpt.first(prefix).unsqueeze(1), torch.zeros_like(known).unsqueeze(1))
        ids[:, 1:] = ids[:, :1]
        while int(known.min()) < n:
            at = known.unsqueeze(1) + torch.arange(width, device=self.device)
            guesses = ids.gather(1, at)
            asked = torch.cat([ids.gather(1, at[:, :1] - 1), guesses[:, :-1]], 1)
            hidden = gpt.several(asked.repeat(branches, 1), at.repeat(branches, 1) - 1, self.side, cache, bias)
            right = (draw(hidden, at) == guesses)[:, :-1]
            known = (known + 1 + right.long().cumprod(1).sum(1)).clamp(max=n)
            self.passes += 1
        order = torch.arange(n, device=self.device).expand(b, n)
        return Tokens(
            ids[:, :n].contiguous(), logp[:, :n].contiguous(), torch.ones_like(logp[:, :n]), order,
            entropy[:, :n].contiguous(),
        )  # fmt: skip

    def _room(self, rows: int) -> Cache:
        """The cache, allocated anew only when more rows are asked for than ever before."""
        if self._cache is None or len(self._cache.memory[0]) < rows:
            slots = self.side**2 + 1 + self.spec.speculative
            self._cache = self.gpt.cache(rows, slots, DTYPES[self.spec.precision], self.device)
        return self._cache.of(rows)

    # --- scoring -----------------------------------------------------------------------------------------------------

    def logp(self, rollout: Rollout) -> Float[Tensor, "b k"]:
        plan, tokens = rollout.plan, rollout.decisions[0]
        assert isinstance(plan, TokenPlan) and isinstance(tokens, Tokens)
        rows, distinct = distinct_prompts(rollout.prompts)
        with autocast(self.device, self.spec.precision, cached=not self._divided):
            return self.gpt(lambda: self._scored(tokens.ids, distinct, rows.to(self.device), plan))

    def _scored(
        self, ids: Int[Tensor, "b n"], distinct: Sequence[Prompt], rows: Int[Tensor, " b"], plan: TokenPlan
    ) -> Float[Tensor, "b n"]:
        with_null = plan.law != "conditional" and plan.guidance != 1.0
        parts = self._branches(self.gpt, distinct, rows, with_null)
        if plan.detach_null:
            hidden = [self._all(ids, parts[0])]
            with torch.no_grad():
                hidden += [self._all(ids, part) for part in parts[1:]]
        else:  # a layer is asked once for both: where it is divided, it comes and goes with each
            hidden = self._all(ids.repeat(len(parts), 1), Slots.concatenate(parts)).split(len(ids))
        law: Law = "guided" if plan.law == "tempered" else plan.law  # `_plain` has made its temperature w
        return self._logp_of(self._mixed(hidden, plan), ids, _plain(plan, plan.law), law)

    def _all(self, ids: Int[Tensor, "b n"], slots: Slots) -> Float[Tensor, "b n dim"]:
        return self.gpt.all(ids, slots, self.side, self.spec.recompute and torch.is_grad_enabled())

    def _logp_of(self, hidden: Tensor, ids: Tensor, plan: TokenPlan, law: Law) -> Float[Tensor, "b n"]:
        """Log-probabilities, a chunk of tokens at a time: logits are computed again in the backward pass, not kept."""

        def part(h: Tensor, token: Tensor) -> Tensor:
            return logp_of(law_logits(self.gpt.output(h).float(), None, plan, law, keep=token), token)

        chunks = zip(hidden.flatten(0, 1).split(self.spec.logp_tokens), ids.flatten().split(self.spec.logp_tokens))
        if torch.is_grad_enabled() and ids.numel() > self.spec.logp_tokens:
            values = [checkpoint(part, h, token, use_reentrant=False) for h, token in chunks]
        else:
            values = [part(h, token) for h, token in chunks]
        return torch.cat(values).view(ids.shape)

    # --- both --------------------------------------------------------------------------------------------------------

    def _branches(self, gpt: GPT, distinct: Sequence[Prompt], rows: Int[Tensor, " b"], with_null: bool) -> list[Slots]:
        """Prefixes of the conditional branch and, if asked for, of the one without a prompt; one row a sample."""
        if self.captions is None:
            null_class = gpt.config.classes
            classes = torch.tensor([class_of(p, null_class) for p in distinct], device=self.device)
            found = [gpt.class_slots(classes).take(rows)]
            if with_null:
                found.append(gpt.class_slots(classes.new_tensor([null_class])).take(torch.zeros_like(rows)))
            return found
        features, visible = self.captions([p.text for p in distinct])
        found = [gpt.caption_slots(features, visible).take(rows)]
        if with_null:
            # What no caption looks like depends on the caption's length alone, so equal lengths share it.
            lengths, which = visible.sum(1).unique(return_inverse=True)
            slots = visible.shape[1] - torch.arange(visible.shape[1], device=self.device)
            found.append(gpt.null_caption_slots(slots <= lengths[:, None]).take(which[rows]))
        return found

    def _mixed(self, hidden: Sequence[Tensor], plan: TokenPlan) -> Tensor:
        if len(hidden) == 1:
            return hidden[0]
        return guided(hidden[0], hidden[1], plan.guidance, plan.detach_null)

    # --- weights -----------------------------------------------------------------------------------------------------

    def divide(self, mesh: Any) -> None:
        for name, asked in (("lora", self.spec.lora), ("compile", self.spec.compile)):
            if asked:
                raise ValueError(f"policy.llamagen.{name}: not beside shard; leave one of the two out")
        shard(self.gpt, mesh)
        self._divided = True
        self.copies = Copies(list(self.gpt.named_parameters()))

    def export(self, folder: Path) -> None:
        save_model(merged(self.gpt), folder)


def class_of(prompt: Prompt, classes: int) -> int:
    """The class a prompt asks for. Raises ValueError for a prompt without one, or one out of range."""
    number = prompt.facts.get("class_id")
    if not isinstance(number, int) or not 0 <= number < classes:
        raise ValueError(
            f"prompt {prompt.id!r}: a class-conditional model needs facts.class_id, a whole number from 0 to "
            f"{classes - 1}, not {number!r}"
        )
    return number


def _plain(plan: TokenPlan, law: str) -> TokenPlan:
    """What is left to do once guidance has been applied before the head. `tempered` is a temperature of w."""
    return replace(plan, guidance=1.0, temperature=plan.guidance if law == "tempered" else plan.temperature)
