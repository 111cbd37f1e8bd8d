"""Small random pipelines, built from diffusers' own classes, saved in the real format, loaded as users do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from burnish.formulas.noise import Noise
from burnish.policies.flux import Flux
from burnish.policies.qwen_image import QwenImage
from burnish.policies.sana import Sana
from burnish.policies.sd import SD
from burnish.policies.sd3 import SD3
from burnish.policies.sdxl import SDXL
from burnish.policies.wan import Wan
from burnish.types import Prompt

TEXTS = ("a red circle", "two blue stars above a square", "star")
WORDS = sorted({word for text in TEXTS for word in text.split()})
LENGTH = 32  # slots of CLIP: every letter takes one


def sd3(
    folder: Path, scheduler: dict[str, Any] | None = None, t5: bool = True, dual: bool = True, **fields: Any
) -> SD3:
    """A pipeline of three text encoders (two without `t5`) in `folder`, and the settings that load it. 4x8x8 latents.

    dual  the first layer has a second attention and normalised queries, as in 3.5 medium
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(5)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=40,
        caption_projection_dim=16,
        pooled_projection_dim=20,
        out_channels=4,
        pos_embed_max_size=8,
        dual_attention_layers=(0,) if dual else (),
        qk_norm="rms_norm" if dual else None,
    )
    StableDiffusion3Pipeline(
        transformer=enlivened(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **(scheduler or {})}),
        vae=vae(scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(16, projected=8),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(16, projected=12),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(40) if t5 else None,
        tokenizer_3=t5_tokenizer() if t5 else None,
    ).save_pretrained(folder)
    return SD3(str(folder), **{"pixels": 16, "text_length": 7, **fields})


def sd(folder: Path, scheduler: dict[str, Any] | None = None, **fields: Any) -> SD:
    """A pipeline in `folder`, and the settings that load it. 4x8x8 latents; the noise of SD 1.5."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(6)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    StableDiffusionPipeline(
        unet=enlivened(unet),
        scheduler=DDIMScheduler(**{**settings, "clip_sample": False, **(scheduler or {})}),
        vae=vae(scaling_factor=0.7),
        text_encoder=clip(16),
        tokenizer=clip_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return SD(str(folder), **{"pixels": 16, **fields})


def lcm(folder: Path, scheduler: dict[str, Any] | None = None, **fields: Any) -> SD:
    """A latent consistency model in `folder`, and the settings that load it. 4x8x8 latents; told its guidance."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler, UNet2DConditionModel

    torch.manual_seed(6)
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
        time_cond_proj_dim=12,
    )
    LatentConsistencyModelPipeline(
        unet=enlivened(unet),
        scheduler=LCMScheduler(**(scheduler or {})),
        vae=vae(scaling_factor=0.7),
        text_encoder=clip(16),
        tokenizer=clip_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return SD(str(folder), **{"pixels": 16, **fields})


def sdxl(folder: Path, scheduler: Any = None, zeros: bool = True, **fields: Any) -> SDXL:
    """A pipeline in `folder`, and the settings that load it. 4x8x8 latents; EulerDiscrete as released by default.

    zeros  no prompt is zeros, as released, and not the text ""
    """
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    torch.manual_seed(9)
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=28,
        attention_head_dim=(1, 2),
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 10,
    )
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    StableDiffusionXLPipeline(
        unet=enlivened(unet),
        scheduler=scheduler or EulerDiscreteScheduler(**settings, timestep_spacing="leading"),
        vae=vae(scaling_factor=0.7),
        text_encoder=clip(16),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(12, projected=10),
        tokenizer_2=clip_tokenizer(),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    ).save_pretrained(folder)
    return SDXL(str(folder), **{"pixels": 16, **fields})


def flux(folder: Path, scheduler: dict[str, Any] | None = None, guidance_embeds: bool = True, **fields: Any) -> Flux:
    """A pipeline in `folder`, and the settings that load it. 4x8x8 latents, which are 16 tokens.

    guidance_embeds  the network is told a guidance, as dev is and schnell is not
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(8)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(2, 2, 4),
    )
    dev = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    FluxPipeline(
        transformer=enlivened(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(**{**dev, **(scheduler or {})}),
        vae=vae(scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(16),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(24),
        tokenizer_2=t5_tokenizer(),
    ).save_pretrained(folder)
    return Flux(str(folder), **{"pixels": 16, "text_length": 7, **fields})


def qwen_image(folder: Path, scheduler: dict[str, Any] | None = None, **fields: Any) -> QwenImage:
    """A pipeline in `folder`, and the settings that load it. 4x8x8 latents, which are 16 tokens."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    torch.manual_seed(11)
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
    )
    decoder = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.7, 1.0, 1.2],
    )
    shifts = {"base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}
    QwenImagePipeline(
        transformer=enlivened(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": True, **shifts, **(scheduler or {})}),
        vae=decoder,
        text_encoder=qwen_encoder(16),
        tokenizer=qwen_tokenizer(),
    ).save_pretrained(folder)
    return QwenImage(str(folder), **{"pixels": 16, "text_length": 24, **fields})


def sana(folder: Path, scheduler: Any = None, out_channels: int = 4, **fields: Any) -> Sana:
    """A pipeline in `folder`, and the settings that load it. 4x8x8 latents, of 32 pixels; DPM-Solver as released."""
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    torch.manual_seed(12)
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=out_channels,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
        patch_size=1,
    )
    decoder = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.4,
    )
    released = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    SanaPipeline(
        transformer=enlivened(transformer),
        scheduler=scheduler or DPMSolverMultistepScheduler(**released),
        vae=decoder,
        text_encoder=gemma_encoder(16),
        tokenizer=gemma_tokenizer(),
    ).save_pretrained(folder)
    return Sana(str(folder), **{"pixels": 32, "text_length": 32, **fields})


