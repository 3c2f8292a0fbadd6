"""Rows 32 to 37, 48, 51 to 58 and 65 of the table of bad input: what ``load`` says of a model.

All models of the table are in one run, and in a second one on two workers: none of them stops
the others, and the verdicts are the same.
"""

from __future__ import annotations

import pytest

from tests.bad_inputs.loads import CASES, PACKAGE, Case
from tests.bad_inputs.running import WAYS, Seen, run, write

PKG = "tv_rows"


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("loads")
    (folder / PKG).mkdir()
    (folder / PKG / "__init__.py").touch()
    (folder / PKG / "nets.py").write_text(PACKAGE)
    specs = [spec.replace("PKG", PKG) for spec in write(folder, CASES).values()]
    return run(folder, specs, "-k", "load and not reload", *request.param)


def test_the_run_ends_as_failed_and_nothing_is_lost(seen: Seen) -> None:
    assert seen.code == 1, seen.shown[-3000:]
    assert "INTERNALERROR" not in seen.shown
    assert len(seen.records) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_row(seen: Seen, case: Case) -> None:
    spec = case.spec.replace("PKG", PKG)
    name = spec if ":" in spec else f"{case.id}/{spec}".rstrip("/")
    (record,) = (r for r in seen.records[name] if r["check"] == "load")
    message = record["message"]
    assert record["status"] == ("broken" if case.words else "passed"), message
    at = 0
    for words in case.words:
        at = message.find(words, at)
        assert at >= 0, f"{words!r} is not in its place in:\n{message}"
    assert len(message.splitlines()) <= 12
    assert max(map(len, message.splitlines() or [""])) < 400
    assert "pytest_transformer_validate/" not in message, "frames of the plugin"
    for words in case.warned:
        assert f"{case.id}/{words}" in seen.shown
