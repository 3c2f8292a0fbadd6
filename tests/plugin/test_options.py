"""What is typed wrong ends the run with exit 4 and says what has to be."""

from __future__ import annotations

import pytest

from pytest_transformer_validate import options

USAGE = pytest.ExitCode.USAGE_ERROR

WRONG = [
    (["--tb-model=nosuch.py"], "*nosuch.py*"),
    (["--tb-model="], "*"),
    (["--tb-model=ftp:x"], "*"),
    (["--tb-model=model.py", "--tb-seed=abc"], "*--tb-seed must be a whole number*'abc'*"),
    (["--tb-model=model.py", "--tb-seed=nan"], "*--tb-seed must be a whole number*'nan'*"),
    (["--tb-model=model.py", "--tb-seed=-1"], "*--tb-seed must be*"),
    (["--tb-model=model.py", "--tb-seed="], "*--tb-seed must be*"),
    (["--tb-model=model.py", "--tb-timeout=inf"], "*--tb-timeout must be*'inf'*"),
    (
        ["--tb-model=model.py", "--tb-task=masked"],
        "*unknown task 'masked'*did you mean masked_lm?",
    ),
    (["--tb-model=model.py", "--tb-dtype=float"], "*--tb-dtype must be one of*'float'*"),
    (["--tb-model=model.py", "--tb-device=gpu"], "*--tb-device must be*'gpu'*"),
    (
        ["--tb-model=model.py", "--tb-device=cuda:99"],
        "*cuda:99 is not here; devices seen: cpu*auto*",
    ),
    (["--tb-model=model.py", "--tb-config=no.json"], "*--tb-config=no.json: no such*"),
    (["--tb-model=model.py", "--tb-baseline=no.json"], "*--tb-baseline=no.json: no such*"),
    (["--tb-model=model.py", "--tb-baseline=model.py"], "*--tb-baseline: *model.py cannot be*"),
    (["--tb-model=model.py", "--tb-weights=no.pt"], "*--tb-weights=no.pt: no such*"),
    (["--tb-model=model.py", "--tb-config=" + "x" * 300], "*no such*"),
    (["--tb-model=model.py", "--tb-json=" + "x" * 300 + "/a"], "*--tb-json must name a file*"),
    (["--tb-model=" + "x" * 300], "*"),
    (["--tb-model=model.py", "--tb-json=no/such/x.json"], "*--tb-json must name a file*"),
    (
        ["--tb-model=model.py", "--tb-task=lm", "--tb-task=lm"],
        "*--tb-task must be given once*2 times for 1 model",
    ),
]
WRONG_INI = [
    ("tb_limits = soud.floor = 1", "*tb_limits: unknown check 'soud'*did you mean sound?"),
    ("tb_limits = sound.flor = 1", "*sound has no limit 'flor'*did you mean floor?"),
    ("tb_limits = sound.floor = much", "*the limit must be a number*"),
    ("tb_limits = sound.floor = nan", "*the limit must be a number*"),
    ("tb_limits = sound", "*a limit is written as*"),
    ("tb_limits = load.x = 1", "*load has no limits*"),
    ("tb_limits = sound.valu_growth = 1", "*no limit 'valu_growth'*did you mean value_growth?"),
    ("tb_expect_fail = sond: no", "*tb_expect_fail: unknown check 'sond'*did you mean sound?"),
    ("tb_expect_fail = cased[ugly]: no", "*cased has no case*"),
    ("tb_expect_fail = sound", "*a known deviation is written as*"),
    ("tb_seed = abc", "*tox.ini:4: tb_seed: *abc*"),
    ("tb_device = gpu", "*--tb-device must be*"),
    ("tb_model = nosuch.py", "*nosuch.py*"),
]


@pytest.mark.parametrize(("args", "words"), WRONG)
def test_what_is_typed_wrong(project: pytest.Pytester, args: list[str], words: str) -> None:
    result = project.runpytest_inprocess(*args)
    assert result.ret == USAGE, result.stdout.str()
    result.stderr.fnmatch_lines([f"ERROR: {words}"])


@pytest.mark.parametrize(("line", "words"), WRONG_INI)
def test_what_is_declared_wrong(project: pytest.Pytester, line: str, words: str) -> None:
    models = "" if line.startswith("tb_model") else "tb_model = model.py\n"
    project.makeini(f"[pytest]\nstrict = true\n{models}{line}\n")
    result = project.runpytest_inprocess()
    assert result.ret == USAGE, result.stdout.str()
    result.stderr.fnmatch_lines([words])


