"""Twelve credentials and more, and markup, planted wherever a model has a say: in no sink.

Rows 86, 89 and 90 of the table of bad input.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

import pytest

from tests.plugin.conftest import CHECKS
from tests.trust import hostile

if TYPE_CHECKING:
    from pathlib import Path

    from tests.trust.hostile import Seen

TEXTS = ["stdout", "stderr", "junit.xml", "records.json", "summary.md", "merged.md"]
PAGES = ["page.html", "merged.html", "notebook"]
WAYS = {
    "serial": ["-vv", "-rA", "--tb=long"],
    "two workers": ["-n2", "-v", "-rA", "--tb=long"],
}


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return hostile.run(tmp_path_factory.mktemp("hostile"), CHECKS, *request.param)


def test_the_run_is_one_that_shows_texts(seen: Seen) -> None:
    """What is looked for below could have been seen: its places are in the reports."""
    assert seen.code == 1, seen.sinks["stdout"]
    shown = seen.sinks["stdout"]
    assert "[redacted]" in shown
    for words in ("quotes (tier 1): the model raised", "Captured stdout call", "colour stays"):
        assert words in shown
    assert len(seen.records) == 2 * 9
    assert "::error " in shown, "annotations"
    for sink in ("junit.xml", "records.json", "summary.md", "merged.md", *PAGES):
        assert "[redacted]" in seen.sinks[sink], sink
    assert "warnings summary" in shown
    assert "baseline old.json: 1 thing got worse" in shown
    assert "changed since: torch [redacted]" in shown


@pytest.mark.parametrize("sink", TEXTS + PAGES)
def test_no_credential_is_in_a_sink(seen: Seen, sink: str) -> None:
    for text in (seen.sinks[sink], html.unescape(seen.sinks[sink])):
        for needle in hostile.NEEDLES:
            place = text.find(needle)
            assert place < 0, text[max(0, place - 200) : place + 80]


@pytest.mark.parametrize("sink", TEXTS)
def test_no_control_character_is_in_a_sink(seen: Seen, sink: str) -> None:
    text = seen.sinks[sink].replace("\x1b[31mcolour stays\x1b[0m", "")
    for raw in hostile.RAW:
        assert raw not in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", text)


@pytest.mark.parametrize("sink", ["merged.html", "notebook"])
def test_no_markup_is_in_a_page_of_its_own(seen: Seen, sink: str) -> None:
    assert "&lt;script&gt;" in seen.sinks[sink], "it was shown, escaped"
    for raw in ("<script", "<img", *hostile.RAW):
        assert raw not in seen.sinks[sink]


def test_no_markup_is_in_the_page(seen: Seen) -> None:
    page = seen.sinks["page.html"]
    for raw in (hostile.MARKUP, hostile.BREAKOUT, *hostile.RAW):
        assert raw not in page
    blob = re.search(r'data-jsonblob="([^"]*)"', page)
    assert blob is not None
    rows = html.unescape(blob[1])
    assert "<script>" not in rows
    assert "<img" not in rows
    assert "&lt;script&gt;" in rows, "it was shown, escaped"


def test_ids_are_plain(seen: Seen) -> None:
    ids = {str(record["model"]) for record in seen.records}
    ids |= {case.get("name", "") for case in seen.junit.iter("testcase")}
    assert len(ids) > 9
    for name in ids:
        assert re.fullmatch(r"[A-Za-z0-9._:/@=\[\]-]{1,200}", name), name


def test_texts_are_short(seen: Seen) -> None:
    assert max(len(str(record["message"])) for record in seen.records) < 20_000


def test_no_whole_credential_is_shown_with_all_frames_and_locals(tmp_path: Path) -> None:
    """pytest cuts long values out of their middle before anybody else sees them."""
    seen = hostile.run(tmp_path, CHECKS, "--full-trace", "--showlocals", "-k", "raises or says")
    assert "input_ids  = None" in seen.sinks["stdout"], "locals are shown"
    for text in seen.sinks.values():
        for place in hostile.PLACES:
            assert hostile.token(place) not in text
        for value in hostile.VARIABLES.values():
            assert value not in text
