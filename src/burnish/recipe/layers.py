"""A recipe is written in layers, a later one over an earlier: base recipes, the recipe's file, the command line.

Layers are plain data. They are merged along the types they will have: settings by field, a mapping by key, and a
component by its settings if the name stays the same; another name replaces it. `null` takes an entry out of a mapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from burnish.recipe import find
from burnish.recipe.decode import hints, named, settable
from burnish.recipe.find import choices


def spelled(hint: Any, data: object, where: str = "recipe") -> object:
    """`data` with every component written out as `{name: {...}}`, so that one value has one path."""
    hint = _plain(hint)
    kind = find.kind_of(hint)
    if kind is not None:
        if not isinstance(data, (str, Mapping)):
            return data
        name, settings = named(data, where, kind)
        if not settings:
            return {name: {}}
        return {name: spelled(find.component(kind, name, where), settings, f"{where}.{name}")}
    if isinstance(data, Mapping) and is_dataclass(hint):
        types = hints(hint)
        return {key: spelled(types.get(key), value, f"{where}.{key}") for key, value in data.items()}
    if isinstance(data, Mapping) and get_origin(hint) in (Mapping, dict):
        return {key: spelled(get_args(hint)[1], value, f"{where}.{key}") for key, value in data.items()}
    return data


def merged(hint: Any, under: object, over: object, where: str = "recipe") -> object:
    """`over` laid on `under`, both plain data of a value declared as `hint`."""
    hint = _plain(hint)
    kind = find.kind_of(hint)
    if kind is not None and isinstance(under, (str, Mapping)) and isinstance(over, (str, Mapping)):
        return _merged_components(kind, under, over, where)
    if not isinstance(under, Mapping) or not isinstance(over, Mapping):
        return over
    if isinstance(hint, type) and is_dataclass(hint):
        types = hints(hint)
        return _by_key(under, over, where, lambda key: types.get(key))
    if get_origin(hint) in (Mapping, dict):
        joined = _by_key(under, over, where, lambda key: get_args(hint)[1])
        return {key: value for key, value in joined.items() if value is not None}
    return over


def _merged_components(kind: find.Kind, under: str | Mapping, over: str | Mapping, where: str) -> object:
    old, old_settings = named(under, where, kind)
    new, new_settings = named(over, where, kind)
    if old != new:
        return over
    if not old_settings or not new_settings:
        return {new: {**old_settings, **new_settings}}
    cls = find.component(kind, new, where)
    return {new: merged(cls, old_settings, new_settings, f"{where}.{new}")}


def _by_key(under: Mapping, over: Mapping, where: str, hint_of: Any) -> dict[str, object]:
    joined = dict(under)
    for key, value in over.items():
        joined[key] = merged(hint_of(key), under[key], value, f"{where}.{key}") if key in under else value
    return joined


def _plain(hint: Any) -> Any:
    """`X | None` as X."""
    if get_origin(hint) in (Union, UnionType):
        arms = [arm for arm in get_args(hint) if arm is not type(None)]
        return arms[0] if len(arms) == 1 else hint
    return hint


def nested(hint: Any, data: object, path: str, value: object, where: str = "recipe") -> object:
    """The layer that sets `path` (`objective.ppo_clip.clip`) to `value`, over the recipe `data` as it is so far.

    Raises ValueError if the path leads nowhere, or through a component that the recipe does not have.
    """
    if not path:
        return value
    hint = _plain(hint)
    kind = find.kind_of(hint)
    if kind is not None:
        return _nested_component(kind, data, path, value, where)
    under = data if isinstance(data, Mapping) else {}
    if isinstance(hint, type) and is_dataclass(hint):
        key, _, rest = path.partition(".")
        known = settable(hint)
        if key not in known:
            raise ValueError(f"{where}.{key}: {hint.__name__} has no such field{choices(key, known)}")
        return {key: nested(hints(hint)[key], under.get(key), rest, value, f"{where}.{key}")}
    if get_origin(hint) in (Mapping, dict):
        key, _, rest = path.partition(".")
        return {key: nested(get_args(hint)[1], under.get(key), rest, value, f"{where}.{key}")}
    raise ValueError(f"{where}: is a single value, so nothing is called {path!r} under it")


def _typed(where: str) -> str:
    """A place in the recipe as it is written on the command line."""
    return where.removeprefix("recipe.")


def _nested_component(kind: find.Kind, data: object, path: str, value: object, where: str) -> object:
    if data is None:
        raise ValueError(f"{where}: the recipe has no {kind.word} here to change; name one first ({_typed(where)}=...)")
    name, settings = named(data, where, kind)
    if path == name:
        return {name: value}
    if not path.startswith(name + "."):
        asked = path.partition(".")[0]
        known = find.names(kind)
        if asked in known:
            raise ValueError(
                f"{where}: the {kind.word} is {name!r}, not {asked!r}; to change it, write "
                f"{_typed(where)}={asked} first"
            )
        raise ValueError(f"{where}.{asked}: the {kind.word} here is {name!r}; write {_typed(where)}.{name}.{path}")
    cls = find.component(kind, name, where)
    return {name: nested(cls, settings, path[len(name) + 1 :], value, f"{where}.{name}")}
