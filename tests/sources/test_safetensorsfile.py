"""Files that are not what they say: row 63 of the table of bad input."""

from __future__ import annotations

import json
import struct

import pytest

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.safetensorsfile import check_safetensors
from pytest_transformer_validate.sources.weights import read_tensors


def entry(kind="F32", shape=(2,), place=(0, 8)):
    return json.dumps({"dtype": kind, "shape": shape, "data_offsets": place})


def file(tmp_path, header, body, length=None):
    data = header.encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(data) if length is None else length) + data + body)
    return path


def test_a_sound_file(tmp_path):
    path = file(tmp_path, f'{{"a": {entry()}}}', bytes(8))
    check_safetensors(path)
    assert list(read_tensors(path)) == ["a"]


@pytest.mark.parametrize(
    ("header", "body", "length", "text"),
    [
        (f'{{"a": {entry()}}}', bytes(6), None, "not fully covered"),
        (f'{{"a": {entry()}}}', bytes(16), None, "not fully covered"),
        ("{", b"", 200_000_000, "header too large"),
        ("{", b"", 200, "invalid header length"),
        (f'{{"a": {entry()}, "a": {entry()}}}', bytes(8), None, "names a twice"),
        (f'{{"a": {entry()}, "b": {entry(place=(4, 12))}}}', bytes(12), None, "invalid offset"),
        (f'{{"a": {entry("F64")}}}', bytes(8), None, "invalid shape, data type, or offset"),
        (f'{{"a": {entry("F31")}}}', bytes(8), None, "invalid JSON in header"),
        ("<html>", b"", None, "invalid"),
    ],
)
def test_a_file_that_lies(tmp_path, header, body, length, text):
    path = file(tmp_path, header, body, length)
    for read in (check_safetensors, read_tensors):
        with pytest.raises(SourceError, match=f"model.safetensors is no readable .*{text}"):
            read(path)


def test_an_empty_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(SourceError, match="model.safetensors is no readable .*too small"):
        check_safetensors(path)
