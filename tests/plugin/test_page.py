"""The page of pytest-html as a person sees it, in a browser: light and dark, folded, filtered."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
import time
from itertools import chain, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.real import program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXAMPLE = Path(__file__).parents[2] / "examples" / "gpt" / "model.py"
ROWS = 1500
FIGURES = {
    "parameter_initialization": "loss on random labels before training",
    "gradient_flow": "gradient norm of each block, first to last",
    "causality": "how far each position (across) moves when a token (down) is replaced",
    "memory_footprint": "bytes kept for a backward, by length",
    "inference_speed": "ms of the fastest forward, by length",
    "layer_effect": "activation scale after each layer, over that before the first",
    "token_perturbation": "how far the output moves when a token is changed, by position",
    "attribution": "attribution of the output to each token",
    "attention_patterns": "attention map: blocks.0.attn",
}
HOSTILE = """
import os, sys
from pytest_transformer_validate.errors import CheckFailed, NotApplicable

BAD = '</details></td><img src=x onerror="window.owned=1"><script>window.owned=2</script>'
LATE = "]]>{{7*7}}" + BAD + "\\x1b[2J&lt;script&gt;window.owned=3&lt;/script&gt;"

@check(tier=1)
def hostile(probe):
    print(BAD)
    print(LATE, file=sys.stderr)
    numbers = {"notes": (BAD, LATE), "value": 2.0, "limit": Limit(value=1.0, rule=BAD)}
    raise CheckFailed(BAD + "\\n" + LATE, Odd(**numbers), where=BAD)

@check(tier=1)
def passing(probe):
    return Odd(notes=(BAD,), value=1.0)

@check(tier=1)
def skipping(probe):
    raise NotApplicable(BAD)

import dataclasses
@dataclasses.dataclass(frozen=True, kw_only=True)
class Odd(Measurement):
    text: str = BAD
    bars: dict = dataclasses.field(default_factory=lambda: {BAD: 1.0, LATE: 2.0})
    map: tuple = ((0.5, 1.0), (0.25, 0.0))
"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One browser for all tests of the process."""
    binary = program("chromium", "chromium-browser", "google-chrome")
    service = program("chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for word in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--disable-quic", "--window-size=1280,900",
    ):  # fmt: skip
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
    yield driver
    driver.quit()


