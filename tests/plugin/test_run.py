"""What a run says and how it ends: outcomes, texts, exit codes, limits, declarations."""

from __future__ import annotations

import sys

import pytest

MODEL = "--tb-model=model.py"

BROKEN_LOAD = "raise RuntimeError('cannot be built')"
BROKEN_FORWARD = """
@check(tier=1)
def forward(probe):
    return probe.subject.model(None)
"""


def add_checks(project: pytest.Pytester, text: str) -> None:
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text() + "\n" + text)


def test_a_failure_reads_as_rule_given_and_way_to_repeat_it(project: pytest.Pytester) -> None:
    result = project.runpytest_inprocess(MODEL, "--tb-seed=3", "--tb-device=cpu")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*cased?bad? on model.py*",
            "cased?bad? (tier 1): two must be one",
            "  given 2",
            "  again: pytest --tb-model=model.py --tb-device=cpu --tb-seed=3 "
            "'model.py::tier1::cased?bad?'",
            "*transformer validation*",
            "model.py: task causal_lm*, 544 parameters, cpu, float32, seed 3, weights: random*",
            "  tier 1   3 passed  1 failed   * s",
            "  tier 2 * 1 skipped   * s",
            "tier 3 trains the model; add --tb-train (1 check not run)",
            "FAILED model.py::tier1::cased?bad? - cased?bad? (tier 1): two must be one",
        ]
    )
    assert "Traceback" not in result.stdout.str()
    assert "outcome.py" not in result.stdout.str()


def test_the_repeating_command_of_ini_models_names_none(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\ntb_model = model.py\ntb_seed = 5\n")
    project.runpytest_inprocess().stdout.fnmatch_lines(
        ["  again: pytest 'model.py::tier1::cased?bad?'"]
    )


def test_a_model_that_does_not_load_fails_its_checks(healthy: pytest.Pytester) -> None:
    healthy.makepyfile(model=BROKEN_LOAD)
    result = healthy.runpytest_inprocess(MODEL)
    result.assert_outcomes(failed=5, deselected=1)
    shown = result.stdout.str()
    assert shown.count("raise RuntimeError") == 2, "in the first blocked check and in load itself"
    result.stdout.fnmatch_lines(
        [
            "load (tier 1): the model does not load",
            '*File "*model.py", line 1, in <module>',
            "*RuntimeError: cannot be built",
            "sound (tier 1): blocked by load: RuntimeError: cannot be built",
        ]
    )
    assert "pytest_transformer_validate" not in shown
    assert "_pytest" not in shown


def test_a_model_that_exits_fails_its_checks(healthy: pytest.Pytester) -> None:
    healthy.makepyfile(model="import sys; sys.exit(0)")
    healthy.runpytest_inprocess(MODEL).assert_outcomes(failed=5, deselected=1)


def test_one_broken_model_does_not_stop_the_others(healthy: pytest.Pytester) -> None:
    healthy.makepyfile(worse=BROKEN_LOAD)
    result = healthy.runpytest_inprocess("--tb-model=worse.py", MODEL)
    result.assert_outcomes(failed=5, passed=4, skipped=1, deselected=2)


def test_a_forward_that_raises_is_broken_with_the_models_frames(healthy: pytest.Pytester) -> None:
    add_checks(healthy, BROKEN_FORWARD)
    result = healthy.runpytest_inprocess(MODEL, "-k", "forward")
    result.stdout.fnmatch_lines(
        [
            "forward (tier 1): the model raised*",
            '*File "*model.py", line *, in forward',
            "*again: *",
        ]
    )


def test_the_debugger_stands_in_the_models_frame(healthy: pytest.Pytester) -> None:
    model = healthy.path / "model.py"
    model.write_text(
        model.read_text().replace("return self", "raise ValueError(3)\n        return self")
    )
    add_checks(healthy, BROKEN_FORWARD)
    args = ("-m", "pytest", MODEL, "--pdb", "-k", "forward")
    result = healthy.run(sys.executable, *args, stdin=b"p type(self).__name__\nq\n")
    result.stdout.fnmatch_lines(
        ["forward (tier 1): the model raised*", "*> *model.py(*)forward()", "*'Model'"]
    )


def test_control_characters_are_escaped(healthy: pytest.Pytester) -> None:
    add_checks(
        healthy,
        '@check(tier=1)\ndef rude(probe): raise CheckFailed("\\x1b[2Jgone \\u202e\\udc80")',
    )
    result = healthy.runpytest_inprocess(MODEL, "-k", "rude")
    result.stdout.fnmatch_lines(["rude (tier 1): \\x1b?2Jgone \\u202e\\udc80"])


def test_a_skip_gives_its_reason(healthy: pytest.Pytester) -> None:
    result = healthy.runpytest_inprocess(MODEL, "-rs")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["SKIPPED * model.py:1: no cache"])


