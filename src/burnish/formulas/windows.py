"""Which steps of a denoiser a training step draws at random: functions of its number, with nothing to remember.

Steps of a denoiser are counted from 0, the noisiest. Training steps are counted from 1; 0 is treated as 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from burnish.formulas.noise import generator


def drawable(steps: int, until: int = 0) -> int:
    """How many steps, from the first on, may be drawn at random: those before `until`; with 0 all but the last.

    The last step ends at time 0, where most transitions have no noise left and so no likelihood.
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2, because the last is never drawn at random, got {steps}")
    if not 0 <= until < steps:
        raise ValueError(f"until must be from 1 to {steps - 1}, or 0 for all steps but the last, got {until}")
    return until or steps - 1


def starts(count: int, width: int, stride: int) -> range:
    """Where windows of `width` steps begin among the first `count`, each `stride` after the one before."""
    if not 1 <= width <= count:
        raise ValueError(f"width must be from 1 to {count}, the steps that may be drawn at random, got {width}")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    return range(0, count - width + 1, stride)


def stage(step: int, lengths: Sequence[int]) -> int:
    """Which of the stages, that last so many training steps each and come round again, a training step falls in."""
    left = max(step - 1, 0) % sum(lengths)
    for number, length in enumerate(lengths):
        if left < length:
            return number
        left -= length
    raise AssertionError("the remainder is less than the sum")


def compressed(steps: int, begin: int, share: float) -> tuple[int, ...]:
    """States from `begin` to `steps` in share x (steps - begin) steps, as evenly as whole states allow.

    MixGRPO-Flash, arXiv:2507.21802, appendix 10. To the nearest whole number of steps, and at least one: so counted,
    its window of 4 in 25 steps takes the 16 (mean of 300 training steps, share 0.4) and 8 (first place, 0.2) network
    evaluations of its table 1. Its eq. 23 rounds up, and its released code goes through one state fewer.
    """
    left = steps - begin
    number = max(1, math.floor(share * left + 0.5))
    return tuple(begin + (2 * i * left + number) // (2 * number) for i in range(number + 1))


def strided(steps: int, branch: int, stride: int) -> tuple[int, ...]:
    """States of a draw that leaves its path in step `branch`: all to the end of the next one, then every `stride`-th.

    G2RPO, arXiv:2510.01982, as its released code does. Where the last of them is not the picture, the picture is what
    was expected in the one before: the step from there ends in it.
    """
    return (*range(branch + 2), *list(range(branch + 2, steps + 1, stride))[:-1], steps)


def fading(length: int, start: int, rate: float, threshold: int) -> int:
    """Training steps spent on the window at `start`: ceil(length e^(-rate relu(start - threshold))).

    MixGRPO, arXiv:2507.21802: `exp_decay` of the released code. At least 1.
    """
    return max(1, math.ceil(length * math.exp(-rate * max(0, start - threshold))))


def part_of(count: int, share: float) -> int:
    """`share` of `count` steps, rounded down, and at least one."""
    return max(1, math.floor(share * count + 1e-9))  # 0.29 x 100 is 29


def in_turn(count: int, number: int, step: int) -> tuple[int, ...]:
    """`number` of the first `count` steps, those that follow on the ones that the training step before had."""
    begin = max(step - 1, 0) * number
    return tuple(sorted((begin + i) % count for i in range(number)))


def growing(first: int, last: int, stages: int, step: int) -> int:
    """A whole number that goes evenly from `first` at training step 1 to `last` at training step `stages` and stays."""
    done = min(max(step - 1, 0), stages - 1)
    return first + (last - first) * done // max(stages - 1, 1)


def scattered(steps: int, refine: int, even: bool, *key: object) -> tuple[int, ...]:
    """`steps` + 1 rising places from 0 to `steps` x `refine`, chosen by the key.

    even    one in each stretch of `refine` places around where it would be on an even grid; otherwise anywhere
    """
    if steps < 1 or refine < 1:
        raise ValueError(f"steps and refine must be at least 1, got {steps} and {refine}")
    random = generator(*key)
    if even:
        inner = random.integers(0, refine, steps - 1) - refine // 2 + refine * np.arange(1, steps)
    else:
        inner = np.sort(random.choice(np.arange(1, steps * refine), steps - 1, replace=False))
    return (0, *inner.tolist(), steps * refine)
