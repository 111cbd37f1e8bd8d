"""How raster tokens are usually drawn and learned from, written out from the notes on slow loops, as a yardstick.

Every habit below is exact, and each costs. Drawing, greedily: a static cache that is attended over its full padded
length under a dense mask, keys and values repeated for each head, attention written out, guidance by doubling every row
including the head, a prefix for every image rather than every prompt, 120 slots of caption, the logits and
probabilities of all steps kept. Learning: the policy and its reference run over the whole sequence, slots of the
caption included, under a mask made for each call; logits of all of it in float32, copied for a temperature of 1, then
read row by row; and their entropy beside the loss.
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


def visible_to(visible: Tensor, length: int) -> Tensor:
    """Which slots a slot attends to, (rows, length, length): those before it and itself, no padding of a caption."""
    rows, t = visible.shape
    see = torch.ones(length, length).tril().bool().expand(rows, -1, -1).clone()
    see[:, :, :t] &= visible[:, None]
    return see | torch.eye(length, dtype=torch.bool)


def turns(model: GPT, t: int, tokens: int) -> Tensor:
    """The rotary table, of zeros for the prefix."""
    d = model.config.dim // model.config.heads
    return torch.cat([torch.zeros(t, 1, d // 2, 2), rotary(round(tokens**0.5), d, model.output.weight.device)])


class NaiveLoop:
    """The loop and its cache, over the weights of a GPT."""

    def __init__(self, model: GPT, prefix: Tensor, visible: Tensor, tokens: int) -> None:
        self.model, self.prefix, self.tokens = model, prefix, tokens
        rows, t = visible.shape
        length = -(-(t + tokens) // 8) * 8
        shape = (rows, model.config.heads, length, model.config.dim // model.config.heads)
        self.cache = [(torch.zeros(shape), torch.zeros(shape)) for _ in model.layers]
        self.see, self.rope = visible_to(visible, length), turns(model, t, tokens)

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
            q, k, v = _heads(layer, x, self.rope[places])
            keys[:, :, places], values[:, :, places] = k, v
            x = _rest(layer, x, q, keys.repeat_interleave(1, 1), values.repeat_interleave(1, 1), self.see[:, places])
        logits = F.linear(_rms(x, self.model.norm.weight), self.model.output.weight).float()
        cond, null = logits.chunk(2)
        logits = null + (cond - null) * guidance
        probability = (logits[:, -1] / 1.0).softmax(-1)
        return probability.topk(1, -1).indices.squeeze(-1), probability, logits


def learn(
    model: GPT, prefix: Tensor, visible: Tensor, ids: Tensor, advantage: Tensor, beta: float, apart: float
) -> tuple[Tensor, Tensor]:
    """The gradient of GRPO's loss, which is returned with the mean entropy.

    apart            nats that the reference is away, which has the same weights
    prefix, visible  embedded slots (b, t, dim) of each image's prompt, and which hold one
    """
    with torch.no_grad():
        reference = _logp(model, prefix.detach(), visible, ids)[0] + apart
    logp, entropy = _logp(model, prefix, visible, ids)
    away = reference - logp
    loss = (beta * (away.exp() - away - 1) - (logp - logp.detach()).exp() * advantage[:, None]).mean()
    loss.backward()
    return loss.detach(), entropy


def _logp(model: GPT, prefix: Tensor, visible: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens (b, n) under the prompt alone, and their mean entropy."""
    t, n = prefix.shape[1], ids.shape[1]
    x = torch.cat([prefix, model.tok_embeddings(ids[:, :-1])], 1)
    see, rope = visible_to(visible, x.shape[1]), turns(model, t, n)[: x.shape[1]]
    for layer in model.layers:
        x = _rest(layer, x, *_heads(layer, x, rope), see)
    logits = F.linear(_rms(x, model.norm.weight), model.output.weight).float() / 1.0
    logits = logits[:, t - 1 :]
    rows = [row.gather(1, i[:, None]).squeeze(1) - row.logsumexp(1) for row, i in zip(logits, ids, strict=True)]
    with torch.no_grad():
        entropy = (logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)).mean()
    return torch.stack(rows), entropy


def _heads(layer: torch.nn.Module, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    part = layer.attention
    parts = F.linear(_rms(x, layer.attention_norm.weight), part.wqkv.weight).chunk(3, -1)
    q, k, v = (y.unflatten(-1, (part.heads, -1)) for y in parts)
    return _turn(q, rope).transpose(1, 2), _turn(k, rope).transpose(1, 2), v.transpose(1, 2)


def _rest(layer: torch.nn.Module, x: Tensor, q: Tensor, k: Tensor, v: Tensor, see: Tensor) -> Tensor:
    score = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    mixed = score.masked_fill(~see[:, None], -torch.inf).softmax(-1) @ v
    x = x + F.linear(mixed.transpose(1, 2).flatten(2), layer.attention.wo.weight)
    h, part = _rms(x, layer.ffn_norm.weight), layer.feed_forward
    gate = F.silu(F.linear(h, part.w1.weight)) * F.linear(h, part.w3.weight)
    return x + F.linear(gate, part.w2.weight)


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + 1e-5)).type_as(x) * weight


def _turn(x: Tensor, rope: Tensor) -> Tensor:
    pairs = x.float().unflatten(-1, (-1, 2))
    a, b, cos, sin = pairs[..., 0], pairs[..., 1], rope[..., 0], rope[..., 1]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2).type_as(x)
