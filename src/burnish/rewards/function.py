"""Any callable `(images, prompts) -> scores` is a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Reward, Scorer
from burnish.prompts import named_function
from burnish.types import Prompt, Scores

Score = Callable[[Tensor, Sequence[Prompt]], Any]


@dataclass(frozen=True)
class Function(Reward):
    """A plain function of yours: pictures (b, 3, h, w) in [0, 1] and prompts in, one number for each sample out.

    Of a policy that draws videos it is given those, (b, f, 3, h, w).
    It may return a tensor, a list, an array or Scores. A number that is not finite is an invalid score: it is counted,
    and left out of its group. In a recipe: `reward: mymodule:score`.
    """

    videos: ClassVar[bool] = True

    name: str  # module:function, and the name of the part in the report
    function: Score | None = field(default=None, compare=False, metadata={"recipe": False})  # set from Python

    def load(self, device: torch.device) -> Scorer:
        return _Called(self.name, self.function or _imported(self.name))


@dataclass(frozen=True)
class _Called(Scorer):
    name: str
    function: Score

    def __call__(self, images: Float[Tensor, "b *f 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        try:
            found = self.function(images, prompts)
        except Exception as problem:  # the function is the user's: whatever it raises, the sentence must name it
            raise ValueError(f"reward {self.name} raised {type(problem).__name__}: {problem}") from problem
        if isinstance(found, Scores):
            self._expect(tuple(found.total.shape), len(prompts))
            return found
        try:
            values = torch.as_tensor(found, device=images.device)
        except (TypeError, ValueError, RuntimeError) as problem:
            raise ValueError(
                f"reward {self.name} must return one number for each sample, got {type(found).__name__}: {problem}"
            ) from problem
        if values.is_complex():
            raise ValueError(f"reward {self.name} must return real numbers, got {values.dtype}")
        self._expect(tuple(values.shape), len(prompts))
        return Scores.of(self.name.rpartition(":")[2], values.float())

    def _expect(self, shape: tuple[int, ...], b: int) -> None:
        if shape != (b,):
            raise ValueError(f"reward {self.name} must return shape ({b},), one number a sample, got shape {shape}")


def _imported(name: str) -> Score:
    return named_function(name, f"reward {name}", "; a reward given in Python must be given again")
