"""Where the records go: JSON, JUnit, pytest-html, the record hook."""

from __future__ import annotations

import html
import json
import linecache
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pytest_transformer_validate.outcome import RECORD

MODEL = "--tb-model=model.py"


def test_json_holds_the_run_the_models_and_the_records(project: pytest.Pytester) -> None:
    project.runpytest_inprocess(MODEL, "--tb-json=out.json", "--tb-seed=4")
    data = json.loads((project.path / "out.json").read_text(encoding="utf-8"))
    assert data["schema_version"] == 1
    assert data["run"]["seed"] == 4
    assert data["run"]["exit"] == 1
    assert set(data["run"]["packages"]) == {"pytest-transformer-validate", "pytest", "torch"}
    (model,) = data["models"]
    assert model["id"] == model["spec"] == "model.py"
    assert model["passed"] is False
    assert model["context"]["parameters"] == 544
    record = next(r for r in data["records"] if r["status"] == "failed")
    assert (record["check"], record["case"], record["tier"]) == ("cased", "bad", 1)
    assert record["where"] == "head"
    assert record["numbers"]["value"] == 2.0
    assert record["message"].startswith("cased[bad] (tier 1): two must be one")
    assert len(data["records"]) == 5


def test_json_is_written_where_a_check_could_not_speak(project: pytest.Pytester) -> None:
    args = ("--tb-json=out.json", "model.py::tier3::learns")
    project.runpytest_inprocess(MODEL, *args)
    (record,) = json.loads((project.path / "out.json").read_text())["records"]
    assert record["status"] == "skipped"
    assert "--tb-train" in record["message"]


def test_json_that_no_file_can_have_is_a_usage_error(healthy: pytest.Pytester) -> None:
    result = healthy.runpytest_inprocess(MODEL, "--tb-json=" + "x" * 300)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--tb-json must name a file in a folder that is there*"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full")
def test_json_that_cannot_be_written_leaves_the_verdict(project: pytest.Pytester) -> None:
    for args, code in (((), 1), (("-k", "sound"), 0)):
        result = project.runpytest_inprocess(MODEL, "--tb-json=/dev/full", *args)
        assert result.ret == code
        result.stdout.fnmatch_lines(["--tb-json: the file could not be written: *No space*"])


def test_foreign_numbers_become_plain_ones(healthy: pytest.Pytester) -> None:
    conftest = healthy.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + """
import torch
@check(tier=1)
def odd(probe):
    return Measurement(value=float("nan"), notes=(torch.tensor(1.5), torch.float32))
"""
    )
    result = healthy.runpytest_inprocess(MODEL, "-k", "odd", "--tb-json=out.json")
    assert result.ret == pytest.ExitCode.OK
    (record,) = json.loads((healthy.path / "out.json").read_text())["records"]
    assert record["numbers"]["value"] == "nan"
    assert record["numbers"]["notes"] == ["tensor(1.5000)", "torch.float32"]


def test_junit_has_the_numbers_as_properties(project: pytest.Pytester) -> None:
    project.runpytest_inprocess(MODEL, "--junitxml=out.xml")
    cases = {
        c.get("name"): c for c in ElementTree.parse(project.path / "out.xml").iter("testcase")
    }
    assert set(cases) == {"cased[good]", "cased[bad]", "load", "sound", "unpromised"}
    values = {p.get("name"): p.get("value") for p in cases["sound"].iter("property")}
    assert values == {
        "status": "passed",
        "value": "0.25",
        "limit.value": "0.5",
        "limit.rule": "16 u",
    }
    failure = cases["cased[bad]"].find("failure")
    assert failure is not None
    assert failure.get("message", "").startswith("cased[bad] (tier 1): two must be one")
    assert cases["cased[bad]"].get("classname") == "model.tier1"
    assert next(cases["unpromised"].iter("skipped")).get("message") == "no cache"


def test_html_has_columns_and_escapes(project: pytest.Pytester) -> None:
    pytest.importorskip("pytest_html")
    project.makepyfile(test_own="def test_one(): pass")
    name = "a<b>&.py"
    (project.path / "model.py").rename(project.path / name)
    project.runpytest_inprocess(f"--tb-model={name}", "--html=out.html", "--self-contained-html")
    text = (project.path / "out.html").read_text(encoding="utf-8")
    for title in ("Measured", "Limit", "Margin", "Where"):
        assert f"<th>{title}</th>" in text
    assert "a&amp;lt;b&amp;gt;&amp;amp;.py" in text
    assert "0.5 = 16 u" in text
    assert "<td>a<b>" not in text


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["serial", "two workers"])
def test_html_has_figures_folded_and_the_models(
    healthy: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    pytest.importorskip("pytest_html")
    conftest = healthy.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + """
import dataclasses
@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn(Measurement):
    map: tuple = ((0.5, 1.0), (0.25, 0.0))

@check(tier=1)
def drawn(probe):
    return Drawn(notes=("as measured",))
"""
    )
    healthy.runpytest_subprocess(MODEL, *workers, "--html=out.html", "--self-contained-html")
    text = (healthy.path / "out.html").read_text(encoding="utf-8")
    rows = json.loads(html.unescape(re.findall('data-jsonblob="([^"]*)"', text)[0]))["tests"]
    (row,) = rows["model.py::tier1::drawn"]
    (extra,) = row["extras"]
    assert extra["format_type"] == "html"
    assert "<details><summary>1 figure, 1 note</summary>" in extra["content"]
    assert "map (2 x 2, largest 1)" in extra["content"]
    assert [row["log"] for row in rows["model.py::tier2::unpromised"]] == [""]
    assert "no cache</td>" in "".join(rows["model.py::tier2::unpromised"][0]["resultsTableRow"])
    assert "1 of 1 model passed" in text
    assert "<title" in text
    assert "Transformer validation" in text


