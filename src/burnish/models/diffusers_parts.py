"""What policies in diffusers' pipeline format share: reading and writing the folder, texts encoded once, autoencoders.

Such a folder has model_index.json, which names the class of each part, and one folder a part. Reading is strict: every
part is of the library it says, and a weight that is missing is a ValueError, where diffusers would draw it at random.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.models.arithmetic import Precision, autocast
from burnish.models.remembered import ROOM, Remembered

INDEX = "model_index.json"
AUTOENCODERS = ("AutoencoderKL", "AutoencoderDC", "AutoencoderKLQwenImage")


class Folder:
    """A pipeline in diffusers' format. Raises ValueError for a folder that holds none, or one of another class."""

    def __init__(self, path: Path, pipeline: str, *others: str) -> None:
        """`others`: classes that will do too."""
        self.path, file = path, path / INDEX
        if not file.is_file():
            raise ValueError(f"{file}: no such file; a {pipeline} is a folder with {INDEX} and a folder for each part")
        try:
            self.index = json.loads(file.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: not JSON ({error})") from error
        found = self.index.get("_class_name") if isinstance(self.index, dict) else None
        if found not in (pipeline, *others):
            raise ValueError(f"{file}: holds {'no pipeline' if found is None else f'a {found}'}, not a {pipeline}")
        self._pipeline = str(found)

    def kind(self, name: str) -> str | None:
        """The class of a part; None for one that was left out."""
        entry = self.index.get(name)
        return entry[1] if isinstance(entry, list) and len(entry) == 2 else None

    def read(self, name: str, dtype: torch.dtype | None = None) -> Any:
        """A part: a model with weights of `dtype`, frozen; without a dtype a tokenizer or a scheduler. None: left out.

        Raises ValueError, naming the folder, for a part that is missing, cut short, or lacks a weight.
        """
        if (kind := self.kind(name)) is None:
            return None
        library, where = self.index[name][0], self.path / name
        if library not in ("diffusers", "transformers"):  # a name chooses code to run: no others
            raise ValueError(f"{self.path / INDEX}: {name} is of {library!r}; only diffusers and transformers are read")
        if not where.is_dir():
            raise ValueError(f"{where}: no such folder, but {INDEX} names a {kind} there")
        try:
            loaded = getattr(importlib.import_module(library), kind)
        except AttributeError:
            raise ValueError(f"{self.path / INDEX}: this {library} knows no {kind} (of {name})") from None
        if dtype is not None and not (where / "config.json").is_file():
            raise ValueError(f"{where / 'config.json'}: no such file; it would tell the shape of the {kind}")
        if dtype is None:
            _vocabulary(where, getattr(loaded, "vocab_files_names", {}))
            return _guarded(where, kind, lambda: loaded.from_pretrained(where, local_files_only=True))
        precision = {"torch_dtype" if library == "diffusers" else "dtype": dtype}
        model, report = _guarded(
            where,
            kind,
            lambda: loaded.from_pretrained(where, local_files_only=True, output_loading_info=True, **precision),
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{where}: the weights of the {kind} lack {_few(missing)}")
        return model.eval().requires_grad_(False)

    def needed(self, name: str, dtype: torch.dtype | None = None) -> Any:
        """The same of a part that cannot be left out."""
        if (part := self.read(name, dtype)) is None:
            raise ValueError(f"{self.path / INDEX}: names no {name}, which this model cannot do without")
        return part

    def assembled(self, **parts: Any) -> Any:
        """diffusers' pipeline of these parts."""
        return getattr(importlib.import_module("diffusers"), self._pipeline)(**parts)

    def write(self, folder: Path, changed: Mapping[str, Any]) -> None:
        """The pipeline in `folder`: the parts `changed` written anew, all others copied as they are."""
        if folder.resolve() == self.path.resolve():
            raise ValueError(f"{folder}: the model was read from here; name another folder to write it to")
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.index:
            if name in changed:
                changed[name].save_pretrained(folder / name)
            elif self.kind(name) and (self.path / name).is_dir():
                shutil.copytree(self.path / name, folder / name, dirs_exist_ok=True)
        shutil.copyfile(self.path / INDEX, folder / INDEX)


class Texts:
    """Texts encoded by frozen networks, each once, and remembered on the CPU as they came.

    encode  texts to tensors, a row each
    room    bytes remembered. A text of SD3 takes 5.4 MB, of SD 1.5 0.24
    """

    def __init__(
        self,
        encode: Callable[[list[str]], Sequence[Tensor]],
        device: torch.device,
        room: int = ROOM,
    ) -> None:
        self._device = device
        self._known = Remembered(lambda text: [part[0] for part in encode([text])], room)

    @property
    def encoded(self) -> int:
        """Texts that went through the networks so far."""
        return self._known.encoded

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, ...]:
        """What `encode` gives, a row a text."""
        return tuple(torch.stack(parts).to(self._device) for parts in zip(*self._known(texts), strict=True))


class Autoencoder:
    """Latents to pictures in [0, 1] and back, by diffusers' classes with the scale and shift that their config tells.

    precision  of its arithmetic; its weights are float32
    tiled      decode in overlapping tiles that are blended: less memory, and faint seams. The side of a tile is the
               config's sample_size, or diffusers' own

    Raises ValueError for one of another kind.
    """

    def __init__(self, vae: Any, precision: Precision, tiled: bool) -> None:
        config, kind = vae.config, type(vae).__name__
        if kind not in AUTOENCODERS:
            raise ValueError(f"vae: a {kind}; known are {', '.join(AUTOENCODERS)}")
        self._vae = vae
        self._precision: Precision = precision
        self._film = "temperal_downsample" in config  # it is one of films: a picture is a film of one frame
        blocks = config.get("block_out_channels") or config.get("encoder_block_out_channels")
        halvings = len(config.temperal_downsample) if self._film else len(blocks) - 1
        self.cell = 2**halvings  # pixels a side of a latent's place
        self.channels = int(config.z_dim if self._film else config.latent_channels)
        self._scale, self._shift = config.get("scaling_factor", 1.0), config.get("shift_factor") or 0.0
        if config.get("latents_std") is not None:  # one a channel
            mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ("latents_mean", "latents_std"))
            self._scale, self._shift = (self._scale / std).to(vae.device), mean.to(vae.device)
        if tiled:
            vae.enable_tiling()

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
        latents = latents / self._scale + self._shift
        with autocast(latents.device, self._precision):
            if self._film:
                pictures = self._vae.decode(latents.unsqueeze(2), return_dict=False)[0].squeeze(2)
            else:
                pictures = self._vae.decode(latents, return_dict=False)[0]
        return (pictures.float() / 2 + 0.5).clamp(0, 1)

    def encode(self, pictures: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n c h w"]:
        """The likeliest latents of pictures, where the encoder tells a law."""
        pictures = pictures * 2 - 1
        with autocast(pictures.device, self._precision):
            found = self._vae.encode(pictures.unsqueeze(2) if self._film else pictures, return_dict=False)[0]
        latents = (found if isinstance(found, Tensor) else found.mode()).float()
        return ((latents.squeeze(2) if self._film else latents) - self._shift) * self._scale


def latent_shape(pixels: int, autoencoder: Autoencoder, channels: int, patch: int, where: str) -> tuple[int, int, int]:
    """Channels and sides of a latent. Raises ValueError for a picture or a network that does not fit the decoder."""
    if pixels < 1 or pixels % (autoencoder.cell * patch):
        raise ValueError(f"{where}.pixels: {pixels} is not a multiple of this model's {autoencoder.cell * patch}")
    if channels != autoencoder.channels:
        raise ValueError(
            f"{where}: the network reads {channels} channels, the decoder {autoencoder.channels}; "
            "models that read more than noise (inpainting, editing) are not drawn from by text alone"
        )
    return channels, pixels // autoencoder.cell, pixels // autoencoder.cell


def _vocabulary(where: Path, files: Mapping[str, str]) -> None:
    """Raises ValueError for a tokenizer without its words: transformers would make one that knows three."""
    if files and not (where / "tokenizer_config.json").is_file():
        raise ValueError(f"{where / 'tokenizer_config.json'}: no such file; it would tell how long a text may be")
    whole, parts = files.get("tokenizer_file"), [name for kind, name in files.items() if kind != "tokenizer_file"]
    lacking = [name for name in parts if not (where / name).is_file()]
    if files and (lacking or not parts) and not (whole and (where / whole).is_file()):
        said = f"neither {whole} nor {' and '.join(lacking)}" if lacking else f"no {whole}"
        raise ValueError(f"{where}: holds {said}")


def _guarded(where: Path, kind: str, read: Callable[[], Any]) -> Any:
    """What `read` gives, its many errors as one that names the folder."""
    from safetensors import SafetensorError

    try:
        return read()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            f"{where}: not readable as a {kind}; a file may be missing, cut short, or of another model ({reason})"
        ) from error


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
