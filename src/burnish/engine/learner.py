"""Turns batches into updates of the weights: AdamW over gradients that are summed first and divided once.

Where several processes learn, each sees the whole of a step without what is large, and computes the losses of the
samples that it drew. How a step is cut into updates is decided on the whole, so that it is cut alike everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.core import Needs, Objective, Policy, Scorer, Watches
from burnish.engine.adam import MOMENTS, adamw, packed, plain, stepped, unpacked
from burnish.engine.ranks import Alone, Ranks
from burnish.formulas.noise import generator
from burnish.formulas.steps import latents_of
from burnish.models.sharding import divided, full, kept, local, shard_like
from burnish.recipe.recipe import Optim
from burnish.types import Batch, Loss, Mean, Rollout, decided, take


class Learner:
    """Owns the optimiser. Which weights it changes, and how log-probabilities are computed, is the policy's affair."""

    def __init__(
        self, policy: Policy, optim: Optim, needs: Needs, seed: int, steps: int, ranks: Ranks | None = None
    ) -> None:
        """Raises ValueError for trainable weights that are not float32 or float64: small updates would round away."""
        self._policy, self._optim, self._needs, self._seed = policy, optim, needs, seed
        self._ranks = ranks or Alone()
        self._names, self._weights = zip(*policy.parameters(), strict=True)
        for name, weight in policy.parameters():
            if weight.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"{name} is trained in {weight.dtype}; keep trained weights in float32 and autocast")
        self._adam = adamw(self._weights, optim)
        self.updates_per_step = optim.epochs * optim.minibatches  # by whole samples
        self._updates_in_all = steps * self.updates_per_step
        self.updates = 0  # made so far

    def annotate(self, rollout: Rollout, reads_reference: bool) -> Rollout:
        """The rollout with the log-probabilities that its objective or advantage needs besides the recorded ones.

        `reference` is filled where objective or advantage asks for it; `anchor` for needs.anchor "recomputed", if the
        weights will have moved before the last of several updates, or if the advantage reads it. Otherwise an objective
        takes its own log-probability without gradient, which is equal and costs nothing.
        """
        several = self.updates_per_step > 1 or self._optim.by_step
        recomputed = self._needs.anchor == "recomputed" and (several or reads_reference)
        if recomputed:
            rollout = replace(rollout, anchor=self._logp(rollout))
        if reads_reference or self._needs.reference_logp:
            with self._policy.using("reference"):
                rollout = replace(rollout, reference=self._logp(rollout))
        return rollout

    def update(
        self, objective: Objective, batch: Batch, reward: Scorer, step: int, mine: Batch | None = None
    ) -> dict[str, float]:
        """All updates of one step. Samples that do not count are left out.

        mine        those samples of `batch` that this process learns from; None: all

        Returns means over the updates, as `update/<name>`; `agreement` says whether they point one way. `law_gap` is
        from the first update alone: later ones see weights that have moved. Raises ValueError for a loss or gradient
        that is not finite; that update is not made.
        """
        spare = self._spare(batch if mine is None else mine) if self._ranks.divides else batch
        batch = take(batch, batch.keep.nonzero().squeeze(1))
        mine = batch if mine is None else take(mine, mine.keep.nonzero().squeeze(1))
        if len(batch.rollout) == 0:
            self._policy.advance(step, "step")
            return {"update/samples": 0.0}
        if isinstance(objective, Watches):
            objective.before(batch)
        found: dict[str, list[Mean]] = {}
        norms, agreements = [], []
        for number, (part, index, done) in enumerate(self._updates(batch, mine, step)):
            at = (step - 1) * self.updates_per_step + done
            losses = self._accumulate(objective, part, index, reward, spare)
            norm, agreement, metrics = self._apply(losses, at, step)
            norms.append(norm)
            agreements.append(agreement)
            for name, mean in metrics.items():
                if name != "law_gap" or number == 0:
                    found.setdefault(name, []).append(mean)
        self._adam.zero_grad(set_to_none=True)
        self._policy.advance(step, "step")
        means = {name: _mean(parts) for name, parts in found.items()}
        if isinstance(objective, Watches):
            for copy in objective.after(means):
                self._policy.renew(copy)
        return {
            **{f"update/{name}": mean for name, mean in means.items()},
            "update/samples": float(len(batch.rollout)),
            "update/grad_norm": sum(norms) / len(norms),
            "update/agreement": sum(agreements) / len(agreements),
            "update/lr": self._optim.lr * self.rate(step * self.updates_per_step - 1),
        }

    def rate(self, update: int) -> float:
        """Share of the learning rate at an update, counted from 0. A function of its number: nothing to save."""
        warmup, last = self._optim.warmup, self._updates_in_all
        if update < warmup:
            return (update + 1) / warmup
        if self._optim.schedule == "constant":
            return 1.0
        done = (update - warmup) / max(1, last - warmup)
        return 1 - done if self._optim.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))

    def state(self) -> dict[str, Any]:
        """The optimiser's, of whole weights. Of divided ones the first process has everything, the others nothing."""
        state = self._adam.state_dict()
        moments = {
            i: {name: kept(value) if divided(value) else packed(value) for name, value in known.items()}
            for i, known in state["state"].items()
        }
        return {**state, "state": moments}

    def restore(self, state: Mapping[str, Any], updates: int) -> None:
        """Raises ValueError if the moments are not those of these weights."""
        saved = {i: {name: unpacked(value) for name, value in known.items()} for i, known in state["state"].items()}
        for i, (name, weight) in enumerate(zip(self._names, self._weights, strict=True)):
            if i in saved and saved[i]["exp_avg"].shape != weight.shape:
                raise ValueError(f"the saved moments of {name} have shape {tuple(saved[i]['exp_avg'].shape)}")
        mine = {
            i: {**saved[i], **{name: shard_like(saved[i][name], like=weight) for name in MOMENTS}}
            for i, weight in enumerate(self._weights)
            if i in saved
        }
        try:
            self._adam.load_state_dict({**state, "state": mine})
        except ValueError as problem:
            raise ValueError(f"the saved optimiser does not fit the trained weights: {problem}") from problem
        self.updates = updates

    def _accumulate(
        self, objective: Objective, batch: Batch, index: Tensor, reward: Scorer, spare: Batch
    ) -> list[Loss]:
        """Leaves the gradient of the losses summed here on the weights. Nothing is read back from the device here.

        Where weights are divided every process makes equally many passes: those with fewer samples make some about
        `spare` ones, whose gradients are 0.
        """
        self._adam.zero_grad(set_to_none=True)
        losses = []
        packs = self._micro(index, batch.rollout)
        more = max(self._ranks.gathered(len(packs))) - len(packs) if self._ranks.divides else 0
        for rows in packs:
            loss = objective.loss(take(batch, rows), self._policy, reward)
            if loss.total.requires_grad:
                loss.total.backward()
            losses.append(Loss(loss.total.detach(), loss.count, loss.metrics))
        asked = self._policy.evaluations
        for _ in range(more):
            total = objective.loss(spare, self._policy, reward).total
            total.backward(torch.zeros_like(total))
        self._policy.evaluations = asked  # those passes were about nothing
        return losses

    def _spare(self, batch: Batch) -> Batch:
        """The smallest batch that a pass can be about: a sample, or a group, whose scores and advantages are 0.

        One that counts if there is one: of others pictures may be anything.
        """
        known = next((some for some in (batch.keep, batch.scores.valid) if some.any()), torch.ones(1, dtype=torch.bool))
        rows = known.nonzero()[:1, 0].cpu()
        if self._needs.whole_groups:
            group = batch.rollout.group.cpu()
            rows = (group == group[rows]).nonzero().squeeze(1)
        one = take(batch, rows)
        if self._optim.by_step:
            one = decided(one, torch.zeros(len(one.rollout), dtype=torch.long))
        scores = replace(
            one.scores,
            total=torch.zeros_like(one.scores.total),
            parts={name: torch.zeros_like(value) for name, value in one.scores.parts.items()},
            valid=torch.ones_like(one.scores.valid),
        )
        return replace(one, scores=scores, advantage=torch.zeros_like(one.advantage), keep=torch.ones_like(one.keep))

    def _apply(self, losses: Sequence[Loss], at: int, step: int) -> tuple[float, float, dict[str, Mean]]:
        """Divide by the count, clip, and step. One value is read back from the device for the whole update.

        Returns the gradient's norm, its agreement with those before it, and metrics.
        """
        total, count, metrics = self._summed(losses)
        metrics["loss"] = Mean(total, count)
        gradients = [w.grad for w in self._weights if w.grad is not None]
        if not gradients:
            return 0.0, 0.0, metrics
        for gradient in gradients:
            local(gradient).div_(torch.where(count > 0, count, 1.0))
        norm = full(torch.nn.utils.get_total_norm(gradients))
        known = torch.stack([norm.double(), total.double(), count.double(), self._agreement(norm)])
        length, value, things, agreement = known.tolist()
        if things == 0:
            return 0.0, 0.0, metrics
        if not (math.isfinite(length) and math.isfinite(value)):
            raise ValueError(self._not_finite(step, value / things, length))
        if self._optim.clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self._weights, self._optim.clip_norm, norm)
        stepped(self._adam, self._optim.lr * self.rate(at))
        self._policy.advance(step, "update")
        self.updates += 1
        return length, agreement, metrics

    def _summed(self, losses: Sequence[Loss]) -> tuple[Tensor, Tensor, dict[str, Mean]]:
        """(total, count, metrics) of the losses of all processes, whose gradients are on the weights of each then."""
        names = losses[0].metrics if losses else ()
        metrics = {name: _joined([loss.metrics[name] for loss in losses]) for name in names}
        total, count = (
            torch.stack([getattr(loss, what) for loss in losses]).sum() if losses else torch.zeros(())
            for what in ("total", "count")
        )
        if self._ranks.count == 1:
            return total, count, metrics
        reached = [weight.grad is not None for weight in self._weights]
        found = self._ranks.gathered((total, count, metrics, reached))
        for weight, known in zip(self._weights, zip(*(one[3] for one in found), strict=True), strict=True):
            if any(known) and weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        # FSDP has summed those of divided weights.
        self._ranks.add([w.grad for w in self._weights if w.grad is not None and not divided(w)])
        everyone = [one for one in found if one[2]] or found
        metrics = {name: _joined([one[2][name] for one in everyone]) for name in everyone[0][2]}
        return sum(one[0] for one in found), sum(one[1] for one in found), metrics  # pyright: ignore[reportReturnType]

    def _agreement(self, norm: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Cosine of the gradient with the optimiser's mean of the earlier ones; 0 if there is none.

        Around 0 the updates are noise: more samples a step are needed, or a reward that says more. The mean of n
        gradients whose pairs have cosine c makes it c / sqrt(c + (1 - c) / n); n is about (1 + b1) / (1 - b1).
        """
        dot = square = torch.zeros((), dtype=torch.float64, device=norm.device)
        for weight in self._weights:
            mean = self._adam.state.get(weight, {}).get("exp_avg")
            if mean is not None and weight.grad is not None:
                mean = plain(local(mean)).flatten()
                dot = dot + torch.dot(local(weight.grad).flatten(), mean)
                square = square + torch.dot(mean, mean)
        if self._ranks.divides:
            self._ranks.add([dot, square])
        return dot / (norm.double() * square.sqrt()).clamp(min=1e-30)

    def _not_finite(self, step: int, loss: float, norm: float) -> str:
        pairs = zip(self._names, self._weights, strict=True)
        first = next((n for n, w in pairs if w.grad is not None and not local(w.grad).isfinite().all()), None)
        where = f" (first in {first})" if first else ""
        return (
            f"step {step}: the loss is {loss} and the norm of its gradient {norm}{where}; this update was not made. "
            "A lower optim.lr, a smaller optim.clip_norm or float32 arithmetic usually helps"
        )

    def _updates(self, whole: Batch, mine: Batch, step: int) -> Iterator[tuple[Batch, Int[Tensor, " n"], int]]:
        """Of every update: a batch, the rows of it, and how many updates by whole samples have been done before it.

        The rows are those of this process among the ones of the update; of some processes it may have none.

        By steps (TDPO-R, arXiv:2402.08552) an update takes one step of each sample, and all minibatches take theirs
        before any takes its next. Their order is each sample's own, as released. Raises ValueError for samples that are
        not steps of a denoiser drawn at random.
        """
        for epoch in range(self._optim.epochs):
            done, shares = epoch * self._optim.minibatches, list(self._minibatches(whole.rollout, step, epoch))
            shares = [_here(share, whole.rollout, mine.rollout) for share in shares]
            if not self._optim.by_step:
                yield from ((mine, share, done + number) for number, share in enumerate(shares))
                continue
            k = latents_of(whole.rollout, "optim.by_step").logp.shape[1]
            order = self._orders(mine.rollout, k, step, epoch)
            for place, places in enumerate(order.T):
                part = decided(mine, places) if len(places) else mine
                for number, share in enumerate(shares):
                    passed = (place * len(shares) + number) * self._optim.minibatches // (order.shape[1] * len(shares))
                    yield part, share, done + passed

    def _orders(self, rollout: Rollout, k: int, step: int, epoch: int) -> Int[Tensor, "b {k}"]:
        """In which order each sample's steps are learned from, by the key of its noise."""
        keyed = (generator(self._seed, "order of steps", step, epoch, i).permutation(k) for i in rollout.ids)
        return torch.stack([torch.from_numpy(one) for one in keyed]) if len(rollout) else torch.empty(0, k).long()

    def _minibatches(self, rollout: Rollout, step: int, epoch: int) -> Iterator[Int[Tensor, " n"]]:
        """Row numbers of every share of an epoch. Shuffled by a key, and not at all if one share is everything."""
        if self._optim.minibatches == 1:
            yield torch.arange(len(rollout))
            return
        random = generator(self._seed, "minibatch", step, epoch)
        whole = self._needs.whole_groups or rollout.plan.shares_learned
        units = _groups(rollout) if whole else list(torch.arange(len(rollout)).unsqueeze(1))
        order = torch.from_numpy(random.permutation(len(units)))
        for share in order.tensor_split(self._optim.minibatches):
            if len(share):
                # In the order of drawing: samples of one prompt lie together, and a policy can share their prefix.
                yield torch.cat([units[i] for i in share.sort().values.tolist()])

    def _micro(self, index: Int[Tensor, " n"], rollout: Rollout) -> list[Int[Tensor, " m"]]:
        """Row numbers of every forward pass of an update."""
        if not len(index):
            return []
        size = self._optim.micro or len(index)
        if not self._needs.whole_groups:
            return list(index.split(size))
        packs: list[Tensor] = []
        for group in _groups(take(rollout, index)):
            rows = index[group]
            if packs and len(packs[-1]) + len(rows) <= size:
                packs[-1] = torch.cat([packs[-1], rows])
            else:
                packs.append(rows)
        return packs

    @torch.no_grad()
    def _logp(self, rollout: Rollout) -> Float[Tensor, "b k"]:
        rows = torch.arange(len(rollout)).split(self._optim.micro or len(rollout))
        return torch.cat([self._policy.logp(take(rollout, some)) for some in rows])


def _groups(rollout: Rollout) -> list[Int[Tensor, " n"]]:
    """Row numbers of each group, groups in the order of their first sample."""
    rows: dict[int, list[int]] = {}
    for i, group in enumerate(rollout.group.tolist()):
        rows.setdefault(group, []).append(i)
    return [torch.tensor(some) for some in rows.values()]


def _here(share: Int[Tensor, " n"], whole: Rollout, mine: Rollout) -> Int[Tensor, " m"]:
    """Rows of `mine` for those rows of `whole` that are in it."""
    if mine is whole:
        return share
    row = {name: i for i, name in enumerate(mine.ids)}
    return torch.tensor([row[whole.ids[i]] for i in share.tolist() if whole.ids[i] in row], dtype=torch.long)


def _joined(means: Sequence[Mean]) -> Mean:
    totals, counts = [m.total.double() for m in means], [m.count.double() for m in means]
    return Mean(torch.stack(totals).sum(), torch.stack(counts).sum())


def _mean(means: Sequence[Mean]) -> float:
    total, count = (float(value) for value in torch.stack([_joined(means).total, _joined(means).count]))
    return total / count if count else math.nan
