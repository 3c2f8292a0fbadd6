from __future__ import annotations

import pytest

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.automap import Reference, model_reference, references


def of(**names):
    return references({"auto_map": names}, "config.json")


def test_without_the_key_there_is_no_code():
    assert references({"trust_remote_code": True, "model_type": "gpt2"}, "config.json") == {}
    assert references({"auto_map": None}, "config.json") == {}


def test_where_a_class_is():
    assert of(AutoModel="a.b.Net")["AutoModel"] == [Reference(None, "a.b", "Net")]
    assert of(AutoModel="org/na-me.1--a.Net")["AutoModel"] == [
        Reference("org/na-me.1", "a", "Net")
    ]
    assert of(AutoTokenizer=["a.Slow", None])["AutoTokenizer"] == [Reference(None, "a", "Slow")]


@pytest.mark.parametrize(
    "text",
    [
        "Net",
        "../a.Net",
        "a/b.Net",
        "",
        "a.1",
        "x--a.Net",
        "../x--a.Net",
        "a/b.git--a.Net",
        "a.Net;",
        3,
        ["a.Net"],
    ],
)
def test_what_names_no_class(text):
    with pytest.raises(SourceError, match="key auto_map.AutoModel: must name a class"):
        of(AutoModel=text)


@pytest.mark.parametrize(
    ("architectures", "names", "chosen"),
    [
        (["B"], {"AutoModelForCausalLM": "m.A", "AutoModelForMaskedLM": "m.B"}, "B"),
        (["X"], {"AutoModel": "m.C", "AutoModelForCausalLM": "m.A"}, "A"),
        (None, {"AutoModel": "m.C", "AutoModelForSpeech": "m.S"}, "S"),
        (["X"], {"AutoModel": "m.C", "AutoConfig": "m.D"}, "C"),
        (["D"], {"AutoConfig": "m.D", "AutoTokenizer": ["m.D"]}, None),
    ],
)
def test_which_class_makes_the_model(architectures, names, chosen):
    found = model_reference({"architectures": architectures}, of(**names))
    assert (found and found.name) == chosen
