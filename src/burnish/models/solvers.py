"""Steps that are not drawn at random: Euler's, and solvers that remember the steps before, row by row of a draw."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from burnish.formulas import gaussian
from burnish.formulas.gaussian import rows

SOLVERS = ("euler", "dpm2", "unipc")  # each does what those before it do, and something more
NONE = 2.0  # the time of a step before the first
NOISE = 1 - 1.01328e-6  # time 1 where its logarithm is asked for: 1 - 1e-6 as UniPC's scheduler rounds it


class Solver:
    """Where samples go without noise, and what they have seen on the way.

    euler   x + (s - t) v
    dpm2    DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095): the clean picture is drawn out along the line through
            those expected at this step and the one before. First and last step are Euler's
    unipc   UniPC of second order with B(h) = e^h - 1 (Zhao et al. 2023, arXiv:2302.04867), as Wan is released: dpm2's
            step, and when the network has seen where it led, the step is made again with that (no evaluation more) and
            gone on from there. Time 1 counts as a step before, at 1 - 1e-6

    Where a step was drawn at random the next goes on from what was drawn. A step drawn at random, and a waypoint, begin
    where the network looked, before any correction.
    """

    def __init__(self, like: Float[Tensor, "b *d"], highest: int) -> None:
        b, self._corrects = len(like), highest == SOLVERS.index("unipc")
        nothing = torch.zeros_like(like)
        self._clean, self._since = nothing, torch.full((b,), NONE, dtype=torch.float64)  # of the step before
        if self._corrects:
            self._from, self._order = nothing, torch.zeros(b, dtype=torch.long)  # of it; order 0: was drawn at random
            self._earlier, self._earlier_since = nothing, self._since.clone()  # clean, time: of the step before that

    def step(
        self,
        movers: Int[Tensor, " n"],
        x: Float[Tensor, "n *d"],
        v: Float[Tensor, "n *d"],
        t: Float[Tensor, ""],
        s: Float[Tensor, " n"],
        kinds: Int[Tensor, " n"],
    ) -> tuple[Float[Tensor, "n *d"], Float[Tensor, "n *d"], Float[Tensor, "n *d"]]:
        """(state at s, state at t, velocity there) of samples that go from t to s: the state at t may be corrected.

        movers   which samples of the draw these are, on the CPU
        kinds    the solver of each, its place in SOLVERS, on the CPU
        """
        at = movers.to(x.device)
        clean, begin = gaussian.clean(x, v, t.expand(len(x))), t.expand(len(movers))
        before, since = self._clean[at], self._since[movers]
        if self._corrects:
            order = torch.where(kinds == SOLVERS.index("unipc"), self._order[movers], 0)
            if order.any():
                states = self._from[at], self._earlier[at], before, clean
                again = corrected(states, (self._earlier_since[movers], since, begin), order)
                told = rows(order, x) > 0
                x = torch.where(told, again, x)
                v = torch.where(told, (x - clean) / rows(begin, x), v)
        after = x + rows(s - t, x) * v
        bends = (kinds > 0) & (s > 0) & (since < torch.where(kinds == 1, 1.0, NONE))
        if bends.any():
            after = torch.where(rows(bends, x) > 0, _bent(x, (before, clean), (since, begin, s)), after)
        if self._corrects:
            self._earlier, self._earlier_since[movers] = self._earlier.index_copy(0, at, before), since
            self._from, self._order[movers] = self._from.index_copy(0, at, x), 1 + bends.long()
        self._clean, self._since[movers] = self._clean.index_copy(0, at, clean), begin
        return after, x, v

    def drew(self, movers: Int[Tensor, " n"]) -> None:
        """The step of these was drawn at random after all."""
        if self._corrects:
            self._order[movers] = 0


def level(t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """log (1 - t) / t: half the logarithm of signal to noise."""
    t = t.clamp(max=NOISE)
    return torch.log((1 - t) / t)


def _bent(
    x: Float[Tensor, "n *d"],
    clean: tuple[Float[Tensor, "n *d"], Float[Tensor, "n *d"]],
    times: tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]],
) -> Float[Tensor, "n *d"]:
    """One step of second order; clean pictures expected at the step before and at this one, and the times of three."""
    (before, here), (_, t, s) = clean, times
    levels = [level(time) for time in times]
    h, last = levels[2] - levels[1], levels[1] - levels[0]
    ahead = here + rows(h / (2 * last), x) * (here - before)
    return rows(s / t, x) * x - rows((1 - s) * torch.expm1(-h), x) * ahead


def corrected(
    states: tuple[Float[Tensor, "n *d"], Float[Tensor, "n *d"], Float[Tensor, "n *d"], Float[Tensor, "n *d"]],
    times: tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]],
    order: Int[Tensor, " n"],
) -> Float[Tensor, "n *d"]:
    """Where a step from times[1] leads that knows the clean picture expected at its end, times[2].

    states   what the step began with, and the clean pictures expected at the three times
    order    of the step that is made again: 1 does not look at times[0], 2 does

    UniPC's linear equations for the share of each slope (to times[0], to the end) are solved: with two it is one line.
    """
    (start, earlier, before, clean), (_, begin, end) = states, times
    levels = [level(time) for time in times]
    h = levels[2] - levels[1]
    shrunk = torch.expm1(-h)
    first = -shrunk / h - 1  # phi_k: e^-h without the first terms of its series
    second = -first / h - 0.5
    right = first / shrunk, 2 * second / shrunk
    ratio = (levels[0] - levels[1]) / h
    two = order == 2
    old = torch.where(two, (right[1] - right[0]) / (ratio - 1), 0.0)
    new = torch.where(two, right[0] - old, 0.5)
    slope = torch.where(two, old / ratio, 0.0)
    ahead = before + rows(slope, clean) * (earlier - before) + rows(new, clean) * (clean - before)
    return rows(end / begin, clean) * start - rows((1 - end) * shrunk, clean) * ahead


def chosen(solver: str, drawn: Bool[Tensor, "b t"], finish: str | None) -> Int[Tensor, "b t"]:
    """The solver of each step: `finish` of those behind the last that is drawn at random, if there is one."""
    kinds = torch.full(drawn.shape, SOLVERS.index(solver))
    if finish:
        kinds[drawn.flip(1).cumsum(1).flip(1) == 0] = SOLVERS.index(finish)
    return kinds
