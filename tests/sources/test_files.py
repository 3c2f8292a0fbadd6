"""What is no file, or has no end, is not read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_transformer_validate.errors import SourceError, SpecError
from pytest_transformer_validate.report import json
from pytest_transformer_validate.sources.code import read_code
from pytest_transformer_validate.sources.jsonfile import read_object

READERS = {"code": (read_code, SourceError), "config": (read_object, SourceError)}
READERS["baseline"] = (json.read, SpecError)


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_a_device_and_a_giant(reader: str, tmp_path: Path) -> None:
    read, error = READERS[reader]
    pipe, giant = tmp_path / "pipe", tmp_path / "giant"
    os.mkfifo(pipe)
    with giant.open("wb") as file:
        file.truncate(50 << 30)
    for path, words in (
        (pipe, "it is no regular file"),
        (Path("/dev/zero"), "it is no regular file"),
        (giant, "bytes"),
    ):
        with pytest.raises(error, match=words):
            read(path)
