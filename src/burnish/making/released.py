"""Models of released shapes with random weights, in their own formats: what a step costs does not depend on values.

    burnish bench flow_grpo --random reward=jpeg                          Stable Diffusion 3.5 medium
    burnish bench dancegrpo --random reward=jpeg                          Stable Diffusion 1.5
    burnish bench flow_grpo --random reward=jpeg policy='{flux: {pixels: 512, precision: bf16, lora: {rank: 64}}}'
    burnish bench ar_grpo --random reward=jpeg                            LlamaGen XL, or another policy.llamagen.size

Networks and decoders have the released shapes. Text encoders have the released widths and one layer: prompts are
encoded once in a run, so the time is that of the real model, and the memory is less by the layers that are left out
(T5-XXL has 9.5 GB in bfloat16). They read words of the scenes, as the prompts are those of the scenes. What depends on
values (guessed tokens, groups that are drawn again) costs what it does for a model that knows nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from burnish.core import PolicySpec
from burnish.making.fitting import untyped
from burnish.models.llamagen.files import save_model
from burnish.models.llamagen.gpt import GPT, released_gpt
from burnish.models.llamagen.vq import RELEASED_VQ, VQModel
from burnish.policies.flux import Flux
from burnish.policies.llamagen import LlamaGen
from burnish.policies.sd import SD
from burnish.policies.sd3 import SD3
from burnish.recipe.recipe import Recipe
from burnish.sources.on_policy import OnPolicy
from burnish.worlds.scenes.grammar import vocabulary
from burnish.worlds.scenes.words import word_tokenizer

PROMPTS = "burnish.worlds.scenes.grammar:evenly"
CLASSES = "burnish.worlds.scenes.classes:class_prompts"
CLIP_SLOTS, T5_SLOTS = 77, 512
UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}  # the rest of 1.5's shape is the class's own
DECODER = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}


def at_random(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe over random weights, which are written into `folder`, and prompts of the scenes.

    Raises ValueError for a policy whose released shape is not known here.
    """
    maker = next((make for kind, make in MAKERS.items() if isinstance(recipe.policy, kind)), None)
    if maker is None:
        known = ", ".join(kind.__name__ for kind in MAKERS)
        raise ValueError(
            f"--random: no released shape of {type(recipe.policy).__name__} is known here (those of {known} are); "
            "without --random the recipe's own weights are read"
        )
    torch.manual_seed(recipe.seed)
    folder.mkdir(parents=True, exist_ok=True)
    policy = maker(recipe.policy, folder)
    source = recipe.source
    if isinstance(source, OnPolicy):
        classes = isinstance(policy, LlamaGen) and not policy.text_encoder
        source = replace(source, prompts=CLASSES if classes else PROMPTS)
    return replace(recipe, policy=policy, source=source)


def llamagen(spec: LlamaGen, folder: Path) -> LlamaGen:
    """The released size that the settings name, XL if they name none, and the released tokenizer."""
    shape = released_gpt(spec.size or "XL", text=bool(spec.text_encoder))
    gpt = GPT(shape)
    torch.nn.init.normal_(gpt.output.weight, std=0.02)  # zero as released for training: every token equally likely
    save_model(gpt, folder)
    save_model(VQModel(RELEASED_VQ[spec.vq or "VQ-16"]), folder)
    text = ""
    if spec.text_encoder:
        text = str(folder / "t5")
        for part in (_t5(shape.caption_dim), _words(T5_SLOTS)):
            part.save_pretrained(text)
    return replace(spec, gpt=str(folder), tokenizer=str(folder), size="", vq="", text_encoder=text)


def sd3(spec: SD3, folder: Path) -> SD3:
    """Stable Diffusion 3.5 medium: 2.2 billion parameters in the network."""
    diffusers = untyped("diffusers")
    network = diffusers.SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)),
        qk_norm="rms_norm",
    )
    text = {"text_encoder_3": _t5(4096), "tokenizer_3": _words(T5_SLOTS)} if spec.t5 else {}
    diffusers.StableDiffusion3Pipeline(
        transformer=network.to(torch.bfloat16),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_decoder(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(768, projected=768),
        tokenizer=_words(CLIP_SLOTS),
        text_encoder_2=_clip(1280, projected=1280),
        tokenizer_2=_words(CLIP_SLOTS),
        **{"text_encoder_3": None, "tokenizer_3": None, **text},
    ).save_pretrained(folder)
    return replace(spec, weights=str(folder))


def flux(spec: Flux, folder: Path) -> Flux:
    """FLUX.1 dev: 12 billion parameters in the network."""
    diffusers = untyped("diffusers")
    diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(guidance_embeds=True).to(torch.bfloat16),  # dev's are the defaults
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_decoder(16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(768),
        tokenizer=_words(CLIP_SLOTS),
        text_encoder_2=_t5(4096),
        tokenizer_2=_words(T5_SLOTS),
    ).save_pretrained(folder)
    return replace(spec, weights=str(folder))


def sd(spec: SD, folder: Path) -> SD:
    """Stable Diffusion 1.5: 860 million parameters in the network."""
    diffusers = untyped("diffusers")
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    diffusers.StableDiffusionPipeline(
        unet=diffusers.UNet2DConditionModel(**UNET),
        scheduler=diffusers.DDIMScheduler(**noise, clip_sample=False),
        vae=_decoder(4, scaling_factor=0.18215),
        text_encoder=_clip(768),
        tokenizer=_words(CLIP_SLOTS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return replace(spec, weights=str(folder))


MAKERS: dict[type[PolicySpec], Callable[[Any, Path], PolicySpec]] = {LlamaGen: llamagen, SD3: sd3, Flux: flux, SD: sd}


def _words(slots: int) -> Any:
    return word_tokenizer(vocabulary(), slots)


def _decoder(channels: int, **fields: Any) -> Any:
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return untyped("diffusers").AutoencoderKL(latent_channels=channels, **DECODER, **kinds, **fields).to(torch.bfloat16)


def _clip(width: int, projected: int = 0) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    words = _words(CLIP_SLOTS)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=1,
        num_attention_heads=width // 64,
        max_position_embeddings=CLIP_SLOTS,
        projection_dim=projected or width,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _t5(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    heads = width // 64
    return T5EncoderModel(
        T5Config(
            vocab_size=len(_words(T5_SLOTS)),
            d_model=width,
            d_kv=64,
            d_ff=2 * width,
            num_layers=1,
            num_heads=heads,
            feed_forward_proj="gated-gelu",
        )
    )
