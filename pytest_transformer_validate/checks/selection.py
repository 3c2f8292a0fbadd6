"""Checks by name: choosing them, changing their limits, declaring that they fail."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_transformer_validate.checks.registry import Check


def find(name: str, checks: Sequence[Check]) -> Check:
    """The check called ``name``. Raises SpecError for an unknown one, naming the nearest."""
    for check in checks:
        if check.name == name:
            return check
    raise SpecError(f"unknown check {name!r}{_hint(name, [c.name for c in checks])}")


def check_ids(names: Iterable[str], checks: Sequence[Check]) -> None:
    """Raises SpecError unless every one of ``names`` is a ``check`` or a ``check[case]``."""
    for name in names:
        check = find(name.partition("[")[0], checks)
        if name != check.name and name not in check.ids():
            raise SpecError(f"{check.name} has no case {name!r}{_hint(name, check.ids())}")


def parse_limits(lines: Iterable[str], checks: Sequence[Check]) -> dict[str, dict[str, Any]]:
    """``check.limit = value`` lines as ``{check: {limit: value}}``. Raises SpecError."""
    limits: dict[str, dict[str, Any]] = {}
    for line in lines:
        key, equals, text = (part.strip() for part in line.partition("="))
        name, _, limit = key.partition(".")
        if not equals or not limit:
            raise SpecError(f"a limit is written as: check.limit = value, given {line!r}")
        check = find(name, checks)
        defaults = {**check.limits, **{budget.limit: None for budget in check.budgets}}
        if limit not in defaults:
            known = list(defaults)
            raise SpecError(
                f"{name} has no limit {limit!r}{_hint(limit, known)}"
                if known
                else f"{name} has no limits that can be set, given {line!r}"
            )
        limits.setdefault(name, {})[limit] = _limit_value(line, text, defaults[limit])
    return limits


def split_budgets(
    limits: Mapping[str, Mapping[str, Any]], checks: Sequence[Check]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, float]]]:
    """Limits that a check takes, and what is held against a baseline as ``{check: {limit:
    growth}}``."""
    own: dict[str, dict[str, Any]] = {}
    budgets: dict[str, dict[str, float]] = {}
    for name, given in limits.items():
        taken = find(name, checks).limits
        for limit, value in given.items():
            (own if limit in taken else budgets).setdefault(name, {})[limit] = value
    return own, budgets


def parse_expect_fail(lines: Iterable[str], checks: Sequence[Check]) -> dict[str, str]:
    """``check: reason`` and ``check[case]: reason`` lines as a dict. Raises SpecError."""
    declared: dict[str, str] = {}
    for line in lines:
        name, _, reason = (part.strip() for part in line.partition(":"))
        if not reason:
            raise SpecError(f"a known deviation is written as: check: reason, given {line!r}")
        check_ids([name], checks)
        declared[name] = reason
    return declared


def merge_declared(
    ini: Mapping[str, str], local: Mapping[str, str], checks: Sequence[Check]
) -> dict[str, str]:
    """Deviations of the ini file and of one model. Raises SpecError for an unknown name."""
    check_ids(local, checks)
    return {**local, **ini}


def _limit_value(line: str, text: str, default: Any) -> Any:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    kind = type(default) if type(default) in kinds else float
    if kind is str:
        return text
    try:
        given = json.loads(text)
    except ValueError:
        given = None
    if kind is float and type(given) is int:
        given = float(given)
    if type(given) is not kind or (kind is float and not math.isfinite(given)):
        raise SpecError(f"the limit must be {kinds[kind]}, given {line!r} (default {default!r})")
    return given


def _hint(name: str, known: Sequence[str]) -> str:
    return did_you_mean(name, known) or f"; known are {', '.join(known)}"
