"""Reading and writing LlamaGen weights: the released `.pt` files, safetensors, and folders written by `export`.

Reading is strict: a missing, surplus or misshapen key is a ValueError that names it. Untrusted files are never
unpickled (`torch.load(weights_only=True)`).
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from burnish.models.llamagen.gpt import GPT, GPTConfig
from burnish.models.llamagen.vq import VQConfig, VQModel

C = TypeVar("C", GPTConfig, VQConfig)

WRAPPERS = ("model", "module", "state_dict", "ema")  # DDP, DeepSpeed, a general habit; bare for XXL and 3B


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, out of its wrapper. Raises ValueError for a file that is not one, or is cut short."""
    if not path.is_file():
        raise ValueError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not readable as weights; it may be cut short, or another kind ({reason})") from error
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path}: holds no state dict; looked for tensors at the top and under {', '.join(WRAPPERS)}")
    return {name.removeprefix("_orig_mod.").removeprefix("module."): value for name, value in content.items()}


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Copy weights into a module, in float32. Raises ValueError naming the keys that do not fit."""
    own = module.state_dict()
    missing, surplus = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    bent = [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own.keys() & weights.keys()
        if own[name].shape != weights[name].shape
    ]
    faults = [f"missing {_few(missing)}"] * bool(missing) + [f"surplus {_few(surplus)}"] * bool(surplus)
    faults += [f"misshapen: {_few(sorted(bent))}"] * bool(bent)
    if faults:
        raise ValueError(f"{where}: weights do not fit {type(module).__name__}: {'; '.join(faults)}")
    module.load_state_dict({name: weights[name].float() for name in own})


def gpt_shape(path: Path) -> GPTConfig:
    """The shape of a GPT, from the config.json in its folder or beside its file; no weights are read."""
    shape = _file_and_config(path, "gpt", GPTConfig, None)[1]
    assert isinstance(shape, GPTConfig)
    return shape


def vq_shape(path: Path) -> VQConfig:
    """The shape of a tokenizer, likewise."""
    shape = _file_and_config(path, "tokenizer", VQConfig, None)[1]
    assert isinstance(shape, VQConfig)
    return shape


def load_gpt(path: Path, config: GPTConfig | None) -> GPT:
    """A GPT from a released `.pt`, a safetensors file, or a folder with config.json (which then wins over `config`)."""
    file, config = _file_and_config(path, "gpt", GPTConfig, config)
    model = GPT(config)
    weights = {k: v for k, v in read_weights(file).items() if ".kv_cache." not in k}
    load_strictly(model, weights, str(file))
    return model


def load_vq(path: Path, config: VQConfig | None) -> VQModel:
    """A tokenizer from a released `.pt`, a safetensors file, or a folder with config.json."""
    file, config = _file_and_config(path, "tokenizer", VQConfig, config)
    model = VQModel(config)
    weights = {k: v for k, v in read_weights(file).items() if k != "quantize.codebook_used"}  # a training statistic
    load_strictly(model, weights, str(file))
    return model


def save_model(model: GPT | VQModel, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a model under its released key names, with its shape in config.json beside it."""
    kind = "gpt" if isinstance(model, GPT) else "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().to("cpu", dtype).contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / f"{kind}.safetensors")
    known = _read_config(folder) if (folder / "config.json").is_file() else {}
    known[kind] = asdict(model.config)
    (folder / "config.json").write_text(json.dumps(known, indent=1) + "\n")


def _file_and_config(path: Path, kind: str, shape: type[C], config: C | None) -> tuple[Path, C]:
    folder = path if path.is_dir() else path.parent
    if (folder / "config.json").is_file() and kind in (known := _read_config(folder)):
        values: dict[str, Any] = known[kind]
        unknown = set(values) - {f.name for f in fields(shape)}
        if unknown:
            raise ValueError(f"{folder / 'config.json'}: '{kind}' has no setting {_few(sorted(unknown))}")
        settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        config = shape(**settings)
    if config is None:
        raise ValueError(f"{path}: no config.json beside it says its shape; name a released size instead")
    return (path / f"{kind}.safetensors" if path.is_dir() else path), config


def _read_config(folder: Path) -> dict:
    try:
        return json.loads((folder / "config.json").read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / 'config.json'}: not JSON ({error})") from error


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
