"""A true policy whose pictures are known, and a small CLIP in the real format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

WORDS = ["a", "photo", "of", "red", "green", "blue", "circle", "square", "triangle", "star", "toy", "number"]


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a CLIP with random weights, two layers, 32 pixels."""
    folder: Path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    end = len(WORDS) + 2
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {"vocab_size": end + 1, "max_position_embeddings": 10, "eos_token_id": end, "bos_token_id": end - 1}
    config = CLIPConfig(
        text_config=text | {"pad_token_id": end},
        vision_config=small | {"image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    model = CLIPModel(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.eval().save_pretrained(folder)
    core = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate([*WORDS, "<unk>", "<s>", "</s>"])}, unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", end - 1), ("</s>", end)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    settings = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).to_dict()
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(folder)
