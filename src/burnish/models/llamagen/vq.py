"""LlamaGen's image tokenizer: a VQGAN with normalised codes. Sun et al. 2024, arXiv:2406.06525.

Traps kept exactly: features and code vectors are both normalised before the nearest code is sought, and the
*normalised* vector is what the decoder sees; down-sampling pads right and bottom only; attention is single-headed and
sits in the lowest resolution and in the middle. The decoder's range is [-1, 1]; pictures here are in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class VQConfig:
    """Shape of a tokenizer."""

    channels: int = 128  # of the highest resolution
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # channels of each resolution, in units of `channels`
    latent: int = 256  # channels between encoder and quantiser
    codes: int = 16384  # entries of the codebook
    width: int = 8  # dimensions of a code

    @property
    def cell(self) -> int:
        """Pixels on a side that one token stands for."""
        return 2 ** (len(self.multipliers) - 1)


RELEASED_VQ = {"VQ-16": VQConfig(), "VQ-8": VQConfig(multipliers=(1, 2, 2, 4))}


class ResBlock(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1 = _norm(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = _norm(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(before, after, 1) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Attention(nn.Module):
    """One head over all positions, by 1x1 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2).unsqueeze(1) for conv in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)
        return x + self.proj_out(mixed.reshape(x.shape))


class Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution, and the step to the next."""

    def __init__(self, before: int, after: int, blocks: int, attention: bool) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResBlock(before if i == 0 else after, after) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(after) for _ in range(blocks if attention else 0))
        self.downsample: Down | None = None
        self.upsample: Up | None = None

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        for step in (self.downsample, self.upsample):
            x = x if step is None else step(x)
        return x


class Encoder(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for i, (before, after) in enumerate(zip([config.channels, *widths], widths, strict=False)):
            level = Level(before, after, 2, attention=i == last)
            level.downsample = Down(after) if i < last else None
            self.conv_blocks.append(level)
        self.mid = _middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.latent, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.conv_blocks:
            x = level(x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in reversed(config.multipliers)]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.latent, widths[0], 3, padding=1)
        self.mid = _middle(widths[0])
        self.conv_blocks = nn.ModuleList()
        for i, (before, after) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            level = Level(before, after, 3, attention=i == 0)
            level.upsample = Up(after) if i < last else None
            self.conv_blocks.append(level)
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.mid:
            x = block(x)
        for level in self.conv_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Codebook(nn.Module):
    """Unit vectors; a feature becomes the nearest one."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.codes, config.width)
        nn.init.uniform_(self.embedding.weight, -1 / config.codes, 1 / config.codes)

    def nearest(self, z: Float[Tensor, "n w"]) -> Int[Tensor, " n"]:
        """Index of the code closest to each feature. Between unit vectors the closest has the largest cosine."""
        codes = F.normalize(self.embedding.weight, dim=-1)
        return (F.normalize(z, dim=-1) @ codes.T).argmax(1)

    def vectors(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... w"]:
        return F.normalize(self.embedding(ids), dim=-1)


class VQModel(nn.Module):
    """Pictures to token ids and back."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Codebook(config)
        self.quant_conv = nn.Conv2d(config.latent, config.width, 1)
        self.post_quant_conv = nn.Conv2d(config.width, config.latent, 1)

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b w y x"]:
        """What is quantised, not yet normalised. Pictures in [0, 1]."""
        return self.quant_conv(self.encoder(images * 2 - 1))

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b n"]:
        """Token ids, row by row. Pictures in [0, 1], sides a multiple of `config.cell`."""
        z = self.features(images)
        return self.quantize.nearest(z.permute(0, 2, 3, 1).flatten(0, 2)).view(len(images), -1)

    def render(self, vectors: Float[Tensor, "b w y x"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures of code vectors, in about [0, 1] and not clamped, so that a gradient can pass."""
        return (self.decoder(self.post_quant_conv(vectors)) + 1) / 2

    def decode(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [0, 1] of square grids of token ids."""
        side = round(ids.shape[1] ** 0.5)
        if side * side != ids.shape[1]:
            raise ValueError(f"{ids.shape[1]} tokens are not a square grid")
        vectors = self.quantize.vectors(ids).transpose(1, 2).unflatten(2, (side, side))
        return self.render(vectors).clamp(0, 1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def _middle(channels: int) -> nn.ModuleList:
    return nn.ModuleList([ResBlock(channels, channels), Attention(channels), ResBlock(channels, channels)])


@torch.no_grad()
def decode_in_chunks(model: VQModel, ids: Int[Tensor, "b n"], rows: int = 64) -> Float[Tensor, "b 3 h w"]:
    """Pictures of many grids, at most `rows` at a time."""
    return torch.cat([model.decode(part) for part in ids.split(rows)])
