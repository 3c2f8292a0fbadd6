from __future__ import annotations

import json
import os
import socket
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.base import SourceWarning
from tests.sources import remote_code

GPT2 = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 20, "n_positions": 16}
BERT = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 20,
    "max_position_embeddings": 16,
}
BART = {
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "vocab_size": 20,
    "max_position_embeddings": 16,
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def gpt2(tmp_path):
    """A saved model of random weights, and its folder."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    model.save_pretrained(tmp_path / "hub")
    return model


def change(folder, **values):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_a_saved_model(gpt2, load, tmp_path):
    loaded = load("hub")
    assert type(loaded.model).__name__ == "GPT2LMHeadModel"
    assert loaded.weights == "model.safetensors"
    assert loaded.origin.endswith("hub, class GPT2LMHeadModel")
    assert loaded.config.vocab_size == 20
    assert loaded.tokenizer is None
    assert torch.equal(loaded.model.transformer.wte.weight, gpt2.transformer.wte.weight)
    assert loaded.model.lm_head.weight is loaded.model.transformer.wte.weight
    assert loaded.location is not None
    assert loaded.location[0].endswith("modeling_gpt2.py")


@pytest.mark.parametrize("form", ["as it is saved", "Infinity"])
def test_a_configuration_that_holds_infinity(load, tmp_path, form):
    config = transformers.Mamba2Config(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_heads=2, head_dim=8, state_size=4
    )
    transformers.Mamba2ForCausalLM(config).save_pretrained(tmp_path / "hub")
    if form == "Infinity":  # as older files have it
        change(tmp_path / "hub", time_step_limit=[0.0, float("inf")])
    assert load("hub").model.config.time_step_limit[1] == float("inf")


def test_without_weights_they_are_drawn_from_the_seed(gpt2, load, tmp_path):
    (tmp_path / "hub/model.safetensors").unlink()
    one, two = load("hub", seed=3), load("hub", seed=3)
    assert one.weights == "random (seed 3)"
    assert torch.equal(one.model.transformer.wte.weight, two.model.transformer.wte.weight)
    assert not torch.equal(
        one.model.transformer.wte.weight, load("hub").model.transformer.wte.weight
    )


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_weights_in_shards(gpt2, load, tmp_path, form):
    folder = tmp_path / "hub"
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = "model" if form == "safetensors" else "pytorch_model"
    weight_map = {}
    for at, key in enumerate(state):
        file = f"{name}-0000{at % 2 + 1}-of-00002.{form}"
        weight_map[key] = file
    for file in set(weight_map.values()):
        part = {key: state[key] for key in state if weight_map[key] == file}
        if form == "safetensors":
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file)
    index = f"{name}.{form}.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    loaded = load("hub")
    assert loaded.weights == index
    assert torch.equal(loaded.model.transformer.wte.weight, gpt2.transformer.wte.weight)


def test_weights_in_a_pickle_are_read_as_tensors_only(gpt2, load, tmp_path):
    folder = tmp_path / "hub"
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    assert load("hub").weights == "model.safetensors"
    (folder / "model.safetensors").unlink()
    assert load("hub").weights == "pytorch_model.bin"


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("never",)


def test_a_malicious_pickle_is_refused(gpt2, load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hub/model.safetensors").unlink()
    torch.save({"a": Malicious()}, tmp_path / "hub/pytorch_model.bin")
    with pytest.raises(SourceError, match="pytorch_model.bin cannot be loaded: .*GLOBAL"):
        load("hub")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("content", [b"", b"\xff" * 64])
def test_broken_weights_are_named(gpt2, load, tmp_path, content):
    (tmp_path / "hub/model.safetensors").write_bytes(content)
    with pytest.raises(SourceError, match="hub/model.safetensors"):
        load("hub")


def test_missing_and_mismatched_tensors_are_counted(gpt2, load, tmp_path):
    file = tmp_path / "hub/model.safetensors"
    state = load_file(file)
    state["transformer.wpe.weight"] = torch.zeros(3, 8)
    state["odd"] = state.pop("transformer.ln_f.weight")
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(SourceError) as caught:
        load("hub")
    text = str(caught.value)
    assert "1 missing in the file: transformer.ln_f.weight" in text
    assert "1 unexpected in the file: odd" in text
    assert "transformer.wpe.weight 3x8 for 16x8" in text


def test_tensors_that_are_not_used_are_said(gpt2, load, tmp_path):
    file = tmp_path / "hub/model.safetensors"
    save_file({**load_file(file), "odd": torch.zeros(1)}, file, metadata={"format": "pt"})
    assert load("hub").weights == "model.safetensors (1 of its tensors not used)"


def test_a_head_that_the_weights_do_not_have_is_not_drawn(gpt2, load, tmp_path):
    change(tmp_path / "hub", architectures=["GPT2ForSequenceClassification"])
    with pytest.raises(SourceError, match="1 missing in the file: score.weight"):
        load("hub")


@pytest.mark.parametrize(
    ("model_type", "values", "name"),
    [
        ("gpt2", GPT2, "GPT2LMHeadModel"),
        ("bert", BERT, "BertForMaskedLM"),
        ("bert", {**BERT, "is_decoder": True}, "BertLMHeadModel"),
        ("bart", BART, "BartForConditionalGeneration"),
        ("vit", {**BERT, "image_size": 8, "patch_size": 4}, "ViTForImageClassification"),
    ],
)
def test_without_architectures_transformers_mappings_decide(write, load, model_type, values, name):
    write("hub/config.json", {"model_type": model_type, **values})
    assert type(load("hub").model).__name__ == name


def test_without_a_model_type_the_class_knows_its_config(write, load):
    write("hub/config.json", {"architectures": ["GPT2Model"], **GPT2})
    assert type(load("hub").model).__name__ == "GPT2Model"


def test_another_config_replaces_the_one_in_the_folder(gpt2, load, write, tmp_path):
    (tmp_path / "hub/model.safetensors").unlink()
    other = write(
        "b.json", {"model_type": "gpt2", **GPT2, "n_layer": 2, "expect_fail": {"a": "why"}}
    )
    loaded = load("hub", config=other)
    assert len(loaded.model.transformer.h) == 2
    assert loaded.expect_fail == {"a": "why"}


def test_a_task_in_the_config_can_be_read(write, load):
    write("hub/config.json", {"model_type": "gpt2", **GPT2, "task": "causal_lm"})
    assert load("hub").config["task"] == "causal_lm"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"architectures": ["GPT2LMHeadModl"]}, "did you mean GPT2LMHeadModel"),
        ({"architectures": ["GPT2Config"]}, "no model class 'GPT2Config'"),
        ({"architectures": ["pipeline"]}, "no model class 'pipeline'"),
        ({"architectures": "GPT2LMHeadModel"}, "must be a list"),
        ({"architectures": [3]}, "must be a list"),
        ({"architectures": []}, "neither architectures nor model_type"),
        ({"model_type": "gpt22"}, "no 'gpt22' .did you mean gpt2"),
        ({"model_type": ["gpt2"]}, "key model_type"),
        ({"model_type": "gpt2", "vocab_size": -1}, "key vocab_size: must be"),
        ({"model_type": "gpt2", "n_embd": "wide"}, "is refused by GPT2Config"),
        ({"model_type": "gpt2", "expect_fail": {"a": ""}}, "key expect_fail"),
        ({"model_type": "gpt2", "auto_map": {"AutoModel": "m.Net"}}, "there is no m.py beside"),
        ({"model_type": "gpt2", "auto_map": ["m.Net"]}, "key auto_map: must be an object"),
        (
            {"model_type": "gpt2", "auto_map": {"AutoModel": "../m.Net"}},
            "auto_map.AutoModel: must",
        ),
        ({"model_type": "gpt2", "auto_map": {"AutoModel": 3}}, "auto_map.AutoModel: must name"),
        ({"model_type": "gpt2", "attn_implementation": "a/kernel"}, "'a/kernel' is a kernel of"),
    ],
)
def test_a_config_that_names_no_model(write, load, values, text):
    write("hub/config.json", values)
    with pytest.raises(SourceError, match=text) as caught:
        load("hub")
    assert len(str(caught.value).splitlines()) <= 12


def test_what_the_constructor_raises_comes_through(write, load):
    write("hub/config.json", {"model_type": "gpt2", **GPT2, "n_head": 3})
    with pytest.raises(ValueError, match="divisible"):
        load("hub")


@pytest.mark.parametrize("name", ["tf_model.h5", "other.safetensors", "net.gguf"])
def test_weights_in_another_form_are_not_passed_over(write, load, name):
    write("hub/config.json", {"model_type": "gpt2", **GPT2})
    write(f"hub/{name}", b"x")
    with pytest.raises(SourceError, match=f"not read here: {name}"):
        load("hub")


def test_an_adapter_is_no_model(write, load):
    write("hub/config.json", {"model_type": "gpt2", **GPT2})
    write("hub/adapter_config.json", {})
    with pytest.raises(SourceError, match="is an adapter"):
        load("hub")


def test_named_weights(gpt2, load, tmp_path):
    torch.save(gpt2.state_dict(), tmp_path / "w.pt")
    (tmp_path / "hub/model.safetensors").write_bytes(b"broken")
    loaded = load("hub", weights=tmp_path / "w.pt")
    assert loaded.weights == "w.pt"
    assert torch.equal(loaded.model.transformer.wte.weight, gpt2.transformer.wte.weight)


def save_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")
    fast.save_pretrained(folder)


def test_a_tokenizer_in_the_folder(gpt2, load, tmp_path):
    save_tokenizer(tmp_path / "hub")
    assert load("hub").tokenizer("a b c")["input_ids"] == [0, 1, 2]


def test_a_broken_tokenizer_is_a_warning(gpt2, load, tmp_path):
    (tmp_path / "hub/tokenizer.json").write_text("{")
    with pytest.warns(SourceWarning, match="used without it"):
        assert load("hub").tokenizer is None


@pytest.mark.parametrize("name", ["tok", "tok/tokenizer.json"])
def test_a_named_tokenizer(gpt2, load, tmp_path, name, write):
    save_tokenizer(tmp_path / "tok")
    write("net.py", "from torch import nn\nclass Net(nn.Module): pass\n")
    for spec in ("hub", "net.py"):
        tokenizer = load(spec, tokenizer=tmp_path / name).tokenizer
        assert tokenizer("a b")["input_ids"] == [0, 1]


def test_a_named_tokenizer_that_cannot_be_loaded(gpt2, load, write, tmp_path):
    write("tok/tokenizer.json", "{")
    for name in ("tok", "tok/tokenizer.json"):
        with pytest.raises(SourceError, match="no tokenizer that can be loaded"):
            load("hub", tokenizer=tmp_path / name)
    with pytest.raises(SourceError, match="no tokenizer at"):
        load("hub", tokenizer=tmp_path / "gone")


def test_loading_says_nothing(gpt2, load, capfd):
    load("hub")
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()


@pytest.fixture
def with_code(write):
    """A folder whose code lies beside its config."""
    for name, content in remote_code.FILES.items():
        write(f"own/{name}", content)


def run(loaded):
    with loaded.scope:
        return loaded.model(input_ids=torch.tensor([[1, 2]])).logits


def test_code_in_a_folder_of_ones_own_runs(with_code, load, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    loaded = load("own")
    assert not [name for name in sys.modules if "tiny" in name]
    assert type(loaded.model).__name__ == "Tiny"
    assert type(loaded.model.config).__name__ == "TinyConfig"
    assert (loaded.weights, loaded.config.width) == ("random (seed 0)", 8)
    assert loaded.location == (str(tmp_path / "own/modeling_tiny.py"), 12)
    assert run(loaded).shape == (1, 2, 20)
    assert not [name for name in sys.modules if "tiny" in name]
    there = {path.relative_to(tmp_path / "own").as_posix() for path in tmp_path.rglob("*.*")}
    assert there == set(remote_code.FILES)


def test_code_in_a_folder_with_weights(with_code, load, tmp_path):
    one = load("own", seed=3)
    with one.scope:
        one.model.save_pretrained(tmp_path / "saved")
    state = load_file(tmp_path / "saved/model.safetensors")
    save_file(state, tmp_path / "own/model.safetensors", metadata={"format": "pt"})
    two = load("own")
    assert two.weights == "model.safetensors"
    assert torch.equal(run(one), run(two))


def test_changed_code_is_what_runs_next(with_code, load, write):
    one = load("own")
    write("own/parts/late.py", "scale = 4.0\n")
    two = load("own")
    assert torch.equal(run(one) * 2, run(two))
    assert torch.equal(run(one) * 2, run(two))


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("modeling_tiny.py", "class Tinny: pass", "modeling_tiny.py has no class Tiny .*Tinny"),
        ("modeling_tiny.py", "from .gone import x", "modeling_tiny.py:1 imports gone.py, which"),
        ("modeling_tiny.py", "import flash_attn_none", "py:1 imports 'flash_attn_none', which"),
        ("modeling_tiny.py", "def f(:", "modeling_tiny.py:1:.* not valid Python"),
        ("modeling_tiny.py", "Tiny = 3", "modeling_tiny.Tiny is no model class"),
        ("configuration_tiny.py", "TinyConfig = dict", "is refused by dict"),
    ],
)
def test_code_that_gives_no_model(with_code, load, write, name, content, text):
    write(f"own/{name}", content)
    with pytest.raises(SourceError, match=text) as caught:
        load("own")
    assert len(str(caught.value).splitlines()) <= 12


@pytest.mark.parametrize("weights", [False, True])
def test_what_the_code_raises_comes_through(with_code, load, write, weights):
    write("own/parts/head.py", "import torch\nclass Head(torch.nn.Module):\n    x = 1 / 0\n")
    if weights:
        save_file({"a": torch.zeros(1)}, write("own/model.safetensors", b""))
    with pytest.raises(ZeroDivisionError):
        load("own")


def test_what_a_constructor_raises_comes_through_with_weights(with_code, load, write):
    write(
        "own/parts/head.py",
        "import torch\nclass Head(torch.nn.Module):\n    def __init__(self, *_): 1 / 0\n",
    )
    save_file({"a": torch.zeros(1)}, write("own/model.safetensors", b""), {"format": "pt"})
    with pytest.raises(ZeroDivisionError):
        load("own")


def test_code_of_another_repository_is_not_fetched_for_a_folder(write, load):
    config = {**remote_code.CONFIG, "auto_map": {"AutoModel": "org/other--modeling_tiny.Tiny"}}
    write("own/config.json", config)
    with pytest.raises(SourceError, match="another repository, org/other, .*\n.*copy its Python"):
        load("own")


TOKENIZER = """
from transformers import PreTrainedTokenizerFast

class Own(PreTrainedTokenizerFast):
    mine = True
"""


@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json"])
def test_the_code_of_a_tokenizer(gpt2, load, tmp_path, write, place):
    save_tokenizer(tmp_path / "hub")
    write("hub/own.py", TOKENIZER)
    file = tmp_path / "hub" / place
    values = json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    file.write_text(json.dumps(values))
    loaded = load("hub")
    assert loaded.tokenizer.mine
    assert type(loaded.model).__name__ == "GPT2LMHeadModel"
    write("hub/own.py", "1 / 0")
    with pytest.warns(SourceWarning, match="tokenizer Own of .*: ZeroDivisionError"):
        assert load("hub").tokenizer is None


def test_a_shard_that_is_not_there_is_named(gpt2, load, write, tmp_path):
    (tmp_path / "hub/model.safetensors").unlink()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    write("hub/model.safetensors.index.json", index)
    save_file({"a": torch.zeros(1)}, tmp_path / "hub/model-1.safetensors")
    with pytest.raises(SourceError, match="names 1 of 2 files .* not there: model-2.safetensors"):
        load("hub")