@pytest.fixture
def seen(browser: Any) -> Callable[..., Any]:
    """Opens a page, light or dark, and gives a function that runs JavaScript in it."""

    def open_page(path: Path, scheme: str = "light") -> Callable[[str], Any]:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get(path.as_uri())
        browser.execute_script("sessionStorage.clear()")
        browser.get(path.as_uri())
        return lambda code: browser.execute_script(f"return {code}")

    return open_page


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of tier 1, and of what else has figures, on a healthy model, from two workers."""
    folder = tmp_path_factory.mktemp("real")
    shutil.copytree(EXAMPLE.parent, folder / "a")
    words = ["--tb-model=a/model.py", "-n2", "--html=out.html", "-k"]
    words.append(" or ".join(["tier1", *FIGURES]))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return folder / "out.html"


def results(run: Callable[[str], Any]) -> list[str]:
    """The outcome of every row, from above."""
    code = '[...document.querySelectorAll("#results-table .col-result")].map(e => e.innerText)'
    return run(code)


def test_the_head_says_what_each_model_is_and_what_became_of_it(
    project: pytest.Pytester, seen: Any
) -> None:
    shutil.copy(project.path / "model.py", project.path / "other.py")
    models = ("--tb-model=model.py", "--tb-model=other.py")
    project.runpytest_inprocess(*models, "--html=out.html", "--self-contained-html")
    run = seen(project.path / "out.html")
    assert run("document.title") == run('document.querySelector("h1").innerText')
    assert run('document.querySelector(".tb-verdict").innerText') == "0 of 2 models passed"
    rows = run('[...document.querySelectorAll(".tb-models tr")].map(r => r.innerText)')
    assert rows[1].split("\t") == [
        "model.py",
        "1 failed, 3 passed",
        "1 skipped",
        "causal_lm (assumed; declare with --tb-task)",
        "544",
        "model.py; weights random (seed 0)",
        "cpu, float32, seed 0",
    ]
    assert rows[2].strip() == "fails: cased[bad] at head"


def test_nothing_of_a_model_runs(project: pytest.Pytester, seen: Any, browser: Any) -> None:
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text(encoding="utf-8") + HOSTILE, encoding="utf-8")
    project.runpytest_inprocess("--tb-model=model.py", "--html=out.html", "--self-contained-html")
    browser.get_log("browser")
    run = seen(project.path / "out.html")
    run('document.getElementById("show_all_details").click()')
    run('document.querySelectorAll("details").forEach(e => { e.open = true })')
    time.sleep(0.2)  # an image that is not there says so a little later
    assert run("window.owned") is None
    assert browser.get_log("browser") == []
    assert run('document.querySelectorAll("[onerror], td script, .tb-details img").length') == 0
    shown = run('document.getElementById("results-table").innerText')
    assert shown.count('<img src=x onerror="window.owned=1">') > 10, "it is there, as text"
    assert "\x1b" not in shown
    ids = run('[...document.querySelectorAll("[id]")].map(e => e.id)')
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[\w.:\[\]/-]+", each) for each in ids), ids


def test_failures_are_first_open_and_their_figures_folded(
    project: pytest.Pytester, seen: Any
) -> None:
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text(encoding="utf-8") + HOSTILE, encoding="utf-8")
    project.runpytest_inprocess("--tb-model=model.py", "--html=out.html")
    run = seen(project.path / "out.html")
    assert results(run) == ["Failed"] * 2 + ["Skipped"] * 2 + ["Passed"] * 4
    hidden = '[...document.querySelectorAll("#results-table .extras-row")]'
    folded = run(f"{hidden}.map(e => e.offsetHeight == 0)")
    assert folded == [False] * 2 + [True] * 6
    svg = 'document.querySelector("tbody.failed svg")'
    visible = f"{svg}.checkVisibility()"
    assert not run(visible)
    run('document.querySelector("tbody.failed summary").click()')
    assert run(visible)
    assert run(f"{svg}.getBoundingClientRect().width") > 100
    run('document.querySelector("tbody.passed .tb-number").click()')
    assert run(f"{hidden}.filter(e => e.offsetHeight > 0).length") == 3


def test_rows_are_filtered_by_their_outcome(project: pytest.Pytester, seen: Any) -> None:
    project.runpytest_inprocess("--tb-model=model.py", "--html=out.html", "--self-contained-html")
    run = seen(project.path / "out.html")
    every = results(run)
    passed = "document.querySelector('input[data-test-result=\"passed\"]').click()"
    run(passed)
    assert results(run) == ["Failed", "Skipped"]
    run(passed)
    assert sorted(results(run)) == sorted(every)
    assert results(run)[0] == "Failed"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(
    project: pytest.Pytester, seen: Any, scheme: str
) -> None:
    project.runpytest_inprocess("--tb-model=model.py", "--html=out.html", "--self-contained-html")
    run = seen(project.path / "out.html", scheme)
    run('document.getElementById("show_all_details").click()')
    page = luminance(run("getComputedStyle(document.body).backgroundColor"))
    assert (page > 0.5) is (scheme == "light")
    pairs = run(
        """[...document.querySelectorAll("body *")].filter(e => e.checkVisibility()
        && [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())).map(e => {
            let b = e
            while (b.parentElement && getComputedStyle(b).backgroundColor == "rgba(0, 0, 0, 0)")
                b = b.parentElement
            return [e.outerHTML.slice(0, 80), getComputedStyle(e).color,
                    getComputedStyle(b).backgroundColor]
        })"""
    )
    assert len(pairs) > 40
    pale = [(what, ink, behind) for what, ink, behind in pairs if contrast(ink, behind) < 4.5]
    assert pale == []


def test_a_healthy_model_has_its_figures(real: Path, seen: Any) -> None:
    run = seen(real)
    assert run('document.querySelector(".tb-verdict").innerText') == "1 of 1 model passed"
    captions = run(
        """Object.fromEntries([...document.querySelectorAll("#results-table > tbody")].map(b =>
        [b.querySelector(".col-testId").textContent.split("::").pop(),
         [...b.querySelectorAll("figcaption")].map(c => c.textContent)]))"""
    )
    missing = {
        check: caption
        for check, caption in FIGURES.items()
        if not any(shown.startswith(caption) for shown in captions[check])
    }
    assert missing == {}
    sizes = run('[...document.querySelectorAll("svg")].map(s => s.outerHTML.length)')
    assert max(sizes) < 40_000


def test_a_page_of_1500_rows_opens_quickly(real: Path, browser: Any) -> None:
    text = real.read_text(encoding="utf-8")
    (blob,) = re.findall('data-jsonblob="([^"]*)"', text)
    data = json.loads(html.unescape(blob))
    rows = islice(cycle(chain.from_iterable(data["tests"].values())), ROWS)
    data["tests"] = {f"m{n}": [row] for n, row in enumerate(rows)}
    large = real.with_name("large.html")
    large.write_text(text.replace(blob, html.escape(json.dumps(data))), encoding="utf-8")
    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    browser.get(large.as_uri())
    browser.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    (took,) = [each["value"] for each in metrics if each["name"] == "TaskDuration"]
    assert browser.execute_script('return document.querySelectorAll(".col-result").length') == ROWS
    assert took < 3, "seconds of the page's thread, whatever else the machine does"


def contrast(first: str, second: str) -> float:
    """Of two colours, as WCAG counts it: 1 to 21."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    """Of ``rgb(r, g, b)``; what is transparent to the end is the browser's white."""
    red, green, blue, *alpha = map(float, re.findall(r"[\d.]+", color))
    if alpha == [0.0]:
        return 1.0
    parts = [c / 255 for c in (red, green, blue)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
