from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_transformer_validate.errors import SpecError
from pytest_transformer_validate.sources.dotted import DottedSource
from pytest_transformer_validate.sources.file import FileSource
from pytest_transformer_validate.sources.folder import FolderSource
from pytest_transformer_validate.sources.hub.source import HubSource
from pytest_transformer_validate.sources.huggingface import HuggingFaceSource
from pytest_transformer_validate.sources.parse import parse


def parse_in(folder, spec, rootdir=None):
    return parse(spec, rootdir=rootdir or folder, cwd=folder)


def test_parsing_imports_neither_torch_nor_transformers():
    program = """if 1:
        import sys, pathlib
        from pytest_transformer_validate.sources.parse import parse
        here = pathlib.Path.cwd()
        for spec in ("m.py", "m.py::Net", "export", "hub", "torch.nn:Linear", "missing.x:y"):
            parse(spec, rootdir=here, cwd=here)
        assert not {"torch", "transformers", "numpy", "m"} & set(sys.modules)
    """
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "m.py").write_text("raise SystemExit(1)")
        (folder / "export").mkdir()
        (folder / "export/model.py").write_text("raise SystemExit(1)")
        (folder / "hub").mkdir()
        (folder / "hub/config.json").write_text('{"model_type": "gpt2"}')
        subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=folder, check=True)


@pytest.mark.parametrize(
    ("spec", "id"),
    [
        ("model.py", "model.py"),
        ("./model.py", "model.py"),
        ("runs/../model.py", "model.py"),
        ("runs/a b[é]/model.py::Net", "runs/a b[é]/model.py::Net"),
        ("runs/a b[é]/", "runs/a b[é]"),
        ("runs/a b[é]::Net", "runs/a b[é]::Net"),
        ("odd::name.py", "odd::name.py"),
    ],
)
def test_ids_are_relative_to_the_root_directory(tmp_path, write, spec, id):
    write("model.py", "")
    write("odd::name.py", "")
    write("runs/a b[é]/model.py", "")
    assert parse_in(tmp_path, spec).short == id


def test_a_path_is_relative_to_the_working_directory(tmp_path, write):
    path = write("sub/model.py", "")
    source = parse("model.py", rootdir=tmp_path, cwd=tmp_path / "sub")
    assert isinstance(source, FileSource)
    assert (source.id, source.path) == ("sub/model.py", path)
    assert parse_in(tmp_path / "sub", str(path), rootdir=tmp_path).id == "sub/model.py"


def test_outside_the_root_directory_an_id_goes_up(tmp_path, write):
    path = write("other/model.py", "")
    root = tmp_path / "project"
    root.mkdir()
    assert parse_in(root, "../other/model.py").id == "../other/model.py"
    assert parse_in(root, str(path)).id == "../other/model.py"


def test_without_a_common_folder_an_id_is_absolute(tmp_path, write):
    path = write("model.py", "")
    assert parse(str(path), rootdir=Path("/nowhere/x"), cwd=tmp_path).id == path.as_posix()


def test_the_root_directory_itself_is_no_dot(tmp_path, write):
    write("model.py", "")
    assert parse_in(tmp_path, ".").id == f"../{tmp_path.name}"


def test_a_link_below_the_root_directory_is_seen_through(tmp_path, write):
    write("real/model.py", "")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    source = parse(str(tmp_path / "link/model.py"), rootdir=tmp_path / "real", cwd=tmp_path)
    assert source.id == "model.py"


def test_kinds_of_folders(tmp_path, write):
    write("export/model.py", "")
    write("export/config.json", {"architectures": ["X"]})
    write("named/config.json", {"architectures": ["X"]})
    write("typed/config.json", {"model_type": "gpt2"})
    write("half/config.json", {"vocab_size": 3})
    write("broken/config.json", "{")
    kinds = {name: type(parse_in(tmp_path, name)) for name in ("export", "named", "typed")}
    assert kinds == {
        "export": FolderSource,
        "named": HuggingFaceSource,
        "typed": HuggingFaceSource,
    }
    assert isinstance(parse_in(tmp_path, "half"), FolderSource)
    assert isinstance(parse_in(tmp_path, "broken"), FolderSource)


def test_an_import_path(tmp_path):
    source = parse_in(tmp_path, "pkg.sub_module:Outer.build")
    assert isinstance(source, DottedSource)
    assert (source.id, source.module, source.attribute) == (
        "pkg.sub_module:Outer.build",
        "pkg.sub_module",
        "Outer.build",
    )


