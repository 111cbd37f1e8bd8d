"""A quantity before and after, and what may be said of the difference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

Word = Literal["better", "worse", "not distinguishable", "unknown"]


@dataclass(frozen=True)
class Change:
    """A metric in two passes."""

    before: float
    after: float
    low: float = math.nan  # 95 % interval of the difference; NaN where there is nothing to compute it from
    high: float = math.nan
    prompts: int = 0  # independent questions behind the interval
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


def over_seeds(values: Float[np.ndarray, " n"]) -> tuple[float, float, float]:
    """Mean over runs and its 95 % interval by Student's t, n - 1 degrees of freedom. NaN interval for a single run."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return float(values[0]) if len(values) else math.nan, math.nan, math.nan
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    mean = float(values.mean())
    return mean, mean - half, mean + half
