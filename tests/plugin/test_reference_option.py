"""--tb-reference from the command line to the check that compares."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import MODEL, PASSING

USAGE = pytest.ExitCode.USAGE_ERROR

COMPARES = (
    PASSING
    + """
@check(tier=2)
def reference(probe):
    "Says what another model says."
    words = probe.comparison.weights().words
    found = probe.comparison.compared("plain")
    if found.moved > 1e-6:
        raise CheckFailed(f"other logits than {probe.reference.id} ({words})")
    return Measurement(value=found.moved, notes=(words,))
"""
)


@pytest.fixture
def two(project: pytest.Pytester) -> pytest.Pytester:
    """The model, and the one that it was made from, each with a module of one name beside it."""
    body = MODEL.replace("import torch", "import torch\nfrom layers import SCALE")
    body = body.replace("self.embed(input_ids)", "SCALE * self.embed(input_ids)")
    for folder, scale in (("new", 2), ("old", 2), ("other", 3)):
        path = project.path / folder
        path.mkdir()
        (path / "model.py").write_text(body)
        (path / "layers.py").write_text(f"SCALE = {scale}\n")
    project.makeconftest(COMPARES)
    return project


def test_the_same_model_in_another_folder_says_the_same(two: pytest.Pytester) -> None:
    args = ("--tb-model=new/model.py", "--tb-reference=old/model.py", "-k", "reference")
    two.runpytest_inprocess(*args).assert_outcomes(passed=1, deselected=6)


def test_another_model_fails_and_the_line_to_repeat_it_names_it(two: pytest.Pytester) -> None:
    args = ("--tb-model=new/model.py", "--tb-reference=other/model.py", "-k", "reference")
    result = two.runpytest_inprocess(*args)
    result.assert_outcomes(failed=1, deselected=6)
    result.stdout.fnmatch_lines(
        [
            "*other logits than other/model.py (the model's in both)",
            "  again: pytest --tb-model=new/model.py --tb-reference=other/model.py "
            "'new/model.py::tier2::reference'",
        ]
    )


def test_the_ini_file_names_one_relative_to_itself(two: pytest.Pytester) -> None:
    two.makeini("[pytest]\ntb_reference = other/model.py\n")
    result = two.runpytest_inprocess("--tb-model=new/model.py", "-k", "reference")
    result.assert_outcomes(failed=1, deselected=6)


def test_without_one_it_is_skipped_with_the_option(two: pytest.Pytester) -> None:
    result = two.runpytest_inprocess("--tb-model=new/model.py", "-rs")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        ["*there is no model to compare with: name one by --tb-reference*"]
    )


@pytest.mark.parametrize("spec", ["nosuch.py", "", "ftp:x", "model.txt"])
def test_a_wrong_one_is_exit_4(two: pytest.Pytester, spec: str) -> None:
    result = two.runpytest_inprocess("--tb-model=new/model.py", f"--tb-reference={spec}")
    assert result.ret == USAGE
    result.stderr.fnmatch_lines(["*--tb-reference: *"])


def test_one_that_does_not_load_says_that_it_is_the_reference(two: pytest.Pytester) -> None:
    (two.path / "broken.py").write_text("VALUE = 1\n")
    args = ("--tb-model=new/model.py", "--tb-reference=broken.py", "-k", "reference")
    result = two.runpytest_inprocess(*args)
    result.assert_outcomes(failed=1, deselected=6)
    result.stdout.fnmatch_lines(["*the reference broken.py does not load: *"])
