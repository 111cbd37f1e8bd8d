"""Finding and reading released weights of reward models: a hub id, a local folder, or one file of either.

Nothing is unpickled (`torch.load(weights_only=True)`, safetensors), and a model whose weights are incomplete is a
ValueError: transformers by itself would fill what is missing with random numbers and only warn.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from burnish.models.places import unpacked

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def from_pretrained(kind: Any, weights: str, where: str, device: torch.device, dtype: Dtype) -> Any:
    """A frozen transformers model of class `kind`, in evaluation mode, with every weight read from `weights`.

    Raises ValueError, starting with `where`, if the weights cannot be read, are incomplete or do not fit.
    """
    from safetensors import SafetensorError

    try:
        model, report = kind.from_pretrained(unpacked(weights), dtype=DTYPES[dtype], output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(f"{where}: no {kind.__name__} could be read from {weights!r}: {first_line(error)}") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:4])
        raise ValueError(f"{where}: {weights!r} is not a whole {kind.__name__}; missing weights: {missing}")
    return model.to(device).eval().requires_grad_(False)


def find_file(name: str, where: str) -> Path:
    """A local file, or `owner/repository:file` of the hub, downloaded once (a third slash does for the colon).

    Raises ValueError, starting with `where`, if it is neither.
    """
    name = unpacked(name)
    if Path(name).is_file():
        return Path(name)
    on_hub = re.fullmatch(r"(\w[\w.-]*/[\w.-]+)[:/](.+)", name)
    if on_hub is None:
        raise ValueError(f"{where}: no file {name!r} (give a local file, or owner/repository:file of the hub)")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(on_hub[1], on_hub[2]))
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{where}: {name!r} is no local file, and the hub says: {first_line(error)}") from error


def read_state(path: Path, where: str) -> dict[str, Tensor]:
    """Weights by name from a safetensors or torch file, out of a `state_dict` wrapper if there is one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        raise ValueError(f"{where}: {path} cannot be read as weights: {first_line(error)}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{where}: {path} holds no state dict (a mapping of names to tensors)")
    return dict(content)


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
