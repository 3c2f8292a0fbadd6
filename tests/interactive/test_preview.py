"""What a notebook asks before it runs a model: which one, its code, what it lacks."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate.errors import SpecError
from pytest_transformer_validate.interactive import preview
from pytest_transformer_validate.notebook import choose_model, example, open_model
from tests.interactive.conftest import MODEL

if TYPE_CHECKING:
    from pathlib import Path

    from gisthost import Host

TOKEN = "ghp_" + "x" * 36
ONE, TWO, THREE = "a" * 32, "b" * 20, "c" * 32


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GIST_ID", raising=False)
    monkeypatch.chdir(tmp_path)


def in_colab(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """A stand-in for Colab's way to the page, which only Colab has."""

    def eval_js(script: str, timeout_sec: float) -> str:
        assert script == preview.ADDRESS
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    for name in ("google", "google.colab", "google.colab.output"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    vars(sys.modules["google.colab.output"])["eval_js"] = eval_js


def test_without_a_name_it_is_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_model("  ") == example()
    assert capsys.readouterr().out.startswith("NO MODEL WAS NAMED: this is the example")
    assert {path.name for path in open_model(example()).files} == {"model.py", "config.json"}


def test_the_page_comes_first_then_the_environment_then_the_form(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose_model(TWO) == f"gist:{TWO}"
    assert "(from the form)" in capsys.readouterr().out
    monkeypatch.setenv("GIST_ID", THREE)
    assert choose_model(TWO) == f"gist:{THREE}"
    said = capsys.readouterr().out
    assert f"model: gist:{THREE} (from GIST_ID in the environment)" in said
    assert f"not in force: gist:{TWO} (from the form)" in said
    in_colab(monkeypatch, f"https://colab.example/x.ipynb#gist_id={ONE}&name=CustomTransformer")
    assert choose_model(f"https://gist.github.com/me/{ONE}") == f"gist:{ONE}::CustomTransformer"
    said = capsys.readouterr().out
    assert "from the address of this page" in said
    assert said.count("not in force") == 2


@pytest.mark.parametrize("answer", ["", RuntimeError("no Javascript")])
def test_a_page_that_does_not_tell_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: Any
) -> None:
    in_colab(monkeypatch, answer)
    assert choose_model(TWO) == f"gist:{TWO}"
    assert ("could not be read: RuntimeError" in capsys.readouterr().out) is bool(answer)


@pytest.mark.parametrize(
    "form", ["gist:12", "nowhere.py", f"https://x.example/#gist_id={ONE[:9]}"]
)
def test_a_form_that_names_nothing_says_so(form: str) -> None:
    with pytest.raises(SpecError):
        choose_model(form)


def test_the_same_one_named_twice_is_no_conflict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GIST_ID", ONE)
    choose_model(f"gist:{ONE.upper()}")
    assert "not in force" not in capsys.readouterr().out


def test_what_a_model_lacks_is_named_without_running_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "layers.py").write_text("import no_such_thing\n")
    (folder / "model.py").write_text("import layers, sklearn_x\nfrom cv2 import x\n1 / 0\n")
    (tmp_path / "cv2.py").write_text("")
    assert open_model("export").missing() == [
        "no_such_thing", "sklearn_x", "opencv-python-headless",
    ]  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].strip() == ("%pip install no_such_thing sklearn_x opencv-python-headless")
    model = tmp_path / "model.py"
    model.write_text(MODEL)
    assert open_model("model.py").missing() == []
    assert open_model("model.py").options() == "--tb-model=model.py"
    (tmp_path / "a b.py").write_text(MODEL)
    assert open_model("a b.py").options() == "'--tb-model=a b.py'"


def test_the_code_is_shown_without_credentials_and_tricks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from IPython import display

    shown: list[Any] = []
    monkeypatch.setattr(display, "display", shown.append)
    (tmp_path / "model.py").write_text(f"{MODEL}# {TOKEN} \u202eback\u202c <script>\n")
    open_model("model.py").show()
    [code] = shown
    for text in (code._repr_html_(), code._repr_latex_(), str(code.data)):
        assert TOKEN not in text
        assert "\u202e" not in text
    assert "<script" not in code._repr_html_()
    assert "Embedding" in code._repr_html_()


def test_an_import_path_is_found_without_importing_it(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("1 / 0\n")
    (tmp_path / "mine" / "nets.py").write_text("import no_such_thing\n")
    model = open_model("mine.nets:Net")
    assert model.files == (tmp_path / "mine" / "nets.py",)
    assert model.missing() == ["no_such_thing"]
    with pytest.raises(SpecError, match="no module 'mine.other'"):
        open_model("mine.other:Net")


def test_a_gist_is_read_and_not_run(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GITHUB_API_URL", host.url)
    host.serve({"model.py": "1 / 0\nimport no_such_thing\n", "read.me": "hello"})
    model = open_model(f"gist:{host.gist_id}")
    assert model.spec == f"gist:{host.gist_id}@{'a1' * 20}"
    assert [path.name for path in model.files] == ["model.py"]
    assert model.missing() == ["no_such_thing"]
    assert model.sha256 not in model.options()
    assert model.options(accepted=True).endswith(f" --tb-trust={model.sha256}")
    assert not (tmp_path / "tb.lock").exists()
    with pytest.raises(SpecError, match="nobody has accepted"):
        model.load()
    with pytest.raises(ZeroDivisionError):
        model.load(accepted=True)


def test_the_script_finds_the_address_in_a_browser(tmp_path: Path) -> None:
    """What Colab's page is asked, asked of a real page."""
    import subprocess

    from tests.real import program

    browser = program("chromium", "chromium-browser", "google-chrome")
    page = tmp_path / "page.html"
    page.write_text(f"<body></body><script>document.body.textContent = {preview.ADDRESS}</script>")
    for fragment, found in ((f"#gist_id={ONE}&name=Net", True), ("#other=1", False)):
        words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        words += [f"--user-data-dir={tmp_path / 'profile'}", f"{page.as_uri()}{fragment}"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
        body = done.stdout.partition("<body>")[2].partition("<script>")[0]
        assert (f"gist_id={ONE}" in body) is found, done.stdout + done.stderr