class TestNothingJudged:
    def test_is_no_success(self, healthy: pytest.Pytester) -> None:
        result = healthy.runpytest_inprocess(MODEL, "-m", "tier2")
        assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
        result.stdout.fnmatch_lines(
            ["model.py: nothing was judged*unpromised: no cache*--tb-allow-skipped accepts that"]
        )

    @pytest.mark.parametrize("args", [("--tb-allow-skipped",), ("--co",)])
    def test_is_accepted_when_asked(self, healthy: pytest.Pytester, args: tuple[str]) -> None:
        assert healthy.runpytest_inprocess(MODEL, "-m", "tier2", *args).ret == pytest.ExitCode.OK

    def test_is_found_for_each_model(self, healthy: pytest.Pytester) -> None:
        healthy.makepyfile(other=(healthy.path / "model.py").read_text())
        args = ("--tb-model=other.py", "other.py::tier2", "model.py::tier1")
        result = healthy.runpytest_inprocess(MODEL, *args)
        assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
        result.stdout.fnmatch_lines(["other.py: nothing was judged*"])

    def test_does_not_count_deselected_models(self, healthy: pytest.Pytester) -> None:
        healthy.makepyfile(other=(healthy.path / "model.py").read_text())
        result = healthy.runpytest_inprocess(MODEL, "--tb-model=other.py", "-k", "model.py")
        assert result.ret == pytest.ExitCode.OK

    def test_does_not_hide_a_failure(self, project: pytest.Pytester) -> None:
        project.makepyfile(other=(project.path / "model.py").read_text())
        args = ("--tb-model=other.py", "other.py::tier2", "model.py::tier1")
        assert project.runpytest_inprocess(MODEL, *args).ret == pytest.ExitCode.TESTS_FAILED


class TestTier3:
    def test_is_deselected_with_one_line(self, healthy: pytest.Pytester) -> None:
        result = healthy.runpytest_inprocess(MODEL)
        result.assert_outcomes(passed=4, skipped=1, deselected=1)
        result.stdout.fnmatch_lines(["tier 3 trains the model; add --tb-train (1 check not run)"])

    @pytest.mark.parametrize(
        "args", [("-m", "tier3"), ("-k", "learns"), ("model.py::tier3::learns",)]
    )
    def test_is_skipped_when_asked_for(
        self, healthy: pytest.Pytester, args: tuple[str, ...]
    ) -> None:
        result = healthy.runpytest_inprocess(MODEL, "-rs", "--tb-allow-skipped", *args)
        result.stdout.fnmatch_lines(["SKIPPED *: tier 3 trains the model; add --tb-train"])
        assert result.ret == pytest.ExitCode.OK

    @pytest.mark.parametrize("args", [("-m", "not tier2"), ("-k", "not cased")])
    def test_is_deselected_when_only_not_excluded(
        self, healthy: pytest.Pytester, args: tuple[str, ...]
    ) -> None:
        result = healthy.runpytest_inprocess(MODEL, *args)
        result.stdout.fnmatch_lines(["tier 3 trains the model; add --tb-train (1 check not run)"])
        assert result.ret == pytest.ExitCode.OK

    @pytest.mark.parametrize("args", [("-m", "tier3", "--tb-train"), ("--tier3",)])
    def test_runs_when_training_is_allowed(
        self, healthy: pytest.Pytester, args: tuple[str, ...]
    ) -> None:
        result = healthy.runpytest_inprocess(MODEL, *args)
        result.assert_outcomes(passed=1, deselected=5)

    def test_joins_the_other_tiers_when_training_is_allowed(
        self, healthy: pytest.Pytester
    ) -> None:
        healthy.runpytest_inprocess(MODEL, "--tb-train").assert_outcomes(passed=5, skipped=1)


class TestSlow:
    @pytest.fixture
    def patient(self, healthy: pytest.Pytester) -> pytest.Pytester:
        slow = """
@check(tier=2, slow=True)
def patient(probe):
    "Takes long."
    return Measurement(value=2.0)
"""
        healthy.makeconftest((healthy.path / "conftest.py").read_text() + slow)
        return healthy

    def test_is_deselected_with_one_line(self, patient: pytest.Pytester) -> None:
        result = patient.runpytest_inprocess(MODEL, "-m", "tier2", "--tb-allow-skipped")
        result.stdout.fnmatch_lines(["slow checks run when asked for: *(1 check not run)"])
        result.assert_outcomes(skipped=1, deselected=6)

    @pytest.mark.parametrize(
        "args",
        [("-m", "tier2 and slow"), ("-k", "patient"), ("model.py::tier2::patient",)],
    )
    def test_runs_when_asked_for(self, patient: pytest.Pytester, args: tuple[str, ...]) -> None:
        result = patient.runpytest_inprocess(MODEL, *args)
        assert result.parseoutcomes()["passed"] == 1

    def test_runs_when_it_is_named_to_validate(self, patient: pytest.Pytester) -> None:
        patient.makepyfile(
            """
            from pytest_transformer_validate import validate

            def test_it():
                assert [record.check for record in validate("model.py", tier=2)] == ["unpromised"]
                assert validate("model.py", checks="patient").passed
            """
        )
        result = patient.runpytest_inprocess("-p", "no:cacheprovider")
        result.assert_outcomes(passed=1)


