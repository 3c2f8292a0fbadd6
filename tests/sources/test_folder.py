from __future__ import annotations

import pytest

from pytest_transformer_validate.errors import SourceError

MODEL = """
    from torch import nn

    class GPT(nn.Module):
        pass

    class Other(nn.Module):
        pass
    """


def test_a_builder_export(write, load):
    path = write("runs/a/model.py", MODEL)
    write("runs/a/config.json", {"model_name": "GPT", "vocab_size": 5})
    loaded = load("runs/a")
    assert loaded.origin.endswith("runs/a/model.py, class GPT")
    assert loaded.location == (str(path), 4)
    assert loaded.config.vocab_size == 5
    assert load("runs/a::Other").origin.endswith("class Other")


@pytest.mark.parametrize(("missing", "other"), [("model.py", "config"), ("config.json", "model")])
@pytest.mark.parametrize("empty", [True, False])
def test_a_missing_or_empty_file_is_named_before_anything_runs(write, load, missing, other, empty):
    if other == "model":
        write("a/model.py", "raise RuntimeError")
    else:
        write("a/config.json", {"vocab_size": 5})
    if empty:
        write(f"a/{missing}", "")
    with pytest.raises(SourceError, match=f"an empty {missing}" if empty else f"no {missing}"):
        load("a")


def test_a_broken_config_is_named_before_anything_runs(write, load):
    write("a/model.py", "raise RuntimeError")
    write("a/config.json", "{")
    with pytest.raises(SourceError, match=r"config.json:1:2"):
        load("a")


def test_another_config_makes_up_for_a_missing_one(write, load):
    write("a/model.py", MODEL)
    config = write("b.json", {"model_name": "Other"})
    assert load("a", config=config).origin.endswith("class Other")
