from __future__ import annotations

import types

import pytest

from pytest_transformer_validate import identity
from pytest_transformer_validate.identity import COUNTED, Identities, Writes


class Agreeing:
    """Equal to everything."""

    def __eq__(self, _other: object) -> bool:
        return True

    __hash__ = None


def test_the_same_objects_are_the_same():
    held = [{"a": object(), "b": 1}, {}, {"c": "text"}]
    kept = Identities([each.values() for each in held])
    assert kept.same()
    held[0]["a"] = held[0]["a"]
    assert kept.same()


def test_an_equal_object_is_not_the_same():
    held = {"a": [1], "b": object()}
    kept = Identities([held.values()])
    held["a"] = [1]
    assert not kept.same()


def test_an_object_that_calls_itself_equal_is_not_the_same():
    held = {"a": object()}
    kept = Identities([held.values()])
    held["a"] = Agreeing()
    assert not kept.same()


def test_what_went_is_not_taken_for_what_came_in_its_place():
    held = {"a": object()}
    kept = Identities([held.values()])
    del held["a"]
    held["a"] = object()
    assert not kept.same()


def test_what_moved_to_the_next_container_is_not_where_it_was():
    one, two = {"a": object()}, {"b": object()}
    kept = Identities([one.values(), two.values()])
    one["b"] = two.pop("b")
    assert not kept.same()


def test_against_what_was_held_earlier():
    held = {"a": object()}
    before = dict(held)
    held["a"] = object()
    assert not Identities([held.values()], [before.values()]).same()
    held.update(before)
    assert Identities([held.values()], [before.values()]).same()


class Kind:
    name = 1


@pytest.mark.skipif(not COUNTED, reason="this Python does not count writes to dicts")
class TestWrites:
    @pytest.mark.parametrize(
        "write",
        [
            lambda module: setattr(module, "name", 2),
            lambda module: setattr(module, "other", 2),
            lambda module: delattr(module, "name"),
            lambda module: vars(module).update(name=2),
            lambda module: exec("name = 2", vars(module)),  # as code of the module does
        ],
        ids=["replaced", "added", "deleted", "updated", "from inside"],
    )
    def test_to_a_module_are_seen(self, write):
        module = types.ModuleType("module")
        module.name = 1
        writes = Writes([vars(module)])
        assert dict(vars(module))["name"] == 1
        assert writes.none()
        write(module)
        assert not writes.none()
        writes.note()
        assert writes.none()

    def test_to_a_class_are_seen(self, monkeypatch):
        writes = Writes([vars(Kind)])
        assert writes.none()
        monkeypatch.setattr(Kind, "name", 2)
        assert not writes.none()

    def test_of_a_value_that_is_put_back_are_seen(self):
        held = {"name": 1}
        writes = Writes([held])
        held["name"] = 2
        held["name"] = 1
        assert not writes.none()


def test_where_writes_are_not_counted_there_may_always_have_been_one(monkeypatch):
    monkeypatch.setattr(identity, "COUNTED", False)
    assert not Writes([{"name": 1}]).none()