class TestDeclaredDeviations:
    def declare(self, project: pytest.Pytester, line: str) -> None:
        project.makeini(f"[pytest]\nstrict = true\ntb_expect_fail =\n    {line}\n")

    @pytest.mark.parametrize("name", ["cased", "cased[bad]"])
    def test_a_declared_failure_is_expected(self, project: pytest.Pytester, name: str) -> None:
        self.declare(project, f"{name}: two is fine")
        result = project.runpytest_inprocess(MODEL, "-rx")
        result.assert_outcomes(passed=3, xfailed=1, skipped=1, deselected=1)
        assert result.ret == pytest.ExitCode.OK
        result.stdout.fnmatch_lines(["XFAIL model.py::tier1::cased?bad?*declared: two is fine"])

    @pytest.mark.parametrize("name", ["sound", "cased[good]", "unpromised"])
    def test_a_declaration_that_does_not_fail_is_stale(
        self, project: pytest.Pytester, name: str
    ) -> None:
        self.declare(project, f"{name}: it was")
        result = project.runpytest_inprocess(MODEL)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(
            ["*declared to fail and it *", f"*remove this line: '{name[:5]}*"]
        )

    def test_an_exception_is_not_excused(self, healthy: pytest.Pytester) -> None:
        add_checks(healthy, BROKEN_FORWARD)
        self.declare(healthy, "forward: known")
        healthy.runpytest_inprocess(MODEL, "-k", "forward").assert_outcomes(failed=1, deselected=6)

    def test_runxfail_excuses_nothing(self, project: pytest.Pytester) -> None:
        self.declare(project, "cased: two is fine")
        result = project.runpytest_inprocess(MODEL, "--runxfail")
        result.assert_outcomes(passed=3, failed=1, skipped=1, deselected=1)

    def test_a_local_config_may_declare(self, project: pytest.Pytester) -> None:
        config = project.path / "config.json"
        config.write_text('{"expect_fail": {"cased[bad]": "two is fine"}}')
        project.runpytest_inprocess(MODEL).assert_outcomes(
            passed=3, xfailed=1, skipped=1, deselected=1
        )
        config.write_text('{"expect_fail": {"cazed": "two is fine"}}')
        result = project.runpytest_inprocess(MODEL)
        result.assert_outcomes(failed=5, deselected=1)
        result.stdout.fnmatch_lines(["*unknown check 'cazed'*did you mean cased?*"])


class TestTimeLimit:
    SLEEPS = "@check(tier=1)\ndef sleeps(probe):\n    import time; time.sleep(20)\n"

    def test_ends_the_check_and_not_the_run(self, healthy: pytest.Pytester) -> None:
        add_checks(healthy, self.SLEEPS)
        result = healthy.runpytest_inprocess(MODEL, "--tb-timeout=0.3", "-m", "tier1")
        result.assert_outcomes(failed=1, passed=4, deselected=2)
        result.stdout.fnmatch_lines(["sleeps (tier 1): the check raised*", "*Timeout (>0.3s)*"])

    def test_of_a_load_blocks_the_rest(self, healthy: pytest.Pytester) -> None:
        healthy.makepyfile(model="import time; time.sleep(20)")
        result = healthy.runpytest_inprocess(MODEL, "--tb-timeout=0.3")
        result.assert_outcomes(failed=5, deselected=1)
        assert result.duration < 10

    def test_of_the_user_wins_where_shorter(self, healthy: pytest.Pytester) -> None:
        add_checks(healthy, self.SLEEPS)
        result = healthy.runpytest_inprocess(MODEL, "--timeout=0.4", "-k", "sleeps")
        result.stdout.fnmatch_lines(["*Timeout (>0.4s)*"])


@pytest.mark.parametrize("args", [("-q",), ("--no-summary",)])
def test_the_summary_can_be_turned_off(healthy: pytest.Pytester, args: tuple[str]) -> None:
    result = healthy.runpytest_inprocess(MODEL, "-m", "tier1", *args)
    assert "transformer validation" not in result.stdout.str()
