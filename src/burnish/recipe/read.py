"""Recipes by name, by file or by the folder of a run, with changes on top and a note of where every value came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from burnish.recipe import find
from burnish.recipe.find import choices

if TYPE_CHECKING:
    from burnish.recipe.recipe import Recipe

SHELF = find.ROOT / "recipes"
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Draft:
    """A recipe as plain data, before it is decoded."""

    name: str  # as it was asked for
    data: Mapping[str, object]
    origin: Mapping[str, str]  # path of a value -> the file it came from, or "command line"; a default is not listed


def shipped() -> tuple[tuple[str, str], ...]:
    """(name, first line of its comment) of every recipe that ships with burnish."""
    found = []
    for path in sorted(SHELF.rglob("[!_]*.yaml")):  # one that begins with _ is a layer of others
        with path.open(encoding="utf-8") as text:
            first = text.readline()
        found.append((path.relative_to(SHELF).with_suffix("").as_posix(), first.lstrip("# ").strip()))
    return tuple(found)


def locate(name: str, beside: Path | None = None) -> Path:
    """The file of a recipe: a shipped name, a .yaml file, or the folder of a run (which holds recipe.yaml).

    `beside` is the folder that a relative `base` starts from. Raises ValueError if there is none.
    """
    for start in (beside, Path()):
        if start is None:
            continue
        path = (start / name).expanduser()
        if path.is_dir() and (path / "recipe.yaml").is_file():
            return path / "recipe.yaml"
        if path.suffix in (".yaml", ".yml") and path.is_file():
            return path
    path = SHELF / f"{name}.yaml"
    if path.is_file() and path.resolve().is_relative_to(SHELF):
        return path
    if Path(name).suffix in (".yaml", ".yml"):
        raise ValueError(f"{name}: no such recipe file")
    if Path(name).is_dir():
        raise ValueError(f"{name}: this folder is not a run: it has no recipe.yaml")
    raise ValueError(f"no recipe, file or run called {name!r}{choices(name, [n for n, _ in shipped()])}")


def draft(name: str, overrides: Sequence[str] = (), settings: Mapping[str, object] | None = None) -> Draft:
    """A recipe with its bases, then `overrides` (`path=value`, the command line), then `settings` (path -> object).

    Raises ValueError for a file that is not there or is not YAML, and for a path that leads nowhere.
    """
    data, origin = _layered(locate(name), ())
    changes = [_split(text) for text in overrides] + list((settings or {}).items())
    for path, value in changes:
        data, origin = _changed(data, origin, path, value)
    return Draft(name, data, origin)


def _changed(data: dict, origin: dict[str, str], path: str, value: object) -> tuple[dict, dict[str, str]]:
    from burnish.recipe.layers import merged, nested, spelled
    from burnish.recipe.recipe import Recipe

    layer = spelled(Recipe, nested(Recipe, data, path, value))
    new = merged(Recipe, data, layer)
    assert isinstance(new, dict)
    return new, _traced(new, origin, layer, COMMAND_LINE)


def _layered(path: Path, seen: tuple[Path, ...]) -> tuple[dict, dict[str, str]]:
    """Data and origins of a file over its bases."""
    from burnish.recipe.layers import merged, spelled
    from burnish.recipe.recipe import Recipe

    path = path.resolve()
    if path in seen:
        raise ValueError(f"{path}: is its own base, by way of {', '.join(p.name for p in seen)}")
    own = _load(path)
    base = own.pop("base", [])
    bases = base if isinstance(base, list) else [base]
    if not all(isinstance(name, str) for name in bases):
        raise ValueError(f"{path}: base must name one recipe, or a list of them, got {base!r}")
    layers = [_layered(locate(name, beside=path.parent), (*seen, path)) for name in bases]
    own = spelled(Recipe, own)
    assert isinstance(own, dict)
    layers.append((own, dict.fromkeys(leaves(own), _called(path))))
    data, origin = {}, {}
    for layer, whence in layers:
        new = merged(Recipe, data, layer)
        assert isinstance(new, dict)
        data, before = new, {**origin, **whence}
        origin = {leaf: before[leaf] for leaf in leaves(data) if leaf in before}
    return data, origin


def _called(path: Path) -> str:
    """A file as people name it: a shipped recipe by its name, any other by its path."""
    if path.is_relative_to(SHELF):
        return f"recipe {path.relative_to(SHELF).with_suffix('').as_posix()}"
    return str(path)


def _load(path: Path) -> dict:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        data = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except YAMLError as problem:
        raise ValueError(f"{path}: not YAML: {_one_line(problem)}") from problem
    except (OmegaConfBaseException, UnicodeDecodeError, OSError) as problem:
        raise ValueError(f"{path}: {_one_line(problem)}") from problem
    if not isinstance(data, dict) or not data:
        raise ValueError(
            f"{path}: expected a recipe (policy, source, reward, ...), got {'nothing' if not data else 'a list'}"
        )
    return {str(key): value for key, value in data.items()}


def read(name: str, overrides: Sequence[str] = (), settings: Mapping[str, object] | None = None) -> Recipe:
    """The recipe that `name` stands for, with changes on top; see `draft`."""
    from burnish.recipe.decode import decode
    from burnish.recipe.recipe import Recipe

    return decode(Recipe, draft(name, overrides, settings).data)


def changed(recipe: Recipe, overrides: Sequence[str] = (), settings: Mapping[str, object] | None = None) -> Recipe:
    """A recipe with changes, written as in `draft`."""
    from burnish.recipe.decode import decode
    from burnish.recipe.encode import encode
    from burnish.recipe.layers import spelled
    from burnish.recipe.recipe import Recipe

    data: object = spelled(Recipe, encode(recipe))
    assert isinstance(data, dict)
    for path, value in [*map(_split, overrides), *(settings or {}).items()]:
        data, _ = _changed(data, {}, path, value)
    return decode(Recipe, data)


def write(recipe: Recipe, path: Path) -> None:
    """Write a recipe, every value of it, as YAML that `read` accepts."""
    from burnish.recipe.encode import encode

    path.write_text(as_yaml(encode(recipe)), encoding="utf-8")


def as_yaml(data: Mapping[str, object]) -> str:
    """Plain data as text that this module reads back unchanged: PyYAML alone writes the text 1e3 without quotes."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(dict(data)))


def data_of(text: str) -> dict[str, object]:
    """The inverse of `as_yaml`."""
    from omegaconf import OmegaConf

    found = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _split(text: str) -> tuple[str, object]:
    from yaml import YAMLError, safe_load

    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise ValueError(f"{text!r}: expected a change written path=value, such as objective.ppo_clip.clip=2e-4")
    try:
        return path.strip().removeprefix("recipe."), safe_load(value)
    except YAMLError as problem:
        raise ValueError(f"{text!r}: cannot read the value: {_one_line(problem)}") from problem


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split())


def _traced(data: object, before: Mapping[str, str], layer: object, name: str) -> dict[str, str]:
    """Origins of all values of `data`: those that the layer holds come from it, the others from before."""
    set_here = set(leaves(layer))
    return {
        path: name if path in set_here else before[path] for path in leaves(data) if path in set_here or path in before
    }


def leaves(data: object, path: str = "") -> dict[str, object]:
    """All single values by their path. A list is a single value, and so is a component without settings."""
    if isinstance(data, Mapping) and data:
        parts = (leaves(item, f"{path}.{key}" if path else str(key)) for key, item in data.items())
        return {leaf: value for part in parts for leaf, value in part.items()}
    return {path: data}
