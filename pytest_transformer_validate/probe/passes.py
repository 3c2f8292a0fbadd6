"""Passes about one subject, grouped: each is run once and remembered by its Probe."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_transformer_validate.probe.probe import Probe

Result = TypeVar("Result")
Case = ParamSpec("Case")
Group = TypeVar("Group", bound="Passes")


class Passes:
    """Base of a group of passes; a Probe has one object of each group."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe


def remembered(
    method: Callable[Concatenate[Group, Case], Result],
) -> Callable[Concatenate[Group, Case], Result]:
    """Run a method of a group once for the same arguments; see ``Probe.remember``."""

    @functools.wraps(method)
    def run(self: Group, *case: Case.args, **named: Case.kwargs) -> Result:
        key = (method.__qualname__, *case, *named.values())
        return self.probe.remember(key, lambda: method(self, *case, **named))

    return cast("Callable[Concatenate[Group, Case], Result]", run)