def test_a_module_named_like_a_scheme_is_a_module_where_there_is_one(tmp_path, write):
    write("hist.py", "")
    write("data.py", "")
    assert isinstance(parse_in(tmp_path, "hist:Net"), DottedSource)
    assert isinstance(parse_in(tmp_path, "data:Net"), DottedSource)


def test_a_missing_path_names_what_is_near(tmp_path, write):
    write("model.py", "")
    with pytest.raises(SpecError) as caught:
        parse_in(tmp_path, "modl.py::Net")
    text = str(caught.value)
    assert "modl.py" in text
    assert str(tmp_path) in text
    assert "did you mean model.py" in text


def test_a_missing_folder_names_its_sibling(tmp_path, write):
    write("runs/a/model.py", "")
    with pytest.raises(SpecError, match="did you mean runs"):
        parse_in(tmp_path, "rusn/a/model.py")


@pytest.mark.parametrize("spec", ["C:\\x\\model.py", "C:/x/model.py"])
def test_a_drive_is_no_module(tmp_path, spec):
    with pytest.raises(SpecError, match="does not exist"):
        parse_in(tmp_path, spec)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("ftp:x", "unknown scheme 'ftp'"),
        ("gits:abc", "did you mean gist"),
        ("gits:", "did you mean gist"),
        ("https://example.org/model.py", "unknown scheme 'https'"),
        ("git+ssh://host/x", "unknown scheme"),
        ("pkg.module:", "neither a path nor"),
        ("pkg.module:a-b", "neither a path nor"),
        ("nosuch", "does not exist"),
        ("a\nb.py", "control characters"),
        ("a\0b.py", "control characters"),
    ],
)
def test_what_is_no_spec_gets_the_grammar(tmp_path, spec, text):
    with pytest.raises(SpecError) as caught:
        parse_in(tmp_path, spec)
    message = str(caught.value)
    assert text in message
    assert message.count("--tb-model=") >= 4
    assert len(message.splitlines()) <= 12


@pytest.mark.parametrize("spec", ["hf:org/name", "HF:org/name@main"])
def test_models_of_the_hub(tmp_path, spec):
    source = parse(spec, rootdir=tmp_path, cwd=tmp_path)
    assert isinstance(source, HubSource)
    assert (source.spec, source.id) == (spec, f"hf:{spec[3:]}")
    assert source.fetched


@pytest.mark.parametrize("page", ["https://huggingface.co/org/name", "http://HF.co/org/name/tree"])
def test_a_page_of_the_hub_is_named_by_its_model(tmp_path, page):
    with pytest.raises(SpecError, match="is named by --tb-model=hf:org/name"):
        parse(page, rootdir=tmp_path, cwd=tmp_path)


def test_a_folder_with_code_beside_its_config(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/config.json").write_text('{"auto_map": {"AutoModel": "modeling.Net"}}')
    assert isinstance(parse("a", rootdir=tmp_path, cwd=tmp_path), HuggingFaceSource)


def test_a_folder_without_a_model_says_what_was_looked_for(tmp_path, write):
    write("runs/net.py", "")
    with pytest.raises(SpecError) as caught:
        parse_in(tmp_path, "runs")
    for word in ("model.py", "config.json", "architectures", "--tb-model=runs/net.py"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "name the folder"),
        ("net.ipynb", "export the notebook"),
        ("net.pt", "--tb-weights"),
        ("net.txt", "ends in .py"),
    ],
)
def test_other_files_are_no_model(tmp_path, write, name, text):
    write(name, "")
    with pytest.raises(SpecError, match=text):
        parse_in(tmp_path, name)


def test_a_class_is_an_identifier(tmp_path, write):
    write("model.py", "")
    with pytest.raises(SpecError, match="class of the file"):
        parse_in(tmp_path, "model.py::my net")


def test_a_hugging_face_directory_takes_no_class(tmp_path, write):
    write("hub/config.json", {"model_type": "gpt2"})
    with pytest.raises(SpecError, match="architectures"):
        parse_in(tmp_path, "hub::Net")


def test_the_id_of_a_check_is_no_model(tmp_path, write):
    write("a/model.py", "")
    with pytest.raises(SpecError, match=r"--tb-model=a/model.py 'a/model.py::tier1::padding'"):
        parse_in(tmp_path, "a/model.py::tier1::padding")


def test_names_too_long_for_the_system_are_missing(tmp_path):
    with pytest.raises(SpecError, match="does not exist") as caught:
        parse_in(tmp_path, "x" * 5000 + ".py")
    assert len(str(caught.value)) < 1000
