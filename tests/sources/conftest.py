"""Files of models, as people write them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_transformer_validate.sources.base import Loaded, LoadOptions
from pytest_transformer_validate.sources.parse import parse

Write = Callable[..., Path]
Load = Callable[..., Loaded]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file below the test's folder: text as it is, anything else as JSON."""

    def write_file(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = textwrap.dedent(content) if isinstance(content, str) else json.dumps(content)
            path.write_text(text, encoding="utf-8")
        return path

    return write_file


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Parse a spec in the test's folder and load it."""

    def load_spec(spec: str, **options: Any) -> Loaded:
        source = parse(spec, rootdir=tmp_path, cwd=tmp_path)
        return source.load(LoadOptions(**options))

    return load_spec
