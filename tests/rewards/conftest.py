"""Small true models in the released formats, with random weights, for the reward tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from chat_server import Server
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

from burnish.types import Prompt

WORDS = ["a", "photo", "of", "red", "blue", "green", "circle", "square", "two", "three", "left", "right"]


def save_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """CLIP's layout in small: start first, end last with the highest id, which also pads."""
    vocabulary = {word: i for i, word in enumerate([*WORDS, "<unk>", "<start>", "<end>"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", vocabulary["<start>"]), ("<end>", vocabulary["<end>"])]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<start>", eos_token="<end>", pad_token="<end>", unk_token="<unk>"
    )
    made.save_pretrained(folder)
    return made


def save_clip(folder: Path, seed: int = 0, size: int = 32, dim: int = 12) -> CLIPModel:
    """A CLIP of two layers saved with its tokenizer and preprocessor_config.json."""
    torch.manual_seed(seed)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    end = len(WORDS) + 2
    text = small | {"vocab_size": end + 1, "max_position_embeddings": 8, "eos_token_id": end, "bos_token_id": end - 1}
    vision = small | {"image_size": size, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text | {"pad_token_id": end}, vision_config=vision, projection_dim=dim))
    for parameter in model.parameters():  # larger than the default start, so that different inputs differ visibly
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.eval().save_pretrained(folder)
    save_tokenizer(folder)
    settings = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).to_dict()
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return model


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved CLIP with random weights; nobody writes into it."""
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


@pytest.fixture
def save() -> Callable[..., CLIPModel]:
    """Writes a tiny CLIP into a folder, and gives it."""
    return save_clip


@pytest.fixture(scope="session")
def cpu() -> torch.device:
    return torch.device("cpu")


@pytest.fixture
def pictures() -> Callable[..., torch.Tensor]:
    """Random pictures on the 8-bit grid, so that encoders and processors lose nothing on the way in."""

    def draw(b: int, height: int = 40, width: int = 48, seed: int = 1) -> torch.Tensor:
        levels = torch.randint(0, 256, (b, 3, height, width), generator=torch.Generator().manual_seed(seed))
        return levels / 255

    return draw


@pytest.fixture
def prompts() -> Callable[..., tuple[Prompt, ...]]:
    return lambda *texts: tuple(Prompt(id=str(i), text=text) for i, text in enumerate(texts))


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers, which end with the test."""
    servers = []

    def start(answer):
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
