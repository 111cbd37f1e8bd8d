"""How raster tokens are usually drawn, written out from the notes on slow loops, as a yardstick for ours. Greedy.

Every habit below is exact, and each costs: a static cache that is attended over its full padded length under a dense
mask, keys and values repeated for each head, attention written out, guidance by doubling every row including the head,
a prefix for every image rather than every prompt, 120 slots of caption, the logits and probabilities of all steps kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from burnish.models.llamagen.gpt import GPT, CaptionEmbedding, ClassEmbedding, rotary


def slots_of(model: GPT, classes: Tensor | None, features: Tensor | None) -> Tensor:
    """Embedded prefix of every image, then that of no prompt for every image: (2b, t, dim)."""
    embedding = model.cls_embedding
    if isinstance(embedding, ClassEmbedding):
        null = torch.full_like(classes, model.config.classes)
        return embedding.embedding_table(torch.cat([classes, null])).unsqueeze(1)
    assert isinstance(embedding, CaptionEmbedding)
    return embedding.cap_proj(torch.cat([features, embedding.uncond_embedding.expand_as(features)]))


class NaiveLoop:
    """The loop and its cache, over the weights of a GPT."""

    def __init__(self, model: GPT, prefix: Tensor, visible: Tensor, tokens: int) -> None:
        self.model, self.prefix, self.tokens = model, prefix, tokens
        rows, t = visible.shape
        self.length = -(-(t + tokens) // 8) * 8
        heads = model.config.heads
        d = model.config.dim // heads
        shape = (rows, heads, self.length, d)
        self.cache = [(torch.zeros(shape), torch.zeros(shape)) for _ in model.layers]
        see = torch.ones(self.length, self.length).tril().bool().expand(rows, -1, -1).clone()
        see[:, :, :t] &= visible[:, None]
        self.see = see | torch.eye(self.length, dtype=torch.bool)
        self.rope = torch.cat([torch.zeros(t, 1, d // 2, 2), rotary(round(tokens**0.5), d, prefix.device)])

    @torch.no_grad()
    def greedy(self, guidance: float) -> Tensor:
        """The likeliest token at every step, (b, tokens)."""
        t = self.prefix.shape[1]
        token, probability, logits = self._pick(self.prefix, torch.arange(t), guidance)
        tokens, probabilities, kept = [token], [probability], [logits]
        for i in range(self.tokens - 1):
            x = self.model.tok_embeddings(torch.cat([token, token])).unsqueeze(1)
            token, probability, logits = self._pick(x, torch.tensor([t + i]), guidance)
            tokens.append(token.clone())
            probabilities.append(probability.clone())
            kept.append(logits)
        torch.cat(kept, 1)
        return torch.stack(tokens, 1)

    def _pick(self, x: Tensor, places: Tensor, guidance: float) -> tuple[Tensor, Tensor, Tensor]:
        for layer, (keys, values) in zip(self.model.layers, self.cache, strict=True):
            x = x + self._attention(layer.attention, _rms(x, layer.attention_norm.weight), keys, values, places)
            h = _rms(x, layer.ffn_norm.weight)
            part = layer.feed_forward
            gate = F.silu(F.linear(h, part.w1.weight)) * F.linear(h, part.w3.weight)
            x = x + F.linear(gate, part.w2.weight)
        logits = F.linear(_rms(x, self.model.norm.weight), self.model.output.weight).float()
        cond, null = logits.chunk(2)
        logits = null + (cond - null) * guidance
        probability = (logits[:, -1] / 1.0).softmax(-1)
        return probability.topk(1, -1).indices.squeeze(-1), probability, logits

    def _attention(self, part: torch.nn.Module, x: Tensor, keys: Tensor, values: Tensor, places: Tensor) -> Tensor:
        heads = self.model.config.heads
        q, k, v = (y.unflatten(-1, (heads, -1)) for y in F.linear(x, part.wqkv.weight).chunk(3, -1))
        q, k, v = (y.transpose(1, 2) for y in (_turn(q, self.rope[places]), _turn(k, self.rope[places]), v))
        keys[:, :, places], values[:, :, places] = k, v
        k, v = keys.repeat_interleave(1, 1), values.repeat_interleave(1, 1)
        score = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        mixed = score.masked_fill(~self.see[:, None, places], -torch.inf).softmax(-1) @ v
        return F.linear(mixed.transpose(1, 2).flatten(2), part.wo.weight)


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + 1e-5)).type_as(x) * weight


def _turn(x: Tensor, rope: Tensor) -> Tensor:
    pairs = x.float().unflatten(-1, (-1, 2))
    a, b, cos, sin = pairs[..., 0], pairs[..., 1], rope[..., 0], rope[..., 1]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2).type_as(x)
