"""open_clip weights as a transformers CLIPModel.

open_clip (Ilharco et al. 2021) keeps OpenAI's key names: one matrix for query, key and value (`attn.in_proj_weight`),
projections stored for `x @ W`. transformers splits the first and stores the second for `x @ W.T`. Every key is
accounted for: a missing, surplus or misshapen one is a ValueError that names it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

BLOCK = {  # inside one residual block: open_clip's name, and transformers' after `encoder.layers.{i}.`
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
SINGLE = {  # open_clip's name: transformers' name, and whether it is transposed
    "logit_scale": ("logit_scale", False),
    "token_embedding.weight": ("text_model.embeddings.token_embedding.weight", False),
    "positional_embedding": ("text_model.embeddings.position_embedding.weight", False),
    "ln_final.weight": ("text_model.final_layer_norm.weight", False),
    "ln_final.bias": ("text_model.final_layer_norm.bias", False),
    "text_projection": ("text_projection.weight", True),
    "visual.class_embedding": ("vision_model.embeddings.class_embedding", False),
    "visual.positional_embedding": ("vision_model.embeddings.position_embedding.weight", False),
    "visual.conv1.weight": ("vision_model.embeddings.patch_embedding.weight", False),
    "visual.ln_pre.weight": ("vision_model.pre_layrnorm.weight", False),  # transformers' spelling
    "visual.ln_pre.bias": ("vision_model.pre_layrnorm.bias", False),
    "visual.ln_post.weight": ("vision_model.post_layernorm.weight", False),
    "visual.ln_post.bias": ("vision_model.post_layernorm.bias", False),
    "visual.proj": ("visual_projection.weight", True),
}
TOWERS = {"visual.transformer.resblocks": "vision_model", "transformer.resblocks": "text_model"}


@dataclass(frozen=True)
class _Source:
    """Where a weight of transformers' model comes from."""

    key: str  # open_clip's name
    third: int | None = None  # 0 query, 1 key, 2 value: which third of the rows
    turned: bool = False  # transposed


def clip_from_open_clip(state: Mapping[str, Tensor], vision_heads: int, text_heads: int, where: str) -> Any:
    """A transformers CLIPModel (float32, exact GELU) with the weights of an open_clip state dict.

    The sizes are read off the shapes. The numbers of heads are in no weight, so they are asked for; ViT-H/14 has 16
    and 16. Raises ValueError, starting with `where`, naming a missing, surplus or misshapen key of open_clip.
    """
    from transformers import CLIPModel

    # A causal mask is no weight, but older releases of open_clip saved it among them.
    state = {name: value for name, value in state.items() if name != "attn_mask"}
    sources = _sources({prefix: _depth(state, prefix) for prefix in TOWERS})
    _check_names(state, {source.key for source in sources.values()}, where)
    model = CLIPModel(_config(state, vision_heads, text_heads, where))
    own = model.state_dict()
    model.load_state_dict({name: _taken(state, sources[name], own[name], where) for name in own})
    return model


def _sources(depths: Mapping[str, int]) -> dict[str, _Source]:
    """transformers' name -> its source."""
    found = {theirs: _Source(ours, turned=turned) for ours, (theirs, turned) in SINGLE.items()}
    for prefix, tower in TOWERS.items():
        for i in range(depths[prefix]):
            ours, theirs = f"{prefix}.{i}", f"{tower}.encoder.layers.{i}"
            for part in ("weight", "bias"):
                found |= {f"{theirs}.{new}.{part}": _Source(f"{ours}.{old}.{part}") for old, new in BLOCK.items()}
                for third, letter in enumerate("qkv"):
                    found[f"{theirs}.self_attn.{letter}_proj.{part}"] = _Source(f"{ours}.attn.in_proj_{part}", third)
    return found


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    """Blocks of a tower: one more than the highest number, so that a hole shows as a missing key."""
    numbers = [re.match(re.escape(prefix) + r"\.(\d+)\.", name) for name in state]
    return max((int(found[1]) + 1 for found in numbers if found), default=1)


def _check_names(state: Mapping[str, Tensor], expected: set[str], where: str) -> None:
    missing, surplus = sorted(expected - state.keys()), sorted(state.keys() - expected)
    faults = [f"missing {', '.join(missing[:4])}"] if missing else []
    faults += [f"surplus {', '.join(surplus[:4])}"] if surplus else []
    if faults:
        raise ValueError(
            f"{where}: not an open_clip ViT: {'; '.join(faults)} ({len(missing)} and {len(surplus)} in all)"
        )


def _taken(state: Mapping[str, Tensor], source: _Source, own: Tensor, where: str) -> Tensor:
    """A weight in transformers' form, or a ValueError if its shape is not what the other weights imply."""
    value = state[source.key].float()
    expected = (3 * own.shape[0], *own.shape[1:]) if source.third is not None else tuple(own.shape)
    expected = expected[::-1] if source.turned else expected
    if value.shape != expected:
        raise ValueError(f"{where}: {source.key} is {tuple(value.shape)}, expected {expected}")
    if source.third is not None:
        value = value.chunk(3)[source.third]
    return value.T.contiguous() if source.turned else value


def _config(state: Mapping[str, Tensor], vision_heads: int, text_heads: int, where: str) -> Any:
    """Sizes, from the shapes of six weights."""
    from transformers import CLIPConfig

    shape = {name: tuple(state[name].shape) for name in state}
    ranks = {"visual.conv1.weight": 4, "visual.positional_embedding": 2, "token_embedding.weight": 2}
    ranks |= {"positional_embedding": 2, "text_projection": 2} | {f"{prefix}.0.mlp.c_fc.weight": 2 for prefix in TOWERS}
    for name, rank in ranks.items():
        if len(shape[name]) != rank:
            raise ValueError(f"{where}: {name} is {shape[name]}, expected {rank} dimensions")
    vision_width, _, _, patch = shape["visual.conv1.weight"]
    vocabulary, text_width = shape["token_embedding.weight"]
    for name, width, heads in (("vision_heads", vision_width, vision_heads), ("text_heads", text_width, text_heads)):
        if width % heads:
            raise ValueError(f"{where}: {name} {heads} does not divide the width {width}")
    patches = shape["visual.positional_embedding"][0] - 1
    vision = {
        "hidden_size": vision_width,
        "intermediate_size": shape["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": _depth(state, "visual.transformer.resblocks"),
        "num_attention_heads": vision_heads,
        "image_size": patch * math.isqrt(patches),
        "patch_size": patch,
        "hidden_act": "gelu",
    }
    text = {
        "hidden_size": text_width,
        "intermediate_size": shape["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": _depth(state, "transformer.resblocks"),
        "num_attention_heads": text_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": shape["positional_embedding"][0],
        "hidden_act": "gelu",
        # 2 asks transformers for the place of the highest token id, as open_clip finds the end of a text
        "eos_token_id": 2,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=shape["text_projection"][1])
