"""Was it better? A paired interval, and the word for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from burnish.formulas.noise import generator

Word = Literal["better", "worse", "not distinguishable", "unknown"]
LOWER_IS_BETTER = ("fid", "frechet", "distance_to", "invalid", "error", "loss", "seconds")


@dataclass(frozen=True)
class Change:
    """A quantity before and after, and what is known of the difference."""

    before: float
    after: float
    low: float = math.nan  # 95 % interval of the difference; NaN where there is nothing to compute it from
    high: float = math.nan
    count: int = 0  # pairs behind the interval
    lower_is_better: bool = False

    @property
    def difference(self) -> float:
        return self.after - self.before

    @property
    def word(self) -> Word:
        """An interval that contains 0 is not distinguishable; without an interval nothing is claimed."""
        if math.isnan(self.low) or math.isnan(self.high):
            return "unknown"
        if self.low <= 0 <= self.high:
            return "not distinguishable"
        return "better" if (self.low > 0) != self.lower_is_better else "worse"


def paired(before: np.ndarray, after: np.ndarray, draws: int = 2000) -> tuple[float, float, int]:
    """95 % percentile bootstrap of the mean paired difference (Efron and Tibshirani 1993, section 13.3), and the pairs used.

    Pairs in which either value is NaN are left out. NaN interval for fewer than two pairs. The draws have a fixed seed.
    """
    difference = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    difference = difference[np.isfinite(difference)]
    if len(difference) < 2:
        return math.nan, math.nan, len(difference)
    random = generator("report", "bootstrap")
    means = [difference[random.integers(0, len(difference), len(difference))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high), len(difference)


def over_seeds(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over runs and its 95 % interval by Student's t (n - 1 degrees of freedom). NaN interval for a single run."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return float(values.mean()) if len(values) else math.nan, math.nan, math.nan
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    mean = float(values.mean())
    return mean, mean - half, mean + half


def lower_is_better(metric: str) -> bool:
    """Whether a metric of this name improves downwards."""
    return any(word in metric.lower() for word in LOWER_IS_BETTER)
