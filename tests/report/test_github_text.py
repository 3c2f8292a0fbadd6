"""What a model says is no command of GitHub's and no markup of a summary."""

from __future__ import annotations

from pytest_transformer_validate.report import github
from pytest_transformer_validate.report.record import Record

TOKEN = "ghp_" + "x" * 36
HOSTILE = f"a\r\n::set-env name=X::y\n</details><script>| ``` {TOKEN}\x1b[2J"


def failure(check: str, message: str = HOSTILE, model: str = "m.py") -> Record:
    return Record(model=model, tier=1, check=check, status="failed", message=message)


def test_an_annotation_is_one_line() -> None:
    (command,) = github.commands([failure("a,b:c", model="m::n")], {"m::n": ("d,e.py", 3)})
    head = "::error file=d%2Ce.py,line=3,title=m%3A%3An%3A a%2Cb%3Ac (tier 1)::a%0A\\x3a:set-env"
    assert command.startswith(head)
    assert len(command.splitlines()) == 1
    assert "\x1b" not in command
    assert TOKEN not in command


def test_there_are_no_more_annotations_than_are_shown() -> None:
    records = [failure(f"c{index}") for index in range(30)]
    assert len(list(github.commands(records, {}))) == 10


def test_a_text_cannot_leave_its_block() -> None:
    text = github.summary([failure("a")], ["a <b> | remark"])
    block = text[text.index("````text") : text.rindex("````")]
    assert "</details><script>| ```" in block
    assert text.count("</details><script>") == 1
    assert r"a \<b\> \| remark" in text
    assert TOKEN not in text


def test_a_summary_is_no_larger_than_github_takes() -> None:
    records = [failure(f"c{index}", "x" * 10_000) for index in range(200)]
    text = github.summary(records)
    assert len(text.encode()) < 2**20
    left = 200 - text.count("<details>")
    assert text.endswith(f"and {left} more failures\n")