def test_the_record_hook_is_called_once_a_check(healthy: pytest.Pytester) -> None:
    conftest = healthy.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + "\ndef pytest_tb_record(record): print('\\nheard', record.name, record.status)\n"
    )
    result = healthy.runpytest_inprocess(MODEL, "-s")
    heard = [line for line in result.outlines if line.startswith("heard")]
    assert heard == [
        "heard cased[good] passed",
        "heard cased[bad] passed",
        "heard load passed",
        "heard sound passed",
        "heard unpromised skipped",
    ]


def test_reports_grow_by_as_much_for_every_model(healthy: pytest.Pytester) -> None:
    text = (healthy.path / "model.py").read_text(encoding="utf-8")
    sizes = []
    for count in (2, 4, 6):
        names = [f"m{number}.py" for number in range(count)]
        for name in names:
            (healthy.path / name).write_text(text, encoding="utf-8")
        models = [f"--tb-model={name}" for name in names]
        reports = ("--html=out.html", "--self-contained-html", "--tb-json=out.json")
        healthy.runpytest_inprocess(*models, *reports)
        sizes.append([(healthy.path / f"out.{kind}").stat().st_size for kind in ("html", "json")])
    for few, some, many in zip(*sizes, strict=True):
        assert many - some == pytest.approx(some - few, rel=0.02)


class Kept:
    """What is there when a run has ended: items, reports by test, names of remembered sources."""

    items: list[pytest.Item]
    sources: set[str]

    def __init__(self) -> None:
        self.reports: dict[str, list[pytest.TestReport]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.setdefault(report.nodeid, []).append(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.items = session.items
        self.sources = set(linecache.cache)


@pytest.fixture
def kept(healthy: pytest.Pytester) -> Kept:
    model = (healthy.path / "model.py").read_text(encoding="utf-8")
    (healthy.path / "model.py").write_text(f"{model}\nprint('loud')\n", encoding="utf-8")
    conftest = (healthy.path / "conftest.py").read_text(encoding="utf-8")
    stacks = "import traceback\n@check(tier=1)\ndef stacked(probe): traceback.format_stack()\n"
    (healthy.path / "conftest.py").write_text(f"{conftest}\n{stacks}", encoding="utf-8")
    watch = Kept()
    assert healthy.inline_run(MODEL, plugins=[watch]).ret == 0
    assert len(watch.items) > 4
    return watch


def test_no_item_keeps_what_its_reports_have(kept: Kept) -> None:
    assert not any(RECORD in item.stash for item in kept.items)
    assert not any(item.user_properties for item in kept.items)
    assert not any(item._report_sections for item in kept.items)
    assert any("loud" in text for _, _, last in kept.reports.values() for _, text in last.sections)


def test_reports_of_a_test_share_what_is_the_same(kept: Kept) -> None:
    for first, call, last in kept.reports.values():
        assert first.keywords is call.keywords is last.keywords
        assert call.user_properties is last.user_properties
        assert dict(call.user_properties)["status"] in {"passed", "skipped"}
    contexts = [vars(call)["tb_record"]["context"] for _, call, _ in kept.reports.values()]
    assert contexts[0]
    assert all(context is contexts[0] for context in contexts)


def test_sources_of_models_and_checks_are_not_kept(kept: Kept, healthy: pytest.Pytester) -> None:
    assert any(name.endswith("runner.py") for name in kept.sources), "a stack was formatted"
    own = (f"{healthy.path}/model.py", "model.py::")
    assert not [name for name in kept.sources if name.startswith(own)]


def test_no_fixture_is_remembered_until_the_run_ends(healthy: pytest.Pytester) -> None:
    healthy.makepyfile("""
        def test_names(tb_batch, tb_probe, tb_trainer, request):
            # pytest keeps every user of this one, whose scope is the run
            assert "pytestconfig" not in request.fixturenames
    """)
    result = healthy.runpytest_inprocess(MODEL, "-k", "test_names")
    assert result.parseoutcomes()["passed"] == 1
