"""From plain data to settings: dictionaries, lists and scalars become a tree of frozen dataclasses, strictly.

`decode(Recipe, data)` and `encode(recipe)` are inverses. A component is its name, or `{name: {field: value}}`. Nothing
is cast but an int or a numeric string where a float is declared, because YAML 1.1 reads `1e-4` as text.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from burnish.recipe import find
from burnish.recipe.find import Kind, choices

T = TypeVar("T")


def decode(cls: type[T], data: object, where: str = "recipe") -> T:
    """`data` as a `cls`. Raises ValueError with the place, the fault and the choices. `where` names the place."""
    return _value(cls, data, where)


def _value(hint: Any, data: object, where: str) -> Any:
    kind = find.kind_of(hint)
    if kind is not None:
        return _component(kind, hint, data, where)
    if isinstance(hint, type) and is_dataclass(hint):
        return data if isinstance(data, hint) else _settings(hint, data, where)
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _union(hint, data, where)
    if origin is Literal:
        return _literal(get_args(hint), data, where)
    if origin is tuple:
        return _tuple(get_args(hint), data, where)
    if origin in (Mapping, dict):
        return _mapping(get_args(hint)[1], data, where)
    return _scalar(hint, data, where)


def named(data: object, where: str, kind: Kind) -> tuple[str, Mapping[str, object]]:
    """The name and the settings of a component as a recipe writes it: `name` or `{name: {field: value}}`."""
    if isinstance(data, str):
        return data, {}
    if isinstance(data, Mapping) and len(data) == 1:
        name, settings = next(iter(data.items()))
        if settings is None:
            settings = {}
        if not isinstance(settings, Mapping):
            raise ValueError(f"{where}.{name}: expected settings, got {_shown(settings)}")
        return str(name), settings
    if isinstance(data, Mapping) and data:
        raise ValueError(f"{where}: expected one {kind.word}, got {len(data)}: {', '.join(map(str, data))}")
    raise ValueError(f"{where}: expected the name of a {kind.word}, or {{name: {{...}}}}, got {_shown(data)}")


def _component(kind: Kind, base: type, data: object, where: str) -> Any:
    if isinstance(data, base):
        return data
    if kind.word == "reward" and isinstance(data, Callable):
        return _function_reward(data)
    name, settings = named(data, where, kind)
    if kind.word == "reward" and ":" in name and not isinstance(find.load_object(name, where), type):
        if settings:
            raise ValueError(f"{where}: the function {name} has no settings; got {', '.join(settings)}")
        found = find.load_object(name, where)
        if not isinstance(found, Callable):
            raise ValueError(f"{where}: {name} is not callable; a reward takes (images, prompts) and returns scores")
        return _function_reward(found, name)
    return _settings(find.component(kind, name, where), settings, f"{where}.{name}")


def _function_reward(function: Callable[..., Any], name: str | None = None) -> Any:
    from burnish.rewards.function import Function

    if name is not None:
        return Function(name)
    named_itself = isinstance(function, types.FunctionType)
    name = f"{function.__module__}:{function.__qualname__}" if named_itself else type(function).__qualname__
    return Function(name, function)


def _settings(cls: type, data: object, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: expected settings of {cls.__name__} by name, got {_shown(data)}")
    known = settable(cls)
    for key in data:
        if key not in known:
            raise ValueError(f"{where}.{key}: {cls.__name__} has no such field{choices(str(key), known)}")
    missing = [name for name, field in known.items() if name not in data and _required(field)]
    if missing:
        raise ValueError(f"{where}: {cls.__name__} needs {', '.join(map(repr, missing))} (fields: {', '.join(known)})")
    values = {name: _value(hints(cls)[name], value, f"{where}.{name}") for name, value in data.items()}
    try:
        return cls(**values)
    except ValueError as problem:
        place, colon, rest = str(problem).partition(": ")  # a component may have said where it thinks it is
        raise ValueError(f"{where}: {rest if colon and where.endswith(place) else problem}") from problem


def settable(cls: type) -> dict[str, Field[Any]]:
    """The fields of a dataclass that a recipe may set, by name."""
    return {f.name: f for f in fields(cls) if f.init and f.metadata.get("recipe", True)}


@cache
def hints(cls: type) -> dict[str, Any]:
    """Declared types of the fields of a dataclass."""
    return get_type_hints(cls)


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _union(hint: Any, data: object, where: str) -> Any:
    arms = [arm for arm in get_args(hint) if arm is not type(None)]
    if data is None and len(arms) < len(get_args(hint)):
        return None
    if len(arms) == 1:
        return _value(arms[0], data, where)
    for arm in arms:
        try:
            return _value(arm, data, where)
        except ValueError:
            continue  # another arm may fit; the sentence below names them all
    raise ValueError(f"{where}: expected {' or '.join(map(type_name, get_args(hint)))}, got {_shown(data)}")


def _literal(known: tuple[Any, ...], data: object, where: str) -> Any:
    for value in known:
        if type(value) is type(data) and value == data:
            return value
    raise ValueError(f"{where}: no such choice: {data!r}{choices(str(data), map(str, known))}")


def _tuple(arms: tuple[Any, ...], data: object, where: str) -> tuple[Any, ...]:
    if not isinstance(data, (list, tuple)):
        raise ValueError(f"{where}: expected a list, got {_shown(data)}")
    if len(arms) == 2 and arms[1] is Ellipsis:
        arms = (arms[0],) * len(data)
    if len(arms) != len(data):
        raise ValueError(f"{where}: expected {len(arms)} values, got {len(data)}")
    return tuple(_value(arm, item, f"{where}[{i}]") for i, (arm, item) in enumerate(zip(arms, data, strict=True)))


def _mapping(hint: Any, data: object, where: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: expected values by name, got {_shown(data)}")
    for key in data:
        if not isinstance(key, str):
            raise ValueError(f"{where}: expected names, got the key {key!r}")
    return {key: _value(hint, item, f"{where}.{key}") for key, item in data.items()}


def _scalar(hint: Any, data: object, where: str) -> Any:
    if hint is Any or hint is object:
        return data
    if hint is float:
        return _float(data, where)
    if hint is Path and isinstance(data, (str, Path)):
        return Path(data)
    if type(data) is hint:  # not isinstance: True is an int, and 1 is not a bool
        return data
    raise ValueError(f"{where}: expected {type_name(hint)}, got {_shown(data)}")


def _float(data: object, where: str) -> float:
    if isinstance(data, (int, float, str)) and not isinstance(data, bool):
        try:
            number = float(data)
        except ValueError:
            number = math.nan
        if not math.isnan(number):
            return number
    raise ValueError(f"{where}: expected float, got {_shown(data)}")


def type_name(hint: Any) -> str:
    """A declared type as people write it."""
    if hint is type(None):
        return "null"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _shown(data: object) -> str:
    if data is None:
        return "null"
    text = repr(data)
    return f"{type(data).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
