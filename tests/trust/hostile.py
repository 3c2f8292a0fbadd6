"""A project whose models plant credentials and markup in every text that a report may show.

Credentials are put together at run time: in the model's source stand the pieces only where the
source itself is no needle.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from pytest_transformer_validate.report import inline, matrix
from pytest_transformer_validate.report.json import read
from tests.credentials import HEX, MIXED, PEM, PEM_END

if TYPE_CHECKING:
    from pathlib import Path

MARK = "N33dle"


def token(place: str) -> str:
    """A Hugging Face token that tells where it was planted."""
    return "hf_" + (place + MARK + MIXED)[:40]


VARIABLES = {
    "MY_SERVICE_TOKEN": "a-service-" + MARK + "-of-mine",
    "WANDB_API_KEY": HEX,
    "AWS_SESSION_NAME": "two\nlines " + MARK,
    "DEPLOY_KEY": PEM + PEM_END,
}
PLACES = ["environment", "docstring", "exception", "print", "error", "log", "config", "class"]
PLACES += ["parameter", "path", "warning", "source", "local", "module", "repr", "key", "assert"]
USERINFO = "somebody:" + MARK + "-password"
# What may stand nowhere in a report.
NEEDLES = [MARK, HEX, MIXED[4:30]]

MARKUP = "<script>alert(1)</script>"
BREAKOUT = "</script><img src=x onerror=alert(1)>"
RAW = ["\x1b[2J", "\x1b]0;title\x07", "\x07", "\u202e", "\x00", "\x9b"]

MODEL = '''
"""Of the module: {docstring}"""
import json, logging, os, sys, warnings
import torch

PLANTED = json.load(open(os.environ["PLANTED"]))
RAW = PLANTED["raw"]

def forward(self, input_ids):
    """Of the forward: {docstring}"""
    local = PLANTED["local"]
    print(PLANTED["print"], os.environ.get("MY_SERVICE_TOKEN"), os.environ.get("DEPLOY_KEY"), RAW)
    print(PLANTED["error"], os.environ.get("AWS_SESSION_NAME"), RAW, file=sys.stderr)
    logging.getLogger("model").warning("%s %s", PLANTED["log"], RAW)
    warnings.warn("https://" + PLANTED["userinfo"] + "@host " + PLANTED["warning"] + RAW)
    if input_ids is None:
        raise type("Error" + PLANTED["class"] + RAW, (Exception,), {{}})(
            PLANTED["exception"] + os.environ.get("WANDB_API_KEY", "") + RAW
        )
    if isinstance(input_ids, str):
        raise ValueError("{source}")
    return self.head(self.embed(input_ids))

def __init__(self):
    torch.nn.Module.__init__(self)
    self.embed = torch.nn.Embedding(32, 8)
    self.head = torch.nn.Linear(8, 32)
    self.register_parameter(PLANTED["parameter"], torch.nn.Parameter(torch.zeros(2)))
    self.add_module(PLANTED["module"] + PLANTED["markup"], torch.nn.Linear(1, 1))

def __repr__(self):
    return PLANTED["repr"] + RAW

name = "Net" + PLANTED["class"] + PLANTED["markup"] + RAW.replace(chr(0), "") + "x" * 3000
Model = type(name, (torch.nn.Module,), {{"__init__": __init__, "forward": forward,
             "__repr__": __repr__, "__doc__": PLANTED["docstring"] + RAW}})
'''

CHECKS = """
@check(tier=1)
def raises(probe):
    return probe.subject.model(None)

@check(tier=1)
def quotes(probe):
    return probe.subject.model("text")

@check(tier=1)
def names(probe):
    model = probe.subject.model
    named = {name: float(p.sum()) for name, p in model.named_parameters()}
    text = " ".join([type(model).__name__, repr(model), type(model).__doc__, *named])
    raise CheckFailed(text, Told(value=1.0, told=named, text=text), where=list(named)[-1])

