from __future__ import annotations

from pytest_transformer_validate.identity import Identities


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
