"""Was it better? Means and paired differences with intervals that know which samples share a prompt.

Bootstrap over clusters (Efron and Tibshirani 1993, sections 13.3 and 8.5; Field and Welsh 2007): prompts are drawn with
replacement, each with all its samples. Draws are keyed, so that the same values always give the same interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from burnish.formulas.noise import generator

Verdict = Literal["better", "worse", "not distinguishable"]
DRAWS = 4000  # bootstrap samples; the ends of a 95 % interval then move by about 1 % of its width from key to key
AT_ONCE = 4_000_000  # counts held in memory at once
LOWER_IS_BETTER = (
    "fid",
    "frechet",
    "distance",
    "invalid",
    "error",
)  # words in the names of metrics that improve downwards


def lower_is_better(metric: str) -> bool:
    """Whether a metric of this name improves when it falls."""
    return any(word in metric.lower() for word in LOWER_IS_BETTER)


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval, NaN where fewer than two clusters leave nothing to compute it from."""

    mean: float
    low: float
    high: float
    clusters: int  # independent questions behind it

    def verdict(self, lower_is_better: bool = False) -> Verdict:
        """The word for a difference. An interval that holds 0, or none at all, claims nothing."""
        if math.isnan(self.low) or self.low <= 0 <= self.high:
            return "not distinguishable"
        return "better" if (self.low > 0) != lower_is_better else "worse"


def mean_interval(values: Float[np.ndarray, " n"], cluster: Int[np.ndarray, " n"] | None = None) -> Interval:
    """Mean of the values that are known (NaN is left out). Without `cluster` every value is a question of its own."""
    values = np.asarray(values, dtype=np.float64)
    cluster = np.arange(len(values)) if cluster is None else np.asarray(cluster)
    assert values.shape == cluster.shape
    known = np.isfinite(values)
    values, (names, place) = values[known], np.unique(cluster[known], return_inverse=True)
    count = len(names)
    mean = float(values.mean()) if len(values) else math.nan
    if count < 2:
        return Interval(mean, math.nan, math.nan, count)
    sums = np.bincount(place, values, minlength=count)
    sizes = np.bincount(place, minlength=count).astype(np.float64)
    random = generator("statistics", "bootstrap", count)
    chunk = max(1, AT_ONCE // count)
    means = []
    for start in range(0, DRAWS, chunk):
        times = random.multinomial(count, np.full(count, 1 / count), size=min(chunk, DRAWS - start))
        means.append((times @ sums) / (times @ sizes))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(mean, float(low), float(high), count)


def paired_difference(
    before: Float[np.ndarray, " n"], after: Float[np.ndarray, " n"], cluster: Int[np.ndarray, " n"] | None = None
) -> Interval:
    """Mean of after - before, sample by sample; pairs of which one is NaN are left out.

    Raises ValueError for lists of different lengths: they are not pairs.
    """
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before.shape != after.shape:
        raise ValueError(f"{len(before)} values before and {len(after)} after are not pairs")
    return mean_interval(after - before, cluster)