@pytest.mark.parametrize("text", ["tb_modle = x.py", "tb-model = x.py", "tb_sed: 3"])
def test_an_unknown_key_of_ours_is_wrong_where_pytest_would_only_warn(
    pytester: pytest.Pytester, text: str
) -> None:
    pytester.makeini(f"[pytest]\naddopts = -q\n{text}\n")
    result = pytester.runpytest_inprocess()
    assert result.ret == USAGE
    result.stderr.fnmatch_lines(["ERROR: *tox.ini:3: tb*: unknown key; did you mean tb_*?"])


def test_an_unknown_key_of_ours_is_wrong_wherever_it_stands(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("-o", "tb_sed=3")
    assert result.ret == USAGE
    result.stderr.fnmatch_lines(["ERROR: -o tb_sed: unknown key; did you mean tb_seed?"])
    other = "[tool.pytest]\ntb_seed = 3\n[tool.other]\ntb_sed = 3\n"
    pytester.makepyprojecttoml(other)
    assert pytester.runpytest_inprocess().ret == pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.mark.parametrize("line", ['tb_seed = "abc"', 'tb_model = "model.py"', "tb_seed = nan"])
def test_wrong_types_in_toml(project: pytest.Pytester, line: str) -> None:
    (project.path / "tox.ini").unlink()
    models = "" if "tb_model" in line else 'tb_model = ["model.py"]\n'
    project.makepyprojecttoml(f"[tool.pytest]\nstrict = true\n{models}{line}\n")
    result = project.runpytest_inprocess()
    assert result.ret == USAGE
    result.stderr.fnmatch_lines([f"ERROR: *pyproject.toml:*: {line.partition(' ')[0]}: *"])


def test_the_command_line_beats_the_ini_file(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\ntb_model = nosuch.py\ntb_seed = 5\ntb_device = auto\n")
    result = project.runpytest_inprocess("--tb-model=model.py", "--tb-seed=6")
    result.stdout.fnmatch_lines(["transformer-validate *: model.py (auto, seed 6)"])


def test_limits_reach_the_checks(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\ntb_model = model.py\ntb_limits = sound.floor = 7\n")
    conftest = project.path / "conftest.py"
    conftest.write_text(
        conftest.read_text().replace(
            "    return Measurement(value=0.25",
            "    assert floor == 7.0\n    return Measurement(value=0.25",
        )
    )
    project.runpytest_inprocess("-k", "sound").assert_outcomes(passed=1, deselected=5)


@pytest.mark.parametrize("tasks", [["masked_lm"], ["masked_lm", "lm"]])
def test_one_value_for_all_models_or_one_each(project: pytest.Pytester, tasks: list[str]) -> None:
    project.makepyfile(other=(project.path / "model.py").read_text())
    args = [f"--tb-task={task}" for task in tasks]
    result = project.runpytest_inprocess("--tb-model=model.py", "--tb-model=other.py", *args)
    second = "masked_lm" if len(tasks) == 1 else "causal_lm"
    result.stdout.fnmatch_lines(
        [
            "  again: pytest --tb-model=model.py --tb-task=masked_lm '*",
            f"  again: pytest --tb-model=other.py --tb-task={tasks[-1]} '*",
            "model.py: task masked_lm*",
            f"other.py: task {second}*",
        ]
    )


def test_the_options_are_the_closed_list() -> None:
    assert [option.flag for option in options.OPTIONS] == [
        "--tb-model",
        "--tb-config",
        "--tb-tokenizer",
        "--tb-weights",
        "--tb-task",
        "--tb-device",
        "--tb-dtype",
        "--tb-seed",
        "--tb-timeout",
        "--tb-allow-skipped",
        "--tb-json",
        "--tb-baseline",
        "--tb-reference",
        "--tb-trust",
        "--tb-offline",
        "--tb-train",
        "--tier3",
        "--tb-data",
        "--tb-epochs",
        "--tb-time-budget",
    ]
    assert set(options.INI_ONLY) == {"tb_limits", "tb_expect_fail"}


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
@pytest.mark.parametrize("flag", ["-k", "-m"])
def test_a_wrong_expression_is_what_was_typed(
    project: pytest.Pytester, flag: str, workers: tuple[str, ...]
) -> None:
    result = project.runpytest_inprocess("--tb-model=model.py", flag, "sound or (", *workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {flag} 'sound or (': wrong at column *"])