def enlivened(model: torch.nn.Module) -> torch.nn.Module:
    """Weights that leave no branch at zero: released models start some there."""
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 1.0 if weight.dim() == 1 else 0.0, 0.1 if weight.dim() == 1 else 0.15)
    return model


def vae(**fields: Any) -> torch.nn.Module:
    """Two pixels a side of a latent's place; tiles of 4x4 places."""
    from diffusers import AutoencoderKL

    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, sample_size=8, **kinds, **fields
    )


def clip(width: int, projected: int = 0) -> torch.nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(clip_tokenizer()),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=projected or width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return enlivened((CLIPTextModelWithProjection if projected else CLIPTextModel)(config))


def clip_tokenizer() -> Any:
    """One token a letter, as CLIP spells a word that it does not know."""
    from transformers import CLIPTokenizer

    letters = sorted(set("".join(WORDS)))
    entries = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    return CLIPTokenizer({entry: number for number, entry in enumerate(entries)}, [], model_max_length=LENGTH)


def t5_encoder(width: int) -> torch.nn.Module:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(t5_tokenizer()), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2, is_gated_act=True
    )
    return enlivened(T5EncoderModel(config))


def t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5TokenizerFast([*special, *((f"▁{word}", -1.0) for word in WORDS)], extra_ids=0, model_max_length=512)


def qwen_encoder(width: int) -> torch.nn.Module:
    """A language model of one layer, with eyes that nothing looks through."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": len(qwen_tokenizer()),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
        "max_position_embeddings": 2048,
    }
    eyes = {
        "depth": 1,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_heads": 2,
        "out_hidden_size": width,
        "fullatt_block_indexes": [0],
    }
    return enlivened(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=eyes)))


def qwen_tokenizer() -> Any:
    """One token a word, so that the beginning of the template is as long as it is released: 34."""
    from diffusers import QwenImagePipeline
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    marks = ["<|im_start|>", "<|im_end|>"]
    template = QwenImagePipeline(None, None, None, None, None).prompt_template_encode
    for mark in marks:
        template = template.replace(mark, "")
    spelt = [word.replace(" ", "Ġ") for word in re.findall(r" ?\w+", template)]
    spelt += [start + word for word in WORDS for start in ("Ġ", "")]
    spelt.sort(key=lambda word: not word.startswith("Ġ"))  # merges of words without a space would divide others
    merges = list(dict.fromkeys((word[:i], word[i]) for word in spelt for i in range(1, len(word))))
    entries = dict.fromkeys([*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges)])
    tokenizer = Qwen2Tokenizer({entry: number for number, entry in enumerate(entries)}, merges, model_max_length=2048)
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return tokenizer


def gemma_encoder(width: int) -> torch.nn.Module:
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=len(gemma_tokenizer()),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=4096,
    )
    return enlivened(Gemma2Model(config))


def gemma_tokenizer() -> Any:
    """One token a letter; whatever of the instruction no prompt is spelt with is unknown."""
    from tokenizers.processors import TemplateProcessing
    from transformers import GemmaTokenizer

    entries = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *sorted(set("".join(WORDS)))]
    tokenizer = GemmaTokenizer({entry: number for number, entry in enumerate(entries)}, [])
    begins = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", entries.index("<bos>"))])
    tokenizer.backend_tokenizer.post_processor = begins
    return tokenizer


def prompts(each: int = 2) -> tuple[Prompt, ...]:
    return tuple(Prompt(str(i), text) for i, text in enumerate(TEXTS) for _ in range(each))


def noise(b: int, step: int = 0) -> Noise:
    return Noise(7, step, tuple(range(b)))


def wan(folder: Path, scheduler: Any = None, small: bool = False, **fields: Any) -> Wan:
    """A pipeline in `folder`, and the settings that load it. Latents of 4x2x4x8: five frames of 16x32 pixels.

    scheduler  FlowMatchEuler with a shift of 3 unless given; released models have UniPC
    small      as Wan 2.2 5B: a decoder that ends in patches of 2x2 pixels (so latents of 4x2x2x4), and a network that
               is told the time of every place
    """
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

    torch.manual_seed(10)
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=16,
    )
    decoder = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[-0.7, 0.1, 0.9, 0.3],
        latents_std=[1.5, 0.7, 2.0, 1.1],
        scale_factor_temporal=4,
        scale_factor_spatial=8 if small else 4,
        patch_size=2 if small else None,
        in_channels=12 if small else 3,
        out_channels=12 if small else 3,
    )
    last = enlivened(decoder).decoder.conv_out
    last.bias.data.zero_()  # few pixels reach black or white, where they are cut
    last.weight.data.mul_(4)
    WanPipeline(
        transformer=enlivened(transformer),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=decoder,
        text_encoder=umt5_encoder(16),
        tokenizer=t5_tokenizer(),
        expand_timesteps=small,
    ).save_pretrained(folder)
    return Wan(str(folder), **{"height": 16, "width": 32, "frames": 5, "text_length": 7, **fields})


def umt5_encoder(width: int) -> torch.nn.Module:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=len(t5_tokenizer()), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2, is_gated_act=True
    )
    return enlivened(UMT5EncoderModel(config))
