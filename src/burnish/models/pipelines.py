"""What all pipelines of diffusers share as velocity fields, so that a file in policies/ holds what is foreign.

Loading, prompts encoded once, the branch without a prompt, adapters, latents of pictures and export are here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.formulas.guidance import guided
from burnish.models.arithmetic import DTYPES, Precision, autocast
from burnish.models.denoiser import Network
from burnish.models.diffusers_parts import Autoencoder, Folder, Texts, latent_shape
from burnish.models.flow_times import EULER
from burnish.models.lora import Lora, adapt, adapters_off, merged
from burnish.models.pixels import covering
from burnish.models.sharding import shard
from burnish.types import Prompt


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """Settings of every policy over a pipeline."""

    weights: str = field(kw_only=False)  # a hub id or a folder in diffusers' format
    precision: Precision = "fp32"  # of the arithmetic and of text encoders; trained weights are float32
    lora: Lora | None = None  # train adapters instead of all weights
    recompute: bool = False  # keep less of the forward pass and compute it again for the backward pass
    compile: bool = False  # the network, by torch.compile: minutes at the first step, faster ones from then on
    decode_rows: int = 16  # pictures or videos decoded at once
    decode_precision: Precision = "fp32"  # of the decoder's arithmetic; the law is not touched by it
    tiled_decode: bool = False  # decode in overlapping tiles: less memory for large pictures

    def __post_init__(self) -> None:
        if self.decode_rows < 1:
            raise ValueError(f"decode_rows must be at least 1, got {self.decode_rows}")


@dataclass(frozen=True, kw_only=True)
class FlowSettings(PipelineSettings):
    """Settings of every policy over a rectified flow."""

    longest: ClassVar[int]  # tokens that the text encoder may read, as the pipeline has it

    shift: float | None = None  # of the times towards noise; None: the scheduler's own
    text_length: int  # tokens of a text; longer texts are cut

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.text_length <= self.longest:
            raise ValueError(f"text_length must be from 1 to {self.longest} tokens, got {self.text_length}")
        if self.shift is not None and not self.shift > 0:
            raise ValueError(f"shift must be above 0 (1 is none), got {self.shift}")


@dataclass(frozen=True, kw_only=True)
class PictureSettings(PipelineSettings):
    """Settings of every policy that draws square pictures."""

    pixels: int  # side of a picture


class Codec(Protocol):
    """Latents to pictures or videos in [0, 1], and back."""

    def decode(self, latents: Float[Tensor, "n *d"]) -> Float[Tensor, "n *p"]: ...
    def encode(self, media: Float[Tensor, "n *p"]) -> Float[Tensor, "n *d"]: ...


class Clock(Protocol):
    """What a model calls time, as times of a flow: models/flow_times.py or models/variance_preserving.py."""

    @property
    def changed(self) -> Mapping[str, Any]:
        """Parts of the pipeline that are not as they were read, to be exported."""
        ...

    def velocity(self, x: Tensor, t: Tensor, predicted: Callable[[Tensor, Tensor], Tensor]) -> Tensor: ...
    def times(self, steps: int) -> Tensor: ...
    def start(self, noise: Tensor, steps: int) -> Tensor: ...
    def finished(self, x: Tensor, velocity: Tensor, t: Tensor) -> Tensor: ...


S = TypeVar("S", bound=PipelineSettings)
P = TypeVar("P", bound=PictureSettings)


class PipelineNetwork(Network, Generic[S]):
    """A loaded pipeline. `learner` is trained, which is the network that draws unless `taught` names a text encoder.

    left_out  text encoders and tokenizers that the pipeline does without
    taught    the part that is trained. Of a text encoder prompts are read anew every time, with their gradient
    """

    name: ClassVar[str]  # of the policy in a recipe
    part: ClassVar[str] = "transformer"  # the trained network, by its name in the folder
    schedulers: ClassVar[tuple[str, ...]] = (EULER,)  # that are understood; none named: the clock says
    tokenizers: ClassVar[tuple[str, ...]]
    encoders: ClassVar[tuple[str, ...]]
    extras: ClassVar[Mapping[str, Any]] = {}  # what else the pipeline is made with
    adapted: tuple[str, ...]  # layers that get low-rank adapters, by the end of their names

    def __init__(
        self, spec: S, folder: Folder, device: torch.device, left_out: Sequence[str] = (), taught: str = ""
    ) -> None:
        self.spec, self.folder, self.device = spec, folder, device
        self.taught = taught or self.part
        self._check_scheduler()
        whole = [name for name in ("scheduler", *self.tokenizers) if name not in left_out]
        parts: dict[str, Any] = {**dict.fromkeys(left_out), **{name: folder.needed(name) for name in whole}}
        for name in self.encoders:
            if name not in left_out:
                parts[name] = folder.needed(name, self._kept(name)).to(device)
        parts["vae"] = folder.needed("vae", torch.float32).to(device)
        self.model = parts[self.part] = folder.needed(self.part, self._kept(self.part)).to(device)
        self.learner = parts[self.taught]
        self.codec = self.coded(parts["vae"])
        self.shape = self.sized()
        self.pipeline = folder.assembled(**parts, **self.extras)
        self.clock = self.clocked()
        self.texts = Texts(self.encode, device)
        self._divided = False  # among processes: a weight is there only while it is used
        self._nothing: tuple[Tensor, ...] | None = None  # what no prompt looks like, once it is asked for
        self._train()

    def _kept(self, part: str) -> torch.dtype:
        """The weights' own precision: float32 where they are trained, that of the arithmetic where they are frozen."""
        return torch.float32 if part == self.taught and not self.spec.lora else DTYPES[self.spec.precision]

    def _check_scheduler(self) -> None:
        kind = self.folder.kind("scheduler")
        if self.schedulers and kind not in self.schedulers:
            known = f"only {' and '.join(self.schedulers)} {'tell' if len(self.schedulers) > 1 else 'tells'}"
            raise ValueError(f"{self.folder.path / 'scheduler'}: a {kind}; {known} the times of a flow")

    def _train(self) -> None:
        if self.spec.lora:
            adapt(self.learner, self.spec.lora, self.adapted, start="gaussian")
        else:
            self.learner.requires_grad_(True)
        if self.spec.recompute:
            self.model.enable_gradient_checkpointing()
        if self.spec.compile:
            self.model.compile()

    # --- what is foreign ---------------------------------------------------------------------------------------------

    @abstractmethod
    def coded(self, vae: Any) -> Codec:
        """What makes pictures or videos of latents, and the other way round."""

    @abstractmethod
    def framed(self, media: Float[Tensor, "*f 3 h w"]) -> Float[Tensor, "*f 3 H W"]:
        """A picture or a video as large as those that are drawn. Raises ValueError for one that cannot be."""

    @abstractmethod
    def sized(self) -> tuple[int, ...]:
        """The shape of a latent. Raises ValueError for sizes that do not fit network or decoder."""

    @abstractmethod
    def clocked(self) -> Clock: ...

    @abstractmethod
    def encode(self, texts: list[str]) -> Sequence[Tensor]:
        """What the network reads of texts, a row each and of one length: a mask says where a text ends."""

    @abstractmethod
    def predicted(self, x: Float[Tensor, "n *d"], t: Tensor, *conditions: Tensor) -> Float[Tensor, "n *d"]:
        """What the network says at a state and a time of the clock. Float32."""

    def nothing(self, conditions: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """What no prompt looks like beside `conditions`, in one row."""
        return self.read([""])

    def mixed(self, conditional: Tensor, null: Tensor, guidance: float) -> Tensor:
        """The prediction led away from the one without a prompt."""
        return guided(conditional, null, guidance)

    # --- what is not -------------------------------------------------------------------------------------------------

    def conditions(self, prompts: Sequence[Prompt]) -> tuple[Tensor, ...]:
        return self.read([prompt.text for prompt in prompts])

    def read_ahead(self, prompts: Sequence[Prompt]) -> None:
        if self._remembers:
            self.conditions(prompts)

    @property
    def _remembers(self) -> bool:
        """No text encoder is trained: what it says of a text stays so."""
        return self.taught == self.part

    def read(self, texts: list[str]) -> tuple[Tensor, ...]:
        """What the network reads of texts: remembered, or with its gradient where an encoder is trained."""
        if self._remembers:
            return self.texts(texts)
        with self.autocast():
            return tuple(part.float() if part.is_floating_point() else part for part in self.encode(texts))

    def velocity(
        self, x: Float[Tensor, "n *d"], t: Float[Tensor, " n"], conditions: Any, guidance: float
    ) -> Float[Tensor, "n *d"]:
        return self.clock.velocity(x, t, partial(self.steered, conditions, guidance))

    def steered(self, conditions: tuple[Tensor, ...], guidance: float, x: Tensor, t: Tensor) -> Tensor:
        """Both branches go through the network together."""
        if guidance == 1:
            return self.predicted(x, t, *conditions)
        if self._nothing is None or not self._remembers:
            self._nothing = tuple(self.nothing(conditions))
        pairs = zip(self._nothing, conditions, strict=True)
        both = [torch.cat([null.expand_as(given), given]) for null, given in pairs]
        null, conditional = self.predicted(torch.cat([x, x]), torch.cat([t, t]), *both).chunk(2)
        return self.mixed(conditional, null, guidance)

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.spec.precision, cached=not self._divided)

    def times(self, steps: int) -> Float[Tensor, " {steps}+1"]:
        return self.clock.times(steps)

    def start(self, noise: Float[Tensor, "n *d"], steps: int) -> Float[Tensor, "n *d"]:
        return self.clock.start(noise, steps)

    def finished(
        self, x: Float[Tensor, "n *d"], velocity: Float[Tensor, "n *d"], t: Float[Tensor, " n"]
    ) -> Float[Tensor, "n *d"]:
        return self.clock.finished(x, velocity, t)

    def decode(self, latents: Float[Tensor, "n *d"]) -> Float[Tensor, "n *p"]:
        return self.codec.decode(latents)

    def latents(self, pictures: Sequence[Float[Tensor, "*f 3 h w"]]) -> Float[Tensor, "n *d"]:
        return torch.cat([self.codec.encode(self.framed(one)[None].to(self.device)) for one in pictures])

    def trained(self) -> Sequence[tuple[str, torch.nn.Parameter]]:
        return [(name, weight) for name, weight in self.learner.named_parameters() if weight.requires_grad]

    def adapter_off(self) -> Callable[[], AbstractContextManager[None]] | None:
        return partial(adapters_off, self.learner) if self.spec.lora else None

    def divide(self, mesh: Any) -> None:
        if self.spec.compile:
            raise ValueError(f"policy.{self.name}.compile: a network that is divided (shard) is not compiled here")
        shard(self.learner, mesh)
        self._divided = True

    def export(self, folder: Path) -> None:
        whole = merged(self.learner) if self.spec.lora else self.learner
        self.folder.write(folder, {self.taught: whole, **self.clock.changed})


class PictureNetwork(PipelineNetwork[P]):
    """A pipeline that draws square pictures."""

    codec: Autoencoder

    @abstractmethod
    def grain(self) -> tuple[int, int]:
        """Channels of a latent, and the places a side of the smallest square that the network can draw."""

    def coded(self, vae: Any) -> Autoencoder:
        return Autoencoder(vae, self.spec.decode_precision, self.spec.tiled_decode)

    def framed(self, media: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 H W"]:
        if media.dim() != 3:
            raise ValueError(f"policy.{self.name}: draws pictures, and was given a video of {len(media)} frames")
        return covering(media[None], self.spec.pixels, self.spec.pixels)[0]

    def sized(self) -> tuple[int, ...]:
        channels, patch = self.grain()
        return latent_shape(self.spec.pixels, self.codec, channels, patch, f"policy.{self.name}")
