"""The three requirement files agree with each other and with the metadata in pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {
    extra: [Requirement(text) for text in texts]
    for extra, texts in PROJECT["optional-dependencies"].items()
    if extra != "all"
}
DECLARED = {*PROJECT["dependencies"], *(str(r) for rs in EXTRAS.values() for r in rs)}
PINNED = ("requirements.txt", "requirements-training.txt")
COLAB = (ROOT / "requirements-colab.txt").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^# == (.+?) ==\n(.*?)(?=^# ==|\Z)", COLAB, re.MULTILINE | re.DOTALL))


def lines(text: str) -> list[Requirement]:
    return [Requirement(line) for line in text.splitlines() if re.match(r"\w", line)]


def commented(text: str) -> list[Requirement]:
    return [Requirement(line) for line in re.findall(r"^# ([\w-]+>=\S+)$", text, re.MULTILINE)]


def pins() -> dict[str, set[str]]:
    """Every version that a file pins, by canonical name; torch counts with its newest release."""
    found = defaultdict(set)
    for name in PINNED:
        for required in lines((ROOT / name).read_text(encoding="utf-8")):
            (last,) = [s.version for s in required.specifier if s.operator in {"==", "<="}]
            found[canonicalize_name(required.name)].add(last)
    return dict(found)


PINS = pins()
THERE, INSTALLED, FOOTER = SECTIONS.values()
RANGES = {canonicalize_name(r.name): r for r in [*commented(THERE), *lines(INSTALLED)]}


def test_the_sections_of_colab() -> None:
    assert list(SECTIONS) == [
        "What Colab already has: not to be installed",
        "What the training runtime installs",
        "Differences on purpose",
    ]
    assert lines(THERE) == []
    assert commented(INSTALLED) == []
    assert lines(FOOTER) == commented(FOOTER) == []


def test_what_colab_must_not_install_is_only_named() -> None:
    left_alone = {canonicalize_name(required.name) for required in commented(THERE)}
    assert {"torch", "numpy", "pandas"} <= left_alone
    assert not left_alone & {canonicalize_name(required.name) for required in lines(INSTALLED)}


def test_no_package_is_pinned_twice_differently() -> None:
    assert {name: found for name, found in PINS.items() if len(found) > 1} == {}


def test_everything_but_torch_is_pinned_exactly() -> None:
    named = [r for name in PINNED for r in lines((ROOT / name).read_text(encoding="utf-8"))]
    loose = [r.name for r in named if [s.operator for s in r.specifier] != ["=="]]
    assert loose == ["torch"]


def test_training_adds_to_development() -> None:
    text = (ROOT / "requirements-training.txt").read_text(encoding="utf-8")
    assert "-r requirements.txt" in text.splitlines()


@pytest.mark.parametrize("declared", sorted(DECLARED))
def test_the_metadata_hold_for_pins_and_ranges(declared: str) -> None:
    required = Requirement(declared)
    name = canonicalize_name(required.name)
    assert name in PINS, f"pinned by neither of {PINNED}"
    assert all(required.specifier.contains(version) for version in PINS[name])
    lowest = [s for s in RANGES[name].specifier if s.operator == ">="]
    assert lowest == list(required.specifier), "colab's range starts where the extra's does"


@pytest.mark.parametrize("name", RANGES)
def test_ranges_of_colab_contain_the_pins(name: str) -> None:
    assert all(RANGES[name].specifier.contains(version) for version in PINS[name])


def test_all_holds_every_extra() -> None:
    (text,) = PROJECT["optional-dependencies"]["all"]
    assert Requirement(text).extras == set(EXTRAS)


def test_comments_name_modules_that_are_there() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    named = re.findall(r"\w+(?:/\w+)*(?:\.py|/)(?=[\s,;])", extras)
    assert named
    package = ROOT / "pytest_transformer_validate"
    assert [path for path in named if not (package / path).exists()] == []
