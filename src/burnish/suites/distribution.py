"""How far the pictures of a policy are from reference pictures as a distribution, on CLIP features.

Fréchet distance (Heusel et al. 2017, arXiv 1706.08500), improved precision and recall (Kynkäänniemi et al. 2019, arXiv
1904.06991) and inception score (Salimans et al. 2016, arXiv 1606.03498). The published numbers are on Inception-v3
features, so values compare between policies under one `features`, and not with a paper. A Fréchet distance falls with
the number of samples (its bias is of order 1/n): compare equal counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Evaluation, Policy, Scorer, Suite
from burnish.draws import draw_all
from burnish.formulas.frechet import coverage, frechet_distance, inception_score, moments
from burnish.models.clip_towers import ClipTowers, load_towers
from burnish.models.features import read_pictures
from burnish.models.pixels import Pixels, in_chunks, read_pixels
from burnish.prompts import named_function, read_prompts
from burnish.types import Plan, Prompt

WHERE = "suites.distribution"
REFERENCE_SEED = 0  # the reference is the same whatever the run's seed


@dataclass(frozen=True)
class Distribution(Suite):
    """Fréchet distance, precision, recall and inception score of drawn pictures against reference pictures."""

    prompts: str  # as of a source: file.txt, file.jsonl or module:function; class prompts make it class-conditional
    reference: str  # folder of pictures, or module:function, called as function(prompts, seed) and giving (n, 3, h, w)
    features: str  # hub id or local folder of a transformers CLIP, for the pooled output of its vision tower
    count: int = 512  # pictures drawn, the prompts taking turns; a function makes as many reference pictures
    neighbours: int = 3  # k of precision and recall: each picture's ball reaches its k-th nearest neighbour
    template: str = "a photo of {text}"  # text of a class for the class probabilities; {text} stands for the prompt
    rows: int = 64  # pictures drawn, or encoded, at once. Changes memory, not the result

    def __post_init__(self) -> None:
        for name, value, least in (("neighbours", self.neighbours, 1), ("rows", self.rows, 1)):
            if value < least:
                raise ValueError(f"{WHERE}.{name}: expected {least} or more, got {value}")
        if self.count <= self.neighbours + 1:
            raise ValueError(
                f"{WHERE}.count: {self.count} pictures have no {self.neighbours}-th neighbour to measure "
                f"precision by; draw {self.neighbours + 2} or more"
            )
        if "{text}" not in self.template:
            raise ValueError(f"{WHERE}.template: {self.template!r} lacks {{text}}, the place of the prompt")

    def run(self, policy: Policy, plan: Plan, reward: Scorer | None, seed: int) -> Evaluation:
        """Metrics: `fid`, `precision`, `recall`, and with two texts or more `inception_score` and `classified`.

        Class probabilities are CLIP's, zero-shot, over the texts of the prompts; `classified` is the share of pictures
        whose likeliest text is their own. Values: `precision` and `classified`, 0 or 1 for each picture.
        """
        asked = self.questions()
        media = draw_all(policy, asked, plan, seed, self.rows)
        towers, pixels = _towers(self.features, self.rows)
        drawn, real = _features(towers, pixels(media), self.rows), _reference(self)
        inside = coverage(drawn, real, self.neighbours)
        metrics = {
            "fid": frechet_distance(*moments(drawn), *moments(real)),
            "precision": float(inside.mean()),
            "recall": float(coverage(real, drawn, self.neighbours).mean()),
        }
        values = {"precision": inside.float()}
        texts = list(dict.fromkeys(p.text for p in asked))
        if len(texts) > 1:
            chances = self._probabilities(towers, media, texts)
            own = torch.tensor([texts.index(p.text) for p in asked])
            values["classified"] = (chances.argmax(1) == own).float()
            metrics |= {"inception_score": inception_score(chances), "classified": float(values["classified"].mean())}
        return Evaluation(metrics, values, asked, media)

    def questions(self) -> tuple[Prompt, ...]:
        """The prompt of each picture."""
        distinct = read_prompts(self.prompts)
        return tuple(distinct[i % len(distinct)] for i in range(self.count))

    def _probabilities(self, towers: ClipTowers, media: Tensor, texts: Sequence[str]) -> Float[Tensor, "n c"]:
        asked = towers.texts([self.template.replace("{text}", text) for text in texts])
        with torch.no_grad():
            return (towers.scale * towers.pictures(media) @ asked.T).softmax(1).cpu()


@lru_cache(maxsize=2)
def _towers(features: str, rows: int) -> tuple[ClipTowers, Pixels]:
    where = f"{WHERE}.features"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return load_towers(features, "", where, device, "float32", rows), read_pixels(features, where)


def _features(towers: ClipTowers, pixels: Float[Tensor, "n 3 h w"], rows: int) -> Float[Tensor, "n d"]:
    """Pooled output of the vision tower, before CLIP's projection to the space of texts."""

    def pooled(part: Tensor) -> Tensor:
        return towers.model.vision_model(pixel_values=part.to(towers.model.device)).pooler_output.float().cpu()

    return in_chunks(pooled, pixels, rows)


@lru_cache(maxsize=4)
def _reference(suite: Distribution) -> Float[Tensor, "m d"]:
    """Features of the reference pictures, which are the same at every pass and for every policy."""
    towers, pixels = _towers(suite.features, suite.rows)
    if ":" in suite.reference and not Path(suite.reference).exists():
        pictures = _made(suite.reference)(suite.questions(), REFERENCE_SEED)
        if not isinstance(pictures, Tensor) or pictures.ndim != 4 or pictures.shape[1] != 3:
            got = tuple(pictures.shape) if isinstance(pictures, Tensor) else type(pictures).__name__
            raise ValueError(f"{WHERE}.reference: {suite.reference} must return a tensor (n, 3, h, w), got {got}")
        parts: Iterator[Tensor] = iter(pictures.split(suite.rows))
    else:
        folder = Path(suite.reference).expanduser()
        if not folder.is_dir():
            raise ValueError(f"{WHERE}.reference: {folder} is neither a folder of pictures nor module:function")
        parts = read_pictures(suite.reference, f"{WHERE}.reference")
    found = torch.cat([_features(towers, pixels(part), suite.rows) for part in parts])
    if len(found) <= suite.neighbours:
        raise ValueError(
            f"{WHERE}.reference: {suite.reference} gives {len(found)} pictures, and their {suite.neighbours}-th "
            f"neighbours are needed; give {suite.neighbours + 1} or more"
        )
    return found


def _made(name: str) -> Callable[[Sequence[Prompt], int], object]:
    return named_function(name, f"{WHERE}.reference")
