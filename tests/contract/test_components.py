"""What every component file promises: one public class, frozen settings with a word on each, found by its file name."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields, is_dataclass

import pytest

from burnish.core import Footprint, Sized
from burnish.plans.every_token import EveryToken
from burnish.recipe import find
from burnish.recipe.decode import hints
from burnish.types import TokenPlan

FOUND = [(kind, name) for kind in find.KINDS for name in find.names(kind)]
IDS = [f"{kind.folder}/{name}" for kind, name in FOUND]


@pytest.mark.parametrize(("kind", "name"), FOUND, ids=IDS)
def test_a_component_is_found_by_its_file_and_names_itself(kind, name):
    cls = find.component(kind, name, "here")
    assert find.name_of(cls) == name
    assert find.component(kind, f"{cls.__module__}:{cls.__qualname__}", "here") is cls


@pytest.mark.parametrize(("kind", "name"), FOUND, ids=IDS)
def test_its_settings_are_frozen_and_typed(kind, name):
    cls = find.component(kind, name, "here")
    assert is_dataclass(cls) and cls.__dataclass_params__.frozen
    assert set(hints(cls)) >= {field.name for field in fields(cls)}


@pytest.mark.parametrize(("kind", "name"), FOUND, ids=IDS)
def test_every_setting_has_a_word_beside_it(kind, name):
    cls = find.component(kind, name, "here")
    lines = inspect.getsource(cls).splitlines()
    body = ast.parse(inspect.getsource(cls)).body[0].body
    for node in body:
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
            assert any("#" in line for line in lines[node.lineno - 1 : node.end_lineno]), ast.unparse(node.target)


@pytest.mark.parametrize(("kind", "name"), FOUND, ids=IDS)
def test_the_listing_knows_it_without_importing(kind, name):
    assert dict(find.listing(kind))[name], "its file has a docstring"


def test_no_component_subclasses_a_concrete_one():
    classes = {find.component(kind, name, "here") for kind, name in FOUND}
    for cls in classes:
        assert not classes & set(cls.__mro__[1:])


def test_every_file_in_a_folder_is_a_component():
    for kind in find.KINDS:
        files = {path.stem for path in (find.ROOT / kind.folder).glob("*.py")} - {"__init__"}
        assert files == set(find.names(kind))


def test_every_token_has_the_fields_of_a_plan_in_their_order_with_their_defaults():
    assert [(f.name, f.default) for f in fields(EveryToken)] == [(f.name, f.default) for f in fields(TokenPlan)]


def test_a_policy_that_tells_its_size_is_sized():
    class Tells:
        def footprint(self) -> Footprint:
            return Footprint(1, 1, 1, 1, 1, 1)

    assert isinstance(Tells(), Sized) and not isinstance(EveryToken(), Sized)
