"""What breaks in a hook is exit 3, says whom to tell, and shows no credential."""

from __future__ import annotations

import pytest

BREAKS = """
def pytest_tb_record(record):
    token = "hf_" + "x" * 34
    raise RuntimeError(f"no place for {token}\\x1b[2J")
"""


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["in_process", "in_a_worker"])
def test_the_text_tells_where_to_go(healthy: pytest.Pytester, workers: tuple[str, ...]) -> None:
    conftest = healthy.path / "conftest.py"
    conftest.write_text(conftest.read_text() + BREAKS)
    result = healthy.runpytest_subprocess("--tb-model=model.py", *workers, timeout=120)
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(
        [
            r"INTERNALERROR> *RuntimeError: no place for [[]redacted]\x1b[[]2J",
            "INTERNALERROR> pytest-transformer-validate had a part in this: please open an issue*",
        ]
    )
    assert "x" * 34 not in result.stdout.str() + result.stderr.str()
