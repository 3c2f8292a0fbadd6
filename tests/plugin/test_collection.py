"""Which checks are collected, under which ids, and how pytest's own selection meets them."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from pytest_transformer_validate.sources.base import node_id

if TYPE_CHECKING:
    from pathlib import Path

BAD = "model.py::tier1::cased[bad]"
ALL = [
    "model.py::tier1::cased[good]",
    BAD,
    "model.py::tier1::load",
    "model.py::tier1::sound",
    "model.py::tier2::unpromised",
]


def listed(project: pytest.Pytester, *args: str | Path) -> list[str]:
    """The ids that pytest would run."""
    result = project.runpytest_inprocess("--co", "-q", *args)
    assert result.ret in (0, 5), result.stdout.str() + result.stderr.str()
    return [line for line in result.outlines if "::" in line]


def test_every_check_is_an_item(project: pytest.Pytester) -> None:
    assert listed(project, "--tb-model=model.py") == ALL


def test_the_tree_is_a_file_with_a_module_a_tier(project: pytest.Pytester) -> None:
    result = project.runpytest_inprocess("--co", "-v", "--tb-model=model.py")
    result.stdout.fnmatch_lines(
        [
            "<ModelFile model.py>",
            "  <Tier tier1>",
            "    <CheckItem cased?good?>",
            "*One case holds*",
        ]
    )


def test_collecting_imports_no_torch_and_runs_no_model_code(project: pytest.Pytester) -> None:
    project.makepyfile(model="raise SystemExit('the model was run')")
    project.makepyfile(
        spy="import sys\ndef pytest_unconfigure():\n    print('torch', 'torch' in sys.modules)"
    )
    result = project.runpytest_subprocess("-p", "spy", "--co", "-q", "--tb-model=model.py")
    assert result.ret == 0
    result.stdout.fnmatch_lines([ALL[0], "torch False"])


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("model.py", ALL),
        ("model.py::tier1", ALL[:4]),
        ("model.py::tier2", ALL[4:]),
        ("model.py::tier1::load", ["model.py::tier1::load"]),
        ("model.py::tier1::cased", ALL[:2]),
        ("model.py::tier1::cased[bad]", [BAD]),
    ],
)
def test_every_id_can_be_typed(project: pytest.Pytester, typed: str, expected: list[str]) -> None:
    assert listed(project, "--tb-model=model.py", typed) == expected


def test_typed_ids_add_up(project: pytest.Pytester) -> None:
    typed = ["model.py::tier2", "model.py::tier1::load", "model.py::tier1::load"]
    assert listed(project, "--tb-model=model.py", *typed) == [ALL[2], ALL[4]]


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("model.py::tier9", "*did you mean model.py::tier*"),
        ("model.py::tier1::lode", "*did you mean model.py::tier1::load?*"),
        ("model.py::tier1::cased[ugly]", "*not found: model.py::tier1::cased*"),
        ("model.py::", None),
    ],
)
def test_an_id_that_matches_nothing_is_a_usage_error(
    project: pytest.Pytester, typed: str, hint: str | None
) -> None:
    result = project.runpytest_inprocess("--tb-model=model.py", typed)
    if hint is None:
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        return
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([hint])


def test_an_id_of_another_model_is_pytests_own_usage_error(project: pytest.Pytester) -> None:
    result = project.runpytest_inprocess("--tb-model=model.py", "other.py::tier1::load")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_what_pytest_collects_without_us_it_still_collects(project: pytest.Pytester) -> None:
    project.makepyfile(test_own="def test_one(): pass")
    own = "test_own.py::test_one"
    assert listed(project, "--tb-model=model.py") == [own, *ALL]
    assert listed(project, "--tb-model=model.py", "test_own.py") == [own, *ALL]
    assert listed(project, "--tb-model=model.py", "model.py::tier2") == ALL[4:]
    assert listed(project, "--tb-model=model.py", "model.py::tier2", "test_own.py") == [
        own,
        ALL[4],
    ]


def test_models_of_the_ini_file_are_like_testpaths(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\nstrict = true\ntb_model =\n    model.py\n")
    project.makepyfile(test_own="def test_one(tb_model): assert tb_model.head.out_features == 32")
    own = "test_own.py::test_one[model.py]"
    assert listed(project) == [own, *ALL]
    assert listed(project, "test_own.py") == [own]
    assert listed(project, "model.py::tier2") == ALL[4:]
    project.runpytest_inprocess("test_own.py").assert_outcomes(passed=1)


def test_native_toml_is_read(project: pytest.Pytester) -> None:
    (project.path / "tox.ini").unlink()
    project.makepyprojecttoml(
        """
        [tool.pytest]
        strict = true
        tb_model = ["model.py"]
        tb_seed = 3
        tb_timeout = 5
        tb_allow_skipped = true
        tb_limits = ["sound.floor = 1"]
        """
    )
    assert listed(project) == ALL
    project.runpytest_inprocess().stdout.fnmatch_lines(["*model.py*seed 3*"])


def test_two_models_with_one_base_name(project: pytest.Pytester) -> None:
    text = (project.path / "model.py").read_text()
    for folder in ("a", "b"):
        (project.path / folder).mkdir()
        (project.path / folder / "model.py").write_text(text)
    args = ["--tb-model=a/model.py", "--tb-model=b/model.py"]
    both = [i.replace("model.py", f"{f}/model.py") for f in ("a", "b") for i in ALL]
    assert listed(project, *args) == both
    assert listed(project, *args, "b/model.py::tier2") == [both[-1]]
    project.runpytest_inprocess(*args).assert_outcomes(passed=6, failed=2, skipped=2)


def test_the_class_is_part_of_the_id(project: pytest.Pytester) -> None:
    args = ["--tb-model=model.py::Model", "model.py::Model::tier1::load"]
    assert listed(project, *args) == ["model.py::Model::tier1::load"]
    project.runpytest_inprocess(*args).assert_outcomes(passed=1)


@pytest.mark.parametrize("name", ["my model.py", "modèle 模型.py", "a[1].py", "it's.py"])
def test_names_with_spaces_unicode_and_brackets(project: pytest.Pytester, name: str) -> None:
    (project.path / "model.py").rename(project.path / name)
    shown = node_id(name)
    assert listed(project, f"--tb-model={name}") == [i.replace("model.py", shown) for i in ALL]
    for head in (name, shown):
        for typed in (f"{head}::tier1::load", f"{head}::tier1::cased[good]"):
            result = project.runpytest_inprocess(f"--tb-model={name}", typed)
            result.assert_outcomes(passed=1)


def test_a_model_outside_rootdir(
    project: pytest.Pytester, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "model.py"
    (project.path / "model.py").rename(outside)
    result = project.runpytest_inprocess(f"--tb-model={outside}")
    result.assert_outcomes(passed=3, failed=1, skipped=1)
    again = next(line for line in result.outlines if "again: " in line)
    _, *words = shlex.split(again.partition("again: ")[2])
    project.runpytest_inprocess(*words).assert_outcomes(failed=1)


def test_from_a_folder_below_rootdir(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.path / "sub").mkdir()
    (project.path / "model.py").rename(project.path / "sub" / "model.py")
    monkeypatch.chdir(project.path / "sub")
    as_printed = "sub/model.py::tier1::load"
    assert listed(project, "--tb-model=model.py", "--rootdir=..")[0].startswith("sub/model.py::")
    for typed in (as_printed, "model.py::tier1::load"):
        assert listed(project, "--tb-model=model.py", "--rootdir=..", typed) == [as_printed]


def test_keyword_and_mark_expressions(project: pytest.Pytester) -> None:
    model = "--tb-model=model.py"
    assert listed(project, model, "-k", "cased") == ALL[:2]
    assert listed(project, model, "-k", "bad or load") == ALL[1:3]
    assert listed(project, model, "-m", "tier2") == ALL[4:]
    assert listed(project, model, "-m", "not tier2") == ALL[:4]
    assert listed(project, model, "--deselect", "model.py::tier1") == ALL[4:]
    assert listed(project, model, "--deselect", BAD) == [i for i in ALL if i != BAD]


def test_last_failed_and_failed_first_keep_the_ids(project: pytest.Pytester) -> None:
    model = "--tb-model=model.py"
    project.makepyfile(test_own="def test_one(): pass")
    project.runpytest_inprocess(model).assert_outcomes(passed=4, failed=1, skipped=1)
    assert listed(project, model, "--lf") == [BAD]
    assert listed(project, model, "--ff")[0] == BAD
    project.runpytest_inprocess(model, "--lf").assert_outcomes(failed=1)
    project.makeconftest((project.path / "conftest.py").read_text().replace('== "bad"', '== ""'))
    project.runpytest_inprocess(model, "--lf").assert_outcomes(passed=1)
    assert len(listed(project, model, "--lf")) == 6


def test_last_failed_keeps_ids_that_are_no_path(project: pytest.Pytester) -> None:
    model = "--tb-model=nets.model:Model"
    (project.path / "nets").mkdir()
    (project.path / "nets" / "__init__.py").touch()
    (project.path / "model.py").rename(project.path / "nets" / "model.py")
    project.makepyfile(test_own="def test_one(): assert False")
    project.syspathinsert()
    result = project.runpytest_inprocess(model)
    result.assert_outcomes(passed=3, failed=2, skipped=1)
    assert listed(project, model, "--lf") == [
        "test_own.py::test_one",
        "nets.model:Model::tier1::cased[bad]",
    ]


def test_exitfirst(project: pytest.Pytester) -> None:
    result = project.runpytest_inprocess("--tb-model=model.py", "-x")
    result.assert_outcomes(passed=1, failed=1)


def test_duplicate_models_are_a_usage_error(project: pytest.Pytester) -> None:
    result = project.runpytest_inprocess("--tb-model=model.py", "--tb-model=./model.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*'model.py'*--tb-model=model.py and --tb-model=./model.py*"])


def test_hooks_of_the_root_conftest_see_the_items_and_others_do_not(
    project: pytest.Pytester,
) -> None:
    (project.path / "runs").mkdir()
    (project.path / "model.py").rename(project.path / "runs" / "model.py")
    (project.path / "tests").mkdir()
    hook = "\ndef pytest_runtest_setup(item): print('\\n{} saw', item.name)\n"
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text() + hook.format("root"))
    (project.path / "tests" / "conftest.py").write_text(hook.format("tests"))
    (project.path / "tests" / "test_own.py").write_text("def test_one(): pass")
    result = project.runpytest_inprocess("-s", "--tb-model=runs/model.py")
    shown = result.stdout.str()
    assert "root saw load" in shown
    assert "tests saw test_one" in shown
    assert "tests saw load" not in shown


@pytest.mark.parametrize(
    "args",
    [
        ("-p", "no:cacheprovider"),
        ("-p", "no:terminal"),
        ("-p", "no:timeout"),
        ("-p", "no:xdist"),
        ("-p", "no:html"),
        ("--strict-markers", "--strict-config"),
    ],
)
def test_with_parts_of_pytest_off_or_strict(
    project: pytest.Pytester, args: tuple[str, ...]
) -> None:
    result = project.runpytest_inprocess("--tb-model=model.py", *args)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_the_plugin_can_be_turned_off(project: pytest.Pytester) -> None:
    project.makeconftest("")
    project.makepyfile(test_own="def test_one(): pass")
    project.runpytest_subprocess("-p", "no:transformer_validate").assert_outcomes(passed=1)


def test_a_shell_repeats_an_id_with_odd_characters(project: pytest.Pytester) -> None:
    name = "it's [1].py"
    (project.path / "model.py").rename(project.path / name)
    result = project.runpytest_inprocess(f"--tb-model={name}")
    again = next(line for line in result.outlines if "again: " in line).partition("again: ")[2]
    assert shlex.split(again) == [
        "pytest",
        f"--tb-model={name}",
        f"{node_id(name)}::tier1::cased[bad]",
    ]


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("-k", "lode"), "-k lode: in the name of no check; did you mean load?"),
        (("-k", "cased and not zzz"), None),
        (("-k", "zzz and (bad)"), "-k zzz: in the name of no check"),
        (("-m", "tier1 and tier9"), "-m tier9: no check has this mark; they have tier1, *, slow"),
        (("-m", "tier1", "-k", "model.py and tier2"), None),
    ],
)
def test_a_word_that_selects_nothing_is_named(
    healthy: pytest.Pytester, args: tuple[str, ...], line: str | None
) -> None:
    healthy.makeini("[pytest]\n")
    result = healthy.runpytest_inprocess("--tb-model=model.py", "--co", "-q", *args)
    named = [each for each in result.outlines if each.startswith(("-k ", "-m "))]
    if line is None:
        assert not named
    else:
        assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
        result.stdout.fnmatch_lines([line])
        assert len(named) == 1
