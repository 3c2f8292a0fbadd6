"""Several files of --tb-json as one page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate.__main__ import main
from pytest_transformer_validate.report import json as json_report
from pytest_transformer_validate.report import markdown
from pytest_transformer_validate.report.record import Record

if TYPE_CHECKING:
    from pathlib import Path

FACTS = {"arguments": [], "exit": 1, "seed": 0, "workers": 0}
TOKEN = "ghp_" + "x" * 36
MARKUP = f"</pre><script>alert(1)</script><img src=x onerror=alert(1)>| ``` {TOKEN}\x1b[2J"


def record(model: str, check: str, status: str = "passed", **more: Any) -> Record:
    return Record(model=model, tier=more.pop("tier", 1), check=check, status=status, **more)


def write(path: Path, *records: Record) -> str:
    models = [(name, name) for name in dict.fromkeys(r.model for r in records)]
    run = {**json_report.about(), **FACTS}
    json_report.write(path, records, models=models, run=run)
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "b").mkdir()
    context = {"task": "causal_lm", "parameters": 1200}
    return [
        write(
            tmp_path / "a.json",
            record("m.py", "load", context=context),
            record("m.py", "causality", case="short"),
            record("m.py", "late", "failed", tier=2, message=f"late (tier 2): {MARKUP}\nmore"),
        ),
        write(
            tmp_path / "b" / "b.json",
            record("m.py", "load", numbers={"value": 3.0, "limit": {"value": 4.0, "rule": "u"}}),
            record("n.py", "load", "skipped", message="nothing to do"),
        ),
    ]


class Tags(HTMLParser):
    """Every tag of a page, and the cells of its table row by row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.attributes: set[str] = set()
        self.rows: list[list[str]] = []
        self.over = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        if self.rows and data.strip() and not self.over:
            self.rows[-1].append(data.strip())

    def handle_endtag(self, tag: str) -> None:
        self.over = self.over or tag == "table"


def test_the_page_has_failures_first_and_a_column_a_model(
    files: list[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    assert main(["merge", *files, "-o", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert Tags(text).rows == [
        ["Check", "Tier", "m.py (a.json)", "m.py (b.json)", "n.py"],
        ["late", "2", "failed", "not run", "not run"],
        ["load", "1", "passed", "passed", "skipped"],
        ["causality[short]", "1", "passed", "not run", "not run"],
    ]
    assert "<p>2 of 3 models passed.</p>\n<details><summary>m.py (a.json): <span" in text
    assert 'title="measured 3; limit 4 = u"' in text
    assert "task causal_lm, 1.2K parameters" in text


def test_nothing_of_a_model_is_markup_in_the_page(files: list[str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    main(["merge", *files, "-o", str(page)])
    text = page.read_text(encoding="utf-8")
    tags = Tags(text)
    assert not tags.seen & {"script", "img", "svg", "iframe", "a"}
    assert not [name for name in tags.attributes if name.startswith("on")]
    assert "&lt;script&gt;" in text, "it was shown, escaped"
    assert TOKEN not in text
    assert "\x1b" not in text
    assert "default-src 'none'" in text


def test_the_same_as_markdown(files: list[str], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    assert main(["merge", *files, "-o", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[4:7] == [
        r"| Check | Tier | m\.py \(a\.json\) | m\.py \(b\.json\) | n\.py |",
        "| --- | --- | --- | --- | --- |",
        "| late | 2 | **failed** | not run | not run |",
    ]
    assert re.search("^````text\nlate .*```.*\nmore\n````$", text, re.M), "the fence is longer"
    assert TOKEN not in text


@pytest.mark.parametrize("text", ["a|b", "<b>", "[x](y)", "*a*", "`a`", "a\n# b", "http://x"])
def test_no_sign_of_markdown_stays_bare(text: str) -> None:
    shown = markdown.inline(text)
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)[|<>\[\]()*`#:]", shown)
    assert re.sub(r"\\(.)", r"\1", shown) == " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.json", "-o", "x.html"], "none.json cannot be read as JSON"),
        (["a.json", "-o", "x.pdf"], "-o must end in .html or .md, given x.pdf"),
        (["a.json", "-o", "no/x.md"], "No such file"),
        (["a.json"], "required: -o"),
    ],
)
def test_what_is_typed_wrong_is_exit_2(
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["merge", *arguments])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
