"""A model of the Hub from its name to its outputs: accepted, pinned, checked before it runs."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pytest_transformer_validate import validate
from pytest_transformer_validate.errors import SourceError, SpecError
from pytest_transformer_validate.sources.base import LoadOptions
from pytest_transformer_validate.sources.fetch.consent import Terms
from pytest_transformer_validate.sources.fetch.lock import Lock
from pytest_transformer_validate.sources.fetch.resolve import resolve_all
from pytest_transformer_validate.sources.fetch.source import Resolution
from pytest_transformer_validate.sources.fetch.store import Store
from pytest_transformer_validate.sources.hub import source as source_module
from pytest_transformer_validate.sources.hub.process import answer
from pytest_transformer_validate.sources.hub.source import HubSource
from tests.sources import remote_code
from tests.sources.hub.conftest import CONFIG

DATA = {"config.json": CONFIG | {"expect_fail": {"causality": "so"}, "trust_remote_code": True}}
CODE = remote_code.FILES | {"marker.py": ""}


@pytest.fixture(autouse=True)
def in_this_process(hub, monkeypatch):
    """What the other process does is done here, but where a test is about that process."""
    monkeypatch.setattr(source_module, "ask", answer)


@pytest.fixture
def resolve(hub, tmp_path):
    """Resolve a spec as the process that controls a run does, and hand it to a worker."""

    def resolve_spec(spec=None, trust=(), **terms):
        source = HubSource.parse(spec or f"hf:{hub.name}")
        terms = Terms.of(trust, **{"typed": True, **terms})
        store = Store(tmp_path / "store")
        (done,) = resolve_all([source], terms, tmp_path / "tb.lock", store)
        told = json.loads(json.dumps(done.resolution.to_json()))
        return replace(source, resolution=None).resolved(Resolution.from_json(told))

    return resolve_spec


@pytest.fixture
def lock(tmp_path):
    return lambda: Lock.read(tmp_path / "tb.lock").pins


def run(loaded):
    with loaded.scope:
        return loaded.model(input_ids=torch.tensor([[1, 2]])).logits


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The files of a small model with weights and a tokenizer, as bytes."""
    from tokenizers import Tokenizer, models

    folder = tmp_path_factory.mktemp("saved")
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**CONFIG))
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")
    fast.save_pretrained(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_data_needs_no_consent(hub, resolve, lock):
    commit = hub.push(DATA)
    source = resolve()
    assert source.id == f"hf:{hub.name}@{commit[:12]}"
    assert source.fetched
    assert lock() == {}
    assert f"revision {commit} by {hub.org}" in source.provenance()
    assert "data without code" in source.provenance()
    assert "expect_fail in its config.json is ignored" in source.provenance()
    before = hub.requests()
    loaded = source.load(LoadOptions(seed=2))
    assert hub.requests() == before
    assert type(loaded.model).__name__ == "GPT2LMHeadModel"
    assert loaded.weights == "random (seed 2)"
    assert loaded.expect_fail == {}
    assert loaded.origin == (
        f"Hugging Face Hub {hub.name}, revision {commit}, class GPT2LMHeadModel"
    )


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
def test_weights_and_tokenizer(hub, resolve, saved, form):
    other = {"model.safetensors", "pytorch_model.bin"} - {form}
    hub.push({name: data for name, data in saved.items() if name not in other})
    loaded = resolve().load(LoadOptions())
    assert loaded.weights == form
    assert loaded.tokenizer("a")["input_ids"] == [0]


def test_safetensors_come_first(hub, resolve, saved):
    hub.push(saved)
    assert resolve().load(LoadOptions()).weights == "model.safetensors"
    assert "pytorch_model.bin" not in hub.files()


class Malicious:
    def __reduce__(self):
        return sys.exit, (3,)


def test_a_pickle_with_code_is_not_run(hub, resolve, tmp_path):
    torch.save({"a": Malicious()}, tmp_path / "x.bin")
    hub.push({"config.json": CONFIG, "pytorch_model.bin": (tmp_path / "x.bin").read_bytes()})
    with pytest.raises(SourceError, match="pytorch_model.bin cannot be loaded: .*GLOBAL"):
        resolve().load(LoadOptions())


@pytest.mark.parametrize(("content", "text"), [(b"", "too small"), (b"\xff" * 64, "too large")])
def test_weights_that_are_none(hub, resolve, content, text):
    hub.push({"config.json": CONFIG, "model.safetensors": content})
    with pytest.raises(SourceError, match=f"model.safetensors is no readable .* {text}"):
        resolve().load(LoadOptions())


def test_weights_that_do_not_fit_are_counted(hub, resolve, saved, tmp_path):
    place = tmp_path / "w.safetensors"
    place.write_bytes(saved["model.safetensors"])
    state = load_file(place)
    state["transformer.wte.weight"] = torch.zeros(3, 3)
    save_file({**state, "odd": torch.zeros(1)}, place, metadata={"format": "pt"})
    hub.push({"config.json": {**CONFIG, "n_layer": 2}, "model.safetensors": place.read_bytes()})
    with pytest.raises(SourceError) as caught:
        resolve().load(LoadOptions())
    lines = str(caught.value).splitlines()
    assert lines[1].startswith("  12 missing in the file: transformer.h.1.attn.c_attn.bias, ")
    assert lines[1].endswith(" and 7 more")
    assert lines[2:] == [
        "  1 unexpected in the file: odd",
        "  1 of another shape: transformer.wte.weight 3x3 for 20x8",
    ]


def test_code_waits_for_consent(hub, resolve, lock, tmp_path):
    commit = hub.push(CODE | {"model.safetensors": b"large"})
    with pytest.raises(SpecError) as caught:
        resolve()
    text = str(caught.value)
    assert f"hf:{hub.name} is code from another machine that nobody has accepted yet" in text
    assert f"owner     {hub.org}" in text
    assert f"revision  {commit}" in text
    assert f"read it   {hub.url}/{hub.name}/tree/{commit}" in text
    assert "model.safetensors" not in hub.files()
    sha256 = text.rpartition("--tb-trust=")[2].split()[0]
    assert lock() == {}
    hub.push(CODE)
    source = resolve(f"hf:{hub.name}", trust=[sha256])
    assert lock()[f"hf:{hub.name}"].tree.sha256 == sha256
    assert source.resolution.accepted == "accepted by --tb-trust, written to tb.lock"


def test_accepted_code_runs(hub, resolve, lock):
    commit = hub.push(CODE)
    source = resolve(trust=["new"])
    pin = lock()[f"hf:{hub.name}"]
    assert pin.revision == commit
    assert set(pin.tree.files) == set(CODE)
    loaded = source.load(LoadOptions())
    assert type(loaded.model).__name__ == "Tiny"
    assert run(loaded).shape == (1, 2, 20)
    assert loaded.location[0].endswith(f"{pin.tree.sha256}/modeling_tiny.py")
    assert not [name for name in sys.modules if "tiny" in name]
    before = hub.requests()
    assert torch.equal(run(resolve().load(LoadOptions())), run(loaded))
    assert torch.equal(run(resolve(offline=True).load(LoadOptions())), run(loaded))
    assert hub.requests() == before


def test_the_lock_holds_when_the_branch_moves(hub, resolve):
    commit = hub.push(CODE)
    resolve(trust=["new"])
    newer = hub.push(CODE | {"parts/late.py": "scale = 3.0"})
    assert resolve().resolution.pin.revision == commit
    with pytest.raises(SpecError, match=r"(?s)is not what was accepted.*late.py \(changed\)"):
        resolve(f"hf:{hub.name}@{newer}")
    assert resolve(trust=["new"]).resolution.pin.revision == newer


def test_content_that_changed_under_its_commit(hub, resolve, tmp_path):
    """A Hub, or who sits in between, that gives another content for the commit in tb.lock."""
    commit = hub.push(CODE)
    resolve(trust=["new"])
    late = hub.root / hub.name / commit / "parts/late.py"
    late.write_text("scale = 3.0\n")
    for place in ("store", "hf"):
        (tmp_path / place).rename(tmp_path / f"old {place}")
    import huggingface_hub._tree_cache as remembered

    remembered._IN_MEMORY_TREE_CACHE.clear()
    with pytest.raises(SpecError, match=r"late.py \(changed\)"):
        resolve()


def test_code_that_was_changed_on_this_machine_never_runs(hub, resolve):
    hub.push(CODE)
    source = resolve(trust=["new"])
    late = Path(source.resolution.folder) / "parts/late.py"
    late.parent.chmod(0o700)
    late.chmod(0o600)
    late.write_text("raise SystemExit")
    with pytest.raises(SourceError, match="were changed after they had been checked"):
        source.load(LoadOptions())
    assert resolve().load(LoadOptions())


def test_code_of_another_repository_is_pinned_with_it(hub, resolve, tmp_path):
    """Row 61: both commits are named, recorded, and kept when the other repository moves on."""
    other = hub.push(remote_code.CODE, name="code")
    names = {
        key: f"{hub.org}/code--{name}" for key, name in CODE["config.json"]["auto_map"].items()
    }
    hub.push({"config.json": {**remote_code.CONFIG, "auto_map": names}})
    with pytest.raises(SpecError, match=f"{hub.org}/code@{other}/configuration_tiny.py"):
        resolve()
    source = resolve(trust=["new"])
    loaded = source.load(LoadOptions())
    assert run(loaded).shape == (1, 2, 20)
    hub.push(remote_code.CODE | {"parts/late.py": "scale = 3.0"}, name="code")
    store = Path(source.resolution.folder).parent
    store.rename(tmp_path / "gone")
    assert resolve(offline=True).resolution.pin == source.resolution.pin
    store.rename(tmp_path / "gone too")
    again = resolve()
    assert again.resolution.pin.tree == source.resolution.pin.tree
    assert torch.equal(run(again.load(LoadOptions())), run(loaded))


def test_a_typed_branch_is_recorded_by_its_name(hub, resolve, lock):
    old = hub.push(CODE)
    hub.change(refs={"main": old, "v1": old})
    resolve(f"hf:{hub.name}@v1", trust=["new"])
    assert list(lock()) == [f"hf:{hub.name}@v1"]
    assert resolve(f"hf:{hub.name}@v1").id == f"hf:{hub.name}@{old[:12]}"


def test_what_cannot_be_had_is_an_error_of_the_model(hub, resolve, monkeypatch):
    source = resolve(f"hf:{hub.org}/gone")
    assert source.id == f"hf:{hub.org}/gone"
    with pytest.raises(SourceError, match=f"^hf:{hub.org}/gone: not found on http"):
        source.load(LoadOptions())
    hub.push(DATA, faults=[["HEAD .*json", 503]])
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(SourceError, match="did not answer .503"):
        resolve().load(LoadOptions())


def test_offline(hub, resolve):
    commit = hub.push(DATA)
    with pytest.raises(SourceError, match="not in the cache, and nothing may be fetched"):
        resolve(offline=True).load(LoadOptions())
    resolve()
    before = hub.requests()
    for typed in ("", f"@{commit}", f"@{commit[:9]}"):
        source = resolve(f"hf:{hub.name}{typed}", offline=True)
        assert source.provenance().partition("\n")[0].endswith("(cached)")
        assert source.load(LoadOptions()).weights == "random (seed 0)"
    assert hub.requests() == before


def test_listing_asks_nobody(hub, resolve):
    hub.push(CODE)
    source = resolve(lists=True)
    assert source.id == f"hf:{hub.name}"
    assert hub.requests() == []
    with pytest.raises(SourceError, match="nothing was to run"):
        source.load(LoadOptions())


def test_a_kernel_in_a_config_is_code_that_nobody_accepted(hub, resolve):
    hub.push({"config.json": {**CONFIG, "attn_implementation": "org/kernel"}})
    with pytest.raises(SourceError, match="'org/kernel' is a kernel of the Hugging Face Hub"):
        resolve().load(LoadOptions())


def test_without_pytest(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hub.push(DATA)
    assert validate(f"hf:{hub.name}", checks="load").passed
    hub.push(CODE)
    with pytest.raises(SpecError) as caught:
        validate(f"hf:{hub.name}")
    sha256 = str(caught.value).rpartition("trust=")[2].strip("'")
    assert validate(f"hf:{hub.name}", trust=sha256, checks="load").passed
    assert not (tmp_path / "tb.lock").exists()
