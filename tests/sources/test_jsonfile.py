from __future__ import annotations

import math

import pytest

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.jsonfile import read_object


def test_an_object_is_read_with_and_without_a_mark(write):
    assert read_object(write("a.json", '{"a": [1, 2.5, null, "é"]}')) == {"a": [1, 2.5, None, "é"]}
    assert read_object(write("b.json", b'\xef\xbb\xbf{"a": 1}')) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"null", "holds null"),
        (b"[]", "holds a list"),
        (b'"x"', "holds a string"),
        (b"3", "holds a number"),
        (b"true", "holds true or false"),
        (b'{"a": 1,\n}', "comma before }"),
        (b'{"a": [1,]}', "comma before ]"),
        (b'{\n  // note\n  "a": 1}', "config.json:2:3: .*no comments"),
        (b"{'a': 1}", "config.json:1:2: .*double quotes"),
        (b'{"a": 1', "config.json:1:8"),
        (b'{"a": "\xe9"}', "config.json:1:8: not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "looks like UTF-16"),
        (b'{"a": {"b": [1, NaN]}}', r"key a\.b\[1\]: NaN|key a\.b\[1\]"),
        (b'{"a": -Infinity}', "key a: -Infinity"),
        (b'{"a": 1e999}', "key a: 1e999 is too large"),
        (b'{"a": 1, "b": 2, "a": 1}', "key a: .*twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "key a: a number of 5000 digits"),
        (b'{"a": "\\ud800"}', "key a: half of a surrogate"),
        (b'{"\\ud800": 1}', "surrogate pair in a key"),
        (b'{"a": ' * 101 + b"1" + b"}" * 101, "levels deep"),
        (b"[" * 100_000, "levels deep"),
        (b'{"a": "' + b"x" * 5_000_000 + b'"}', "at most 5000000"),
    ],
)
def test_what_is_not_allowed_is_named(write, content, text):
    path = write("config.json", content)
    with pytest.raises(SourceError, match=text) as caught:
        read_object(path)
    assert "config.json" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_infinity_in_the_forms_of_transformers_is_read_where_it_is_asked_for(write):
    text = b'{"a": Infinity, "b": [0.0, {"__float__": "-Infinity"}], "c": {"__float__": 1}}'
    path = write("config.json", text)
    assert read_object(path, infinite=True) == {
        "a": math.inf,
        "b": [0.0, -math.inf],
        "c": {"__float__": 1},
    }
    with pytest.raises(SourceError, match="key a"):
        read_object(path)
    with pytest.raises(SourceError, match="key d: NaN"):
        read_object(write("config.json", b'{"d": NaN}'), infinite=True)


def test_a_folder_is_not_read(tmp_path):
    with pytest.raises(SourceError, match="cannot read"):
        read_object(tmp_path)
