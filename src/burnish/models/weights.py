"""Copies of trainable weights: the reference a run started from, the averaged weights that draw, and the live ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch
from torch import Tensor

from burnish.core import Copy, Policy
from burnish.models.sharding import divided, kept, shard_like


class Copies:
    """The trainable weights of a policy, with the copies of them that an objective asked for.

    Only trainable parameters are copied. `off`, if given, is a block in which the live adapter is switched off; it then
    stands for the copy called "reference" when that copy never moves, so that LoRA needs no second set of weights.
    """

    def __init__(
        self,
        parameters: Sequence[tuple[str, torch.nn.Parameter]],
        off: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        self._live = dict(parameters)
        assert len(self._live) == len(parameters), "two parameters share a name"
        self._off = off
        self._rules: dict[str, Copy] = {}
        self._copies: dict[str, dict[str, Tensor]] = {}
        self._in_use: str | None = None

    @property
    def live(self) -> Sequence[tuple[str, torch.nn.Parameter]]:
        return list(self._live.items())

    def narrow(self, only: Sequence[str]) -> None:
        """Leave only weights in whose name one of these patterns is found, and freeze the others.

        Raises ValueError for what is no pattern, and for a pattern that is found in no name.
        """
        assert not self._rules, "copies are of the weights that are trained: narrow first"
        kept = set()
        for pattern in only:
            try:
                found = {name for name in self._live if re.search(pattern, name)}
            except re.error as problem:
                raise ValueError(f"{pattern!r} is not a regular expression: {problem}") from problem
            if not found:
                few = ", ".join(list(self._live)[:: max(1, len(self._live) // 6)][:6])
                raise ValueError(f"no trained weight has {pattern!r} in its name (some that do not: {few})")
            kept |= found
        for name in self._live.keys() - kept:
            self._live.pop(name).requires_grad_(False)

    def keep(self, copies: Mapping[str, Copy]) -> None:
        """Keep these copies from now on, equal to the live weights at this moment. Earlier copies are forgotten."""
        if "live" in copies:
            raise ValueError("a copy cannot be called 'live': that is the name of the weights being trained")
        self._rules = dict(copies)
        self._copies = {
            name: {key: weight.detach().clone() for key, weight in self._live.items()}
            for name, rule in copies.items()
            if not self._switched_off(name, rule)
        }

    @contextmanager
    def using(self, copy: str) -> Iterator[None]:
        """Work with a copy inside the block; the live weights are back after it, also when the block raises.

        Raises ValueError for a copy that is not kept, or inside a block that already uses a copy.
        """
        if self._in_use is not None:
            raise ValueError(f"using({copy!r}) inside using({self._in_use!r}): leave one block before entering another")
        if copy == "live":
            yield
            return
        if copy not in self._rules:
            choices = ", ".join(["live", *self._rules])
            raise ValueError(f"no copy of the weights is called {copy!r} (kept: {choices})")
        self._in_use = copy
        try:
            if copy not in self._copies:
                assert self._off is not None
                with self._off():
                    yield
            else:
                with self._swapped(self._copies[copy]):
                    yield
        finally:
            self._in_use = None

    def advance(self, step: int, after: Literal["update", "step"]) -> None:
        """copy <- d copy + (1 - d) live, for every copy with a decay d that moves now."""
        assert self._in_use is None, "the live weights are swapped out"
        with torch.no_grad():
            for name, weights in self._copies.items():
                rule = self._rules[name]
                decay = rule.decay_at(step)
                if decay is not None and rule.every == after and step % rule.interval == 0:
                    for key, weight in weights.items():
                        weight.mul_(decay).add_(self._live[key].detach(), alpha=1 - decay)

    def renew(self, copy: str) -> None:
        """copy <- live. Raises ValueError for a copy that is not kept, or not kept as one that is renewed."""
        assert self._in_use is None, "the live weights are swapped out"
        if copy not in self._rules or not self._rules[copy].renewed:
            choices = ", ".join(name for name, rule in self._rules.items() if rule.renewed) or "none"
            raise ValueError(f"no copy of the weights called {copy!r} is renewed (those that are: {choices})")
        with torch.no_grad():
            for key, weight in self._copies[copy].items():
                weight.copy_(self._live[key])

    def state(self) -> dict[str, Tensor]:
        """Everything by name, as fresh tensors on the CPU: `<parameter>` and `copies/<copy>/<parameter>`.

        Of divided weights the first process has everything, and the others, which have to ask too, nothing.
        """
        assert self._in_use is None, "the live weights are swapped out"
        return {key: kept(tensor.detach()) for key, tensor in self._all().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the values of `state`. Raises ValueError that names an entry that does not fit; nothing changes then."""
        assert self._in_use is None, "the live weights are swapped out"
        ours = self._all()
        if missing := sorted(ours.keys() - state.keys()):
            raise ValueError(f"the saved weights lack {missing[0]!r} ({len(missing)} of {len(ours)} are missing)")
        if surplus := sorted(state.keys() - ours.keys()):
            raise ValueError(
                f"the saved weights hold {surplus[0]!r}, which this policy does not train ({len(surplus)} such)"
            )
        for key, tensor in ours.items():
            saved = state[key]
            if saved.shape != tensor.shape or saved.dtype != tensor.dtype:
                was, here = f"{saved.dtype} {tuple(saved.shape)}", f"{tensor.dtype} {tuple(tensor.shape)}"
                raise ValueError(f"the saved {key!r} is {was}, here it is {here}")
        with torch.no_grad():
            for key, tensor in ours.items():
                tensor.copy_(shard_like(state[key], like=tensor))

    @staticmethod
    def part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
        """Of what `state` gave the "live" weights, or a copy's, by parameter; nothing if that was not kept."""
        if name == "live":
            return {key: tensor for key, tensor in state.items() if not key.startswith("copies/")}
        at = f"copies/{name}/"
        return {key.removeprefix(at): tensor for key, tensor in state.items() if key.startswith(at)}

    def _switched_off(self, name: str, rule: Copy) -> bool:
        return self._off is not None and name == "reference" and rule.decay is None and not rule.renewed

    def _all(self) -> dict[str, Tensor]:
        copies = {f"copies/{n}/{key}": t for n, weights in self._copies.items() for key, t in weights.items()}
        return {**self._live, **copies}

    @contextmanager
    def _swapped(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        if any(divided(weight) for weight in self._live.values()):
            # FSDP goes on with the values that it was given, whatever a weight points to: here values move.
            self._exchange(weights)
            try:
                yield
            finally:
                self._exchange(weights)
            return
        # Pointers move, values do not: swapping costs nothing and cannot round.
        live = {key: weight.data for key, weight in self._live.items()}
        try:
            for key, weight in self._live.items():
                weight.data = weights[key]
            yield
        finally:
            for key, weight in self._live.items():
                weight.data = live[key]

    @torch.no_grad()
    def _exchange(self, weights: Mapping[str, Tensor]) -> None:
        """Live values into `weights`, and theirs into the live ones. Twice is nothing."""
        for key, weight in self._live.items():
            before = weight.detach().clone()
            weight.copy_(weights[key])
            weights[key].copy_(before)


class KeepsCopies(Policy):
    """What a policy has to say about its weights, said by `copies`, which it makes once it has them."""

    copies: Copies

    def parameters(self) -> Sequence[tuple[str, torch.nn.Parameter]]:
        return self.copies.live

    def narrow(self, only: Sequence[str]) -> None:
        self.copies.narrow(only)

    def keep(self, copies: Mapping[str, Copy]) -> None:
        self.copies.keep(copies)

    def using(self, copy: str) -> AbstractContextManager[None]:
        return self.copies.using(copy)

    def advance(self, step: int, after: Literal["update", "step"]) -> None:
        self.copies.advance(step, after)

    def renew(self, copy: str) -> None:
        self.copies.renew(copy)

    def state(self) -> dict[str, Tensor]:
        return self.copies.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.copies.restore(state)
