"""Latents as the tokens of FLUX.1 and Qwen-Image, 2 x 2 places each: another order of the same numbers."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

SIDE = 2  # places a side of a token


def packed(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n tokens d"]:
    """Tokens row by row: diffusers' FluxPipeline._pack_latents."""
    return F.pixel_unshuffle(x, SIDE).flatten(2).transpose(1, 2)


def unpacked(tokens: Float[Tensor, "n tokens d"], height: int) -> Float[Tensor, "n c h w"]:
    """The latent that was packed. height  places from top to bottom"""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // SIDE, -1)), SIDE)