@check(tier=1)
def shrugs(probe):
    model = probe.subject.model
    raise NotApplicable(" ".join([repr(model), *dict(model.named_parameters())]))

from dataclasses import dataclass, field

@dataclass(frozen=True, kw_only=True)
class Told(Measurement):
    told: dict = field(default_factory=dict)
    text: str = ""
"""

TESTS = """
import os, pytest

def test_with_model(tb_model):
    print(tb_model, type(tb_model).__name__)
    tb_model(None)

def test_with_model_says(tb_model):
    assert str(tb_model) == "", type(tb_model).__doc__

def test_of_their_own():
    print("\\x1b[31mcolour stays\\x1b[0m", os.environ["MY_SERVICE_TOKEN"])
    assert os.environ["WANDB_API_KEY"] == "another"

@pytest.fixture
def fails(): raise ValueError(os.environ["WANDB_API_KEY"])

def test_of_their_own_with_a_fixture(fails): pass
"""


@dataclass(frozen=True)
class Seen:
    """What one run left behind, by sink."""

    code: int
    sinks: dict[str, str]
    junit: ElementTree.Element
    records: list[dict[str, object]]


def write_project(folder: Path, checks: str) -> list[str]:
    """Write the project; the arguments that name its models."""
    planted = {place: token(place) for place in PLACES}
    planted |= {"userinfo": USERINFO, "raw": "".join(RAW) + BREAKOUT, "markup": MARKUP}
    (folder / "planted.json").write_text(json.dumps(planted))
    home = folder / token("path")
    broken = folder / "broken"
    for place in (home, broken):
        place.mkdir()
        text = MODEL.format(docstring=token("docstring"), source=token("source"))
        (place / "model.py").write_text(text)
    config = {"vocab_size": token("config"), token("key"): MARKUP, "expect_fail": token("config")}
    (broken / "config.json").write_text(json.dumps(config))
    (folder / "conftest.py").write_text(checks + CHECKS)
    (folder / "test_own.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "old.json").write_text(json.dumps(_older_run()))
    return [f"--tb-model={home.name}/model.py", "--tb-model=broken/model.py"]


def _older_run() -> dict[str, object]:
    """A file of --tb-json that somebody else wrote: a check passed, and much was otherwise."""
    text = f"{token('baseline')} {MARKUP}{''.join(RAW)}"
    record = {"model": "broken/model.py", "tier": 1, "check": "load", "case": None, "where": None}
    record |= {"status": "passed", "message": "", "numbers": {}, "seconds": 0.1}
    return {
        "schema_version": 1,
        "run": {"python": text, "machine": text, "packages": {"torch": text}},
        "models": [],
        "records": [
            {**record, "check": "raises", "context": {"weights": text}},
            {**record, "check": text, "context": {}},
        ],
    }


def run(folder: Path, checks: str, *args: str) -> Seen:
    """Run pytest on the project, with every report."""
    models = write_project(folder, checks)
    reports = ["--junitxml=junit.xml", "--html=page.html", "--self-contained-html"]
    reports += ["--tb-baseline=old.json"]
    known = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    known |= VARIABLES | {"PLANTED": str(folder / "planted.json"), "OMP_NUM_THREADS": "1"}
    known |= {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(folder / "summary.md")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *models, "--tb-json=records.json", *reports, *args],
        cwd=folder,
        env=known,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=120,
        check=False,
    )
    files = ("junit.xml", "records.json", "summary.md", "page.html")
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in files}
    stored = read(folder / "records.json")
    return Seen(
        code=done.returncode,
        sinks={
            "stdout": done.stdout,
            "stderr": done.stderr,
            "merged.html": matrix.html_page([("records.json", stored)]),
            "merged.md": matrix.markdown_page([("records.json", stored)]),
            "notebook": inline.page(stored.records, "1 failed"),
            **texts,
        },
        junit=ElementTree.fromstring(texts["junit.xml"]),
        records=json.loads(texts["records.json"])["records"],
    )
