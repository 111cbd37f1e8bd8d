"""LlamaGen's GPT over image tokens. Sun et al. 2024, arXiv:2406.06525; sections 5.2 and 6.3 of the notes.

A sequence is a prefix (one class slot, or 120 caption slots) and then the image's tokens, row by row. The released
network multiplies queries and keys of the *prefix* by zero (its rotary table holds cos = sin = 0 there). Three things
follow, and this file is built on them; each is exact, none is an approximation:

1. A prefix slot attends to all visible slots before it equally: its attention is a running mean of values.
2. An image token gives every visible prefix slot the score 0. All of them together act like ONE slot whose value is
   the mean of theirs and whose score is the log of their number. So caches and attention hold one slot, not 120.
3. The prefix never depends on the image, so it is computed once for each distinct prompt, and its samples share it.

The head has no bias, hence guidance commutes with it: head(u + w (c - u)) = head(u) + w (head(c) - head(u)).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import ClassVar, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class GPTConfig:
    """Shape of a network."""

    dim: int = 768
    layers: int = 12
    heads: int = 12
    vocabulary: int = 16384
    classes: int = 1000  # of a class-conditional model, whose table holds one more row: no class
    caption_dim: int = 0  # width of the caption features of a text-conditional model; 0 for a class-conditional one
    caption_length: int = 120  # slots of the caption

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer: 8/3 dim, rounded up to a multiple of 256."""
        return -(-int(8 * self.dim / 3) // 256) * 256

    @property
    def prefix(self) -> int:
        return self.caption_length if self.caption_dim else 1


def released_gpt(size: str, text: bool) -> GPTConfig:
    """Shape of a released size: B, L, XL, XXL, XXXL, 1B, 3B, 7B."""
    if size not in SIZES:
        raise ValueError(f"no LlamaGen of size '{size}' (choices: {', '.join(SIZES)})")
    layers, heads, dim = SIZES[size]
    return GPTConfig(dim=dim, layers=layers, heads=heads, caption_dim=2048 if text else 0)


SIZES = {
    "B": (12, 12, 768),
    "L": (24, 16, 1024),
    "XL": (36, 20, 1280),
    "XXL": (48, 24, 1536),
    "XXXL": (48, 40, 2560),
    "1B": (22, 32, 2048),
    "3B": (24, 32, 3200),
    "7B": (32, 32, 4096),
}


@dataclass(frozen=True)
class Slots:
    """What the prefixes of `p` prompts are made of, and which of them each of `b` samples has: many may share one."""

    embedded: Float[Tensor, "p t dim"]
    visible: Bool[Tensor, "p t"]  # others are padding before a caption
    rows: Int[Tensor, " b"]

    def take(self, rows: Int[Tensor, " b"]) -> Slots:
        """Those of other samples: each has the prefix of one of these."""
        return replace(self, rows=self.rows[rows])

    @property
    def score(self) -> Float[Tensor, " b"]:
        """Log of the number of visible slots."""
        return self.visible.sum(1).float().log()[self.rows]

    @staticmethod
    def concatenate(parts: Sequence[Slots]) -> Slots:
        before = accumulate((len(part.visible) for part in parts[:-1]), initial=0)
        rows = [part.rows + first for part, first in zip(parts, before, strict=True)]
        return Slots(torch.cat([p.embedded for p in parts]), torch.cat([p.visible for p in parts]), torch.cat(rows))


@dataclass(frozen=True)
class Prefix:
    """What the image tokens of `b` samples see of their prefixes."""

    value: tuple[Float[Tensor, "b heads d"], ...]  # per layer, the mean value of the visible slots
    score: Float[Tensor, " b"]  # log of the number of visible slots
    last: Float[Tensor, "b dim"]  # output of the last slot, which predicts token 0


T = TypeVar("T")
Slot = slice | Tensor  # of the cache, where a token goes: of one number


class RMSNorm(nn.Module):
    """x / rms(x) in float32, cast back, then times a weight."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=1e-5).to(x.dtype) * self.weight


class Attention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.wqkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def prefix(self, x: Float[Tensor, "p t dim"], visible: Bool[Tensor, "p t"]) -> tuple[Tensor, Tensor]:
        """Output of the prefix slots, and the mean value of the visible ones. Queries and keys are zero here."""
        v = self.wqkv(x)[..., 2 * x.shape[-1] :]
        count = visible.cumsum(1).unsqueeze(-1)
        mean = (v * visible.unsqueeze(-1)).cumsum(1, dtype=torch.float32) / count.clamp(min=1)
        mixed = torch.where(count > 0, mean.to(v.dtype), v)  # a padding slot before the caption sees itself alone
        return self.wo(mixed), mixed[:, -1].unflatten(-1, (self.heads, -1))

    def all(self, x: Tensor, rope: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of all slots at once. Slot 0 stands for the prefix: key zero, value given, output never read."""
        q, k, v = self._qkv(x, rope)
        v = torch.cat([value.unsqueeze(1).to(v.dtype), v[:, 1:]], 1)
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, is_causal=mask is None
        )
        return self.wo(mixed.transpose(1, 2).flatten(2))

    def next(
        self, x: Tensor, rope: Tensor, keys: Tensor, values: Tensor, slot: Slot, seen: slice, bias: Tensor | None
    ) -> Tensor:
        """Attention of one token, which is written into the cache at `slot`, to the slots `seen`."""
        q, k, v = self._qkv(x, rope)
        keys[:, :, slot] = k.unsqueeze(2).to(keys.dtype)
        values[:, :, slot] = v.unsqueeze(2).to(values.dtype)
        bias = None if bias is None else bias[..., seen]
        attend = _one_query if x.device.type == "cpu" else F.scaled_dot_product_attention
        return self.wo(attend(q.unsqueeze(2).to(keys.dtype), keys[:, :, seen], values[:, :, seen], bias).flatten(1))

    def several(
        self, x: Float[Tensor, "n dim"], rope: Tensor, keys: Tensor, values: Tensor, slots: Tensor, mask: Tensor
    ) -> Float[Tensor, "n dim"]:
        """Attention of several tokens of each row, which are written into the cache at `slots` (rows, tokens)."""
        q, k, v = (part.unflatten(0, slots.shape) for part in self._qkv(x, rope))
        rows = torch.arange(len(slots), device=slots.device).unsqueeze(1)
        keys[rows, :, slots] = k.to(keys.dtype)
        values[rows, :, slots] = v.to(values.dtype)
        seen = slice(0, mask.shape[-1])
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2).to(keys.dtype), keys[:, :, seen], values[:, :, seen], attn_mask=mask
        )
        return self.wo(mixed.transpose(1, 2).flatten(2).flatten(0, 1))

    def _qkv(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turned queries, turned keys, values; each (..., heads, d)."""
        qkv = self.wqkv(x).unflatten(-1, (3, self.heads, -1))
        q, k = rotate(qkv[..., :2, :, :], rope).unbind(-3)
        return q, k, qkv[..., 2, :, :]


def _one_query(
    q: Float[Tensor, "b heads 1 d"], keys: Float[Tensor, "b heads s d"], values: Tensor, bias: Tensor | None
) -> Float[Tensor, "b heads 1 d"]:
    """Attention of one query for each sequence, by products of a matrix and a vector.

    F.scaled_dot_product_attention works on blocks of queries, of which there is one here: on a processor it takes 1.1
    to 1.3 times as long over 129 to 257 slots, and in bfloat16 three times. The query stands on the left: in bfloat16
    that reads keys twice as fast as on the right.
    """
    scores = ((q * q.shape[-1] ** -0.5) @ keys.transpose(2, 3)).float()
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return weights.to(values.dtype) @ values


class FeedForward(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden, bias=False)
        self.w2 = nn.Linear(config.hidden, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim)
        self.ffn_norm = RMSNorm(config.dim)

    def prefix(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        mixed, value = self.attention.prefix(self.attention_norm(x), visible)
        return self._feed(x + mixed), value

    def forward(
        self, prefix: Tensor, visible: Tensor, rows: Tensor, x: Tensor, rope: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Prefixes (p, t, dim) and all slots of samples (b, n, dim) at once."""
        prefix, value = self.prefix(prefix, visible)
        return prefix, self._feed(x + self.attention.all(self.attention_norm(x), rope, value[rows], mask))

    def next(
        self, x: Tensor, rope: Tensor, keys: Tensor, values: Tensor, slot: Slot, seen: slice, bias: Tensor | None
    ) -> Tensor:
        return self._feed(x + self.attention.next(self.attention_norm(x), rope, keys, values, slot, seen, bias))

    def several(self, x: Tensor, rope: Tensor, keys: Tensor, values: Tensor, slots: Tensor, mask: Tensor) -> Tensor:
        return self._feed(x + self.attention.several(self.attention_norm(x), rope, keys, values, slots, mask))

    def _feed(self, x: Tensor) -> Tensor:
        return x + self.feed_forward(self.ffn_norm(x))


class ClassEmbedding(nn.Module):
    """One slot: a row of a table. The last row stands for no class."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(config.classes + 1, config.dim)


class CaptionProjection(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.caption_dim, config.dim, bias=False)
        self.fc2 = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class CaptionEmbedding(nn.Module):
    """A slot for every caption feature. `uncond_embedding` stands for no caption; it is never trained."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.cap_proj = CaptionProjection(config)
        null = torch.randn(config.caption_length, config.caption_dim) / config.caption_dim**0.5
        self.register_buffer("uncond_embedding", null)
        self.uncond_embedding: Tensor


GROWTH = 32  # slots that the room in a cache grows by


class Cache:
    """Keys and values of every layer for some sequences; slot 0 stands for the prefix. Allocated once and reused.

    keys, values  per layer (rows, heads, room, d), in one piece: `room` of all the slots that there is memory for
    grows         room is little at first and more by and by. A processor reads keys and values 1.4 to 1.9 times as
                  fast where no empty slots lie between those of two sequences, and in bfloat16 its products (oneDNN)
                  copy them first where some do
    """

    def __init__(self, memory: Sequence[Float[Tensor, "rows heads slots d"]], grows: bool) -> None:
        """`memory` for the keys of each layer, then for the values of each."""
        self.memory, self.grows = tuple(memory), grows
        self.slots = self.memory[0].shape[2]
        room = min(GROWTH, self.slots) if grows else self.slots
        self._hold([_laid_out(part, room) for part in self.memory])

    def of(self, rows: int) -> Cache:
        """The memory of the first sequences alone."""
        return Cache([part[:rows] for part in self.memory], self.grows)

    def room_for(self, slots: int) -> int:
        """Room once there is as much as for `slots`, or as there is memory for. New slots hold zeros."""
        room = min(slots, self.slots)
        if room > self.room:
            self._hold([_moved(part, held, room) for part, held in zip(self.memory, self._held, strict=True)])
        return self.room

    def _hold(self, parts: Sequence[Tensor]) -> None:
        self._held = tuple(parts)
        self.room = self._held[0].shape[2]
        self.keys, self.values = self._held[: len(parts) // 2], self._held[len(parts) // 2 :]


def _laid_out(memory: Float[Tensor, "rows heads slots d"], room: int) -> Float[Tensor, "rows heads room d"]:
    rows, heads, _, d = memory.shape
    return memory.flatten()[: rows * heads * room * d].view(rows, heads, room, d)


def _moved(memory: Tensor, held: Tensor, room: int) -> Tensor:
    kept, more = held.clone(), _laid_out(memory, room)
    more[:, :, : held.shape[2]] = kept
    more[:, :, held.shape[2] :] = 0
    return more


class GPT(nn.Module):
    """The network: `all` tokens of an image at once (teacher forcing); or `prefix`, `first`, and `next` by `next`."""

    _no_split_modules: ClassVar = ["Block"]  # for models/sharding

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_embedding = CaptionEmbedding(config) if config.caption_dim else ClassEmbedding(config)
        self.tok_embeddings = nn.Embedding(config.vocabulary, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim)
        self.output = nn.Linear(config.dim, config.vocabulary, bias=False)
        self.apply(_initialise)
        nn.init.zeros_(self.output.weight)

    def forward(self, work: Callable[[], T]) -> T:
        """`work()`, as one pass through the network: weights that are divided among processes are whole within it."""
        return work()

    def class_slots(self, classes: Int[Tensor, " p"]) -> Slots:
        """Prefixes of classes; `config.classes` stands for no class."""
        assert isinstance(self.cls_embedding, ClassEmbedding)
        x = self.cls_embedding.embedding_table(classes).unsqueeze(1)
        return _each_its_own(x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))

    def caption_slots(self, features: Float[Tensor, "p t f"], visible: Bool[Tensor, "p t"]) -> Slots:
        """Prefixes of captions: features left-padded to `config.caption_length`, and which slots hold one."""
        return _each_its_own(self._captions().cap_proj(features), visible)

    def null_caption_slots(self, visible: Bool[Tensor, "p t"]) -> Slots:
        """Prefixes of no caption. The rows seen are those of the caption it is paired with: the last n of 120."""
        return self.caption_slots(self._captions().uncond_embedding.expand(len(visible), -1, -1), visible)

    def prefix(self, slots: Slots) -> Prefix:
        """What tokens see that are drawn one by one."""
        x, values = slots.embedded, []
        for layer in self._blocks():
            x, value = layer.prefix(x, slots.visible)
            values.append(value[slots.rows])
        return Prefix(tuple(values), slots.score, x[slots.rows, -1])

    def all(
        self, ids: Int[Tensor, "b n"], slots: Slots, side: int, recompute: bool = False
    ) -> Float[Tensor, "b n dim"]:
        """Outputs that predict each of the tokens `ids`, all at once.

        recompute  keep only the input of each layer for the backward pass, and compute the rest again there
        """
        prefix = slots.embedded
        x = F.pad(self.tok_embeddings(ids[:, :-1]), (0, 0, 1, 0))  # slot 0: a row that nothing reads
        rope = self.turns(side)[: ids.shape[1]]
        mask = _prefix_mask(slots.score, ids.shape[1])
        for layer in self._blocks():
            given = prefix, slots.visible, slots.rows, x, rope, mask
            prefix, x = checkpoint(layer, *given, use_reentrant=False) if recompute else layer(*given)
        return self.norm(torch.cat([prefix[slots.rows, -1:].to(x.dtype), x[:, 1:]], 1))

    def first(self, prefix: Prefix) -> Float[Tensor, "b dim"]:
        """Output that predicts token 0."""
        return self.norm(prefix.last)

    def next(
        self, ids: Int[Tensor, " b"], position: int, side: int, cache: Cache, bias: Tensor | None
    ) -> Float[Tensor, "b dim"]:
        """Output that predicts token `position + 1`, given token `position`, which goes to slot `position + 1`."""
        slot = position + 1
        seen = slot + 1
        if cache.grows:
            seen = cache.room_for(-(-seen // GROWTH) * GROWTH)
            empty = torch.zeros(seen, device=ids.device)
            empty[slot + 1 :] = -torch.inf
            bias = empty if bias is None else bias[..., :seen] + empty
        return self.at(ids, self.turns(side)[slot], slice(slot, slot + 1), slice(0, seen), cache, bias)

    def at(
        self, ids: Int[Tensor, " b"], rope: Tensor, slot: Slot, seen: slice, cache: Cache, bias: Tensor | None
    ) -> Float[Tensor, "b dim"]:
        """Output after the tokens `ids`, which go to `slot`, are turned by `rope`, and attend to the slots `seen`."""
        x = self.tok_embeddings(ids)
        for layer, keys, values in zip(self._blocks(), cache.keys, cache.values, strict=True):
            x = layer.next(x, rope, keys, values, slot, seen, bias)
        return self.norm(x)

    def turns(self, side: int) -> Complex[Tensor, "slots 1 1 pairs"]:
        """The rotary embedding of each slot."""
        return _turns(side, self.config.dim // self.config.heads, self.tok_embeddings.weight.device)

    def several(
        self, ids: Int[Tensor, "b w"], positions: Int[Tensor, "b w"], side: int, cache: Cache, bias: Tensor | None
    ) -> Float[Tensor, "b w dim"]:
        """Outputs that predict the tokens after `positions`, given the tokens there: of each row w in a row.

        All before them is in the cache. What is there behind them is not seen, and may be of tokens that were wrong.
        Positions from the last one on may be asked about, and predict nothing.
        """
        slots = positions + 1
        upto = int(slots.max()) + 1
        cache.room_for(cache.slots)
        see = torch.arange(upto, device=ids.device) <= slots.unsqueeze(-1)
        mask = torch.zeros(see.shape, dtype=cache.keys[0].dtype, device=ids.device).masked_fill_(~see, -torch.inf)
        mask = mask.unsqueeze(1) if bias is None else mask.unsqueeze(1) + bias[..., :upto]
        x = self.tok_embeddings(ids).flatten(0, 1)
        turns = self.turns(side)
        rope = turns[slots.clamp(max=len(turns) - 1).flatten()]
        for layer, keys, values in zip(self._blocks(), cache.keys, cache.values, strict=True):
            x = layer.several(x, rope, keys, values, slots, mask)
        return self.norm(x).unflatten(0, ids.shape)

    def cache(self, rows: int, tokens: int, dtype: torch.dtype, device: torch.device) -> Cache:
        """Room for `tokens` tokens behind the prefix slot."""
        heads = self.config.heads
        shape = (rows, heads, tokens, self.config.dim // heads)
        memory = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(2 * self.config.layers)]
        return Cache(memory, grows=device.type == "cpu")

    def fill(self, cache: Cache, prefix: Prefix) -> Tensor | None:
        """Empty the cache and write the prefix into slot 0 of the first rows.

        Returns the score bias of all slots that there is memory for, None if it is zero. What an earlier draw left is
        wiped: an empty slot has the weight 0, but 0 times what is no number is none.
        """
        for keys, values, value in zip(cache.keys, cache.values, prefix.value, strict=True):
            keys.zero_()
            values.zero_()
            values[: len(value), :, 0] = value
        if self.config.prefix == 1:
            return None
        bias = torch.zeros(len(cache.keys[0]), 1, 1, cache.slots, dtype=cache.keys[0].dtype)
        bias = bias.to(prefix.score.device)
        bias[: len(prefix.score), 0, 0, 0] = prefix.score
        return bias

    def _blocks(self) -> Sequence[Block]:
        return cast(Sequence[Block], self.layers)  # a ModuleList does not say what it holds

    def _captions(self) -> CaptionEmbedding:
        assert isinstance(self.cls_embedding, CaptionEmbedding)
        return self.cls_embedding


def _each_its_own(x: Float[Tensor, "p t dim"], visible: Bool[Tensor, "p t"]) -> Slots:
    return Slots(x, visible, torch.arange(len(x), device=x.device))


@lru_cache(maxsize=16)
def rotary(side: int, d: int, device: torch.device) -> Float[Tensor, "cells 1 pairs 2"]:
    """cos and sin of the 2-D rotary embedding of each cell, row by row; half of the pairs turn with y, half with x."""
    frequencies = 10000.0 ** (-torch.arange(0, d // 2, 2, dtype=torch.float32) / (d // 2))[: d // 4]
    turns = torch.arange(side, dtype=torch.float32)[:, None] * frequencies
    y, x = turns[:, None].expand(-1, side, -1), turns[None].expand(side, -1, -1)
    angles = torch.cat([y, x], -1).flatten(0, 1)
    return torch.stack([angles.cos(), angles.sin()], -1).unsqueeze(1).to(device)


@lru_cache(maxsize=16)
def _turns(side: int, d: int, device: torch.device) -> Complex[Tensor, "slots 1 1 pairs"]:
    """The rotary embedding of each slot as complex numbers. That of slot 0, the prefix, is 0 and not 1."""
    cells = torch.view_as_complex(rotary(side, d, device))
    return torch.cat([torch.zeros_like(cells[:1]), cells]).unsqueeze(1)


def rotate(
    x: Float[Tensor, "... two heads d"], turns: Complex[Tensor, "... 1 1 pairs"] | Float[Tensor, "... 1 1 pairs 2"]
) -> Float[Tensor, "... two heads d"]:
    """Turn the interleaved pairs (2i, 2i+1) of queries and keys, in float32: a pair is a complex number.

    turns  complex, which is quick, or the same as real numbers, which a compiler can make one kernel of
    """
    pairs = x.float().contiguous().unflatten(-1, (-1, 2))
    if turns.is_complex():
        return torch.view_as_real(torch.view_as_complex(pairs) * turns).flatten(-2).to(x.dtype)
    (a, b), (cos, sin) = pairs.unbind(-1), turns.unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def _prefix_mask(score: Float[Tensor, " b"], slots: int) -> Float[Tensor, "b 1 slots slots"] | None:
    """Causal mask that gives slot 0 its score; None where plain causal attention says the same."""
    if score.numel() == 0 or not bool(score.any()):
        return None
    causal = torch.full((slots, slots), -torch.inf, device=score.device).triu(1)
    mask = causal.expand(len(score), 1, -1, -1).clone()
    mask[..., 1:, 0] = score[:, None, None]
    return mask


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
