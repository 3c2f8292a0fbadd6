from __future__ import annotations

import warnings

import pytest

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.base import SourceWarning
from pytest_transformer_validate.sources.code import read_code

HTML = "<!DOCTYPE html>\n<html><body>404</body></html>"
CONFLICT = "x = 1\n<<<<<<< HEAD\nx = 2\n=======\nx = 3\n>>>>>>> other\n"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"x = (\n", r"model.py:1:5: not valid Python"),
        (b"def f():\n  x = 1\n\ty = 2\n", r"model.py:3"),
        (HTML.encode(), "looks like HTML"),
        (CONFLICT.encode(), "git conflict marks .first in line 2"),
        (b'{"cells": [], "nbformat": 4}', "looks like a notebook"),
        (b'{"cells": [}', "looks like a notebook"),
        (b"print 'x'\n", "looks like Python 2"),
        (b"try:\n  pass\nexcept A, e:\n  pass\n", "looks like Python 2"),
        ("x = 1".encode("utf-16"), "looks like UTF-16"),
        ("x = 1".encode("utf-16-le"), "UTF-16 without a mark"),
        (b"x = 1\ny = '\0'\n", "model.py:2:6: a NUL byte"),
        (b"PK\x03\x04\0\0", "saved weights"),
        (b"x = 1\ny = '\xe9'\n", "model.py:2:6: not utf-8 .*offset 11"),
        (b"# coding: nosuch\n", "model.py:1:1: .*nosuch"),
    ],
)
def test_what_is_no_python_says_what_it_looks_like(write, content, text):
    path = write("model.py", content)
    with pytest.raises(SourceError, match=text) as caught:
        read_code(path)
    assert len(str(caught.value).splitlines()) <= 12


def test_marks_line_ends_and_other_encodings_are_python(write):
    read_code(write("bom.py", b"\xef\xbb\xbfx = 1\r\ny = 2\r\n"))
    read_code(write("latin.py", b"# coding: latin-1\nx = '\xe9'\n"))


def test_deep_nesting_is_an_error_of_the_file(write):
    with pytest.raises(SourceError, match="deep.py"):
        read_code(write("deep.py", "x = " + "(" * 5000 + ")" * 5000))


def test_text_that_reads_backwards_is_pointed_out(write):
    path = write("model.py", "x = 1\n# \u202e hidden\n")
    with pytest.warns(SourceWarning, match="model.py:2: .*U.202E"):
        read_code(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_code(write("plain.py", "x = 1  # é\n"))


def test_a_missing_file(tmp_path):
    with pytest.raises(SourceError, match="cannot read"):
        read_code(tmp_path / "gone.py")
