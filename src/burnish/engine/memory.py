"""Components that remember begin with a run, wherever in its advantage or objective they stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from burnish.core import Advantage, Looks, Memory, Objective, Policy, Remembers, Scorer

C = TypeVar("C")
STAGES = {"advantage": "weigh", "objective": "update"}  # what the metrics of a component are reported under


def begun(component: C, policy: Policy, path: str, scorer: Scorer | None = None) -> tuple[C, dict[str, Memory]]:
    """The component at work, and all in it that remembers by its path: `advantage`, `advantage.inner`.

    What is wrapped begins first, so that a wrapper finds it at work. A component in which nothing remembers is itself.
    scorer   the run's reward, for those that look at states on the way
    """
    memories: dict[str, Memory] = {}
    inside = {}
    for f in fields(component) if is_dataclass(component) else ():
        value = getattr(component, f.name)
        if isinstance(value, (Advantage, Objective)):
            working, found = begun(value, policy, f"{path}.{f.name}", scorer)
            memories |= found
            inside |= {f.name: working} if found else {}
    if inside:
        component = replace(component, **inside)  # pyright: ignore[reportArgumentType, reportCallIssue]
    whole: Any = component
    if not isinstance(whole, Remembers):
        return whole, memories
    working: Any
    if scorer is not None and isinstance(whole, Looks):
        working = whole.looking(policy, scorer)
    else:
        working = whole.begin(policy)
    return working, {**memories, path: working}


class Memories:
    """All that remembers in a run."""

    def __init__(self, memories: Mapping[str, Memory]) -> None:
        self._memories = memories

    def metrics(self) -> dict[str, float]:
        """`weigh/<name>` of advantages, `update/<name>` of objectives."""
        named = [(STAGES[path.partition(".")[0]], memory.metrics()) for path, memory in self._memories.items()]
        return {f"{stage}/{name}": value for stage, metrics in named for name, value in metrics.items()}

    def state(self) -> dict[str, Any]:
        return {path: memory.state() for path, memory in self._memories.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for a checkpoint in which others remembered."""
        if state.keys() != self._memories.keys():
            was, here = (", ".join(sorted(names)) or "nothing" for names in (state, self._memories))
            raise ValueError(f"the checkpoint holds what {was} remembered, and here it would be {here}")
        for path, memory in self._memories.items():
            memory.restore(state[path])
