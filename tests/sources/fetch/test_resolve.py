"""From specs to accepted files: what is fetched, when, and what tb.lock says afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gisthost import MODEL, OLDER, REVISION, Host, answer

from pytest_transformer_validate.errors import SourceError, SpecError
from pytest_transformer_validate.sources.base import LoadOptions
from pytest_transformer_validate.sources.fetch.consent import Terms
from pytest_transformer_validate.sources.fetch.http import Limits
from pytest_transformer_validate.sources.fetch.lock import Lock
from pytest_transformer_validate.sources.fetch.resolve import resolve_all
from pytest_transformer_validate.sources.fetch.source import Fetched, Resolution
from pytest_transformer_validate.sources.fetch.store import Store
from pytest_transformer_validate.sources.fetch.tree import Tree
from pytest_transformer_validate.sources.gist.api import Api
from pytest_transformer_validate.sources.gist.source import GistSource

SHA = Tree.of({"model.py": MODEL.encode()}).sha256
NEWER = MODEL + "# newer\n"
SHA_NEWER = Tree.of({"model.py": NEWER.encode()}).sha256

Resolve = Callable[..., Resolution]


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "tb.lock"


@pytest.fixture
def resolve(host: Host, tmp_path: Path, lock: Path) -> Resolve:
    """Resolve the Gist of this test as a run would; ``end`` is typed after its id."""

    def resolve_it(*trust: str, end: str = "", **terms: Any) -> Resolution:
        source = GistSource.parse(f"gist:{host.gist_id}{end}", Api.of(host.url))
        source = replace(source, limits=Limits(seconds=10, wait=0, tries=1))
        store = Store(tmp_path / "cache")
        (done,) = resolve_all([source], Terms.of(trust, **terms), lock, store)
        assert isinstance(done, GistSource)
        assert done.resolution is not None
        return done.resolution

    return resolve_it


def refused(resolve: Resolve, *trust: str, **given: Any) -> str:
    with pytest.raises(SpecError) as caught:
        resolve(*trust, **given)
    return str(caught.value)


def locked(lock: Path) -> dict[str, str]:
    """Names in the lock and their revisions."""
    return {name: pin.revision for name, pin in Lock.read(lock).pins.items()}


def test_c16_without_consent_nothing_is_accepted(host, resolve, lock):
    """C16."""
    host.serve()
    text = refused(resolve)
    assert f"--tb-trust={SHA}" in text
    assert not lock.exists()


def test_new_accepts_and_records_and_then_nobody_is_asked(host, resolve, lock):
    host.serve()
    first = resolve("new")
    assert first.accepted == "accepted by --tb-trust, written to tb.lock"
    assert locked(lock) == {f"gist:{host.gist_id}": REVISION}
    count = len(host.requests)
    again = resolve()
    assert (again.pin, again.cached, again.accepted) == (first.pin, True, "accepted in tb.lock")
    assert len(host.requests) == count


def test_the_hash_that_was_printed_accepts(host, resolve, lock):
    host.serve()
    refused(resolve)
    assert resolve(SHA).pin.tree.sha256 == SHA
    assert locked(lock) == {f"gist:{host.gist_id}": REVISION}
    assert len(host.requests) == 1


def test_a_gist_that_moved_on_stays_as_accepted(host, resolve, lock):
    host.serve(revision=OLDER)
    resolve("new")
    host.serve({"model.py": NEWER})
    assert resolve().pin.revision == OLDER
    assert resolve("new").pin.revision == REVISION
    assert locked(lock) == {f"gist:{host.gist_id}": REVISION}
    assert resolve().pin.tree.sha256 == SHA_NEWER


def test_c17_another_content_at_the_accepted_revision_is_refused(host, resolve, lock, tmp_path):
    """C17, D26: a host that says something else about a revision is not believed."""
    host.serve()
    resolve("new")
    before = lock.read_bytes()
    for folder in (tmp_path / "cache/trees").iterdir():
        folder.chmod(0o700)
        (folder / "model.py").unlink()
    host.serve({"model.py": NEWER})
    text = refused(resolve)
    for part in (SHA, SHA_NEWER, "model.py (changed)", f"--tb-trust={SHA_NEWER}"):
        assert part in text
    assert lock.read_bytes() == before


def test_c17_a_typed_revision_with_another_content_is_refused(host, resolve, lock):
    """C17."""
    host.serve(revision=OLDER)
    resolve("new")
    host.serve({"model.py": NEWER})
    text = refused(resolve, end=f"@{REVISION}")
    assert f"--tb-model=gist:{host.gist_id}@{REVISION} --tb-trust={SHA_NEWER}" in text
    resolve(SHA_NEWER, end=f"@{REVISION}")
    name = f"gist:{host.gist_id}"
    assert locked(lock) == {name: OLDER, f"{name}@{REVISION}": REVISION}
    assert resolve(end=f"@{REVISION}").cached
    assert resolve().pin.revision == OLDER


def test_a_typed_revision_with_the_accepted_content_runs(host, resolve, lock):
    host.serve(revision=OLDER)
    resolve("new")
    host.serve()
    assert resolve(end=f"@{REVISION}").accepted == "accepted in tb.lock"
    assert locked(lock) == {f"gist:{host.gist_id}": OLDER}


def test_the_hash_of_a_newer_content_moves_the_lock(host, resolve, lock):
    host.serve(revision=OLDER)
    resolve("new")
    host.serve({"model.py": NEWER})
    assert resolve(SHA_NEWER).pin.revision == REVISION
    assert locked(lock) == {f"gist:{host.gist_id}": REVISION}


def test_a_typed_hash_that_no_model_has_is_a_mistake(host, resolve, lock):
    host.serve()
    resolve("new")
    before = lock.read_bytes()
    text = refused(resolve, "0" * 64)
    assert "no fetched model of this run has it" in text
    assert SHA in text
    assert lock.read_bytes() == before
    assert resolve("0" * 64, typed=False).accepted == "accepted in tb.lock"


def test_in_ci_the_lock_is_only_read(host, resolve, lock):
    """CI mode."""
    host.serve()
    assert "CI is set" in refused(resolve, ci=True)
    assert resolve(SHA, ci=True).accepted == "accepted by --tb-trust, not recorded"
    assert not lock.exists()
    resolve("new")
    before = lock.read_bytes()
    assert resolve(ci=True).accepted == "accepted in tb.lock"
    host.serve({"model.py": NEWER})
    assert resolve(SHA_NEWER, ci=True).pin.tree.sha256 == SHA_NEWER
    assert lock.read_bytes() == before


def test_d25_a_hash_that_was_fetched_before_costs_no_request(host, resolve):
    """D25: the second run uses the cache, also without a lock."""
    host.serve()
    resolve(SHA, ci=True)
    host.gist(answer({}, 429))
    count = len(host.requests)
    assert resolve(SHA, ci=True).cached
    assert resolve(SHA, ci=True, end=f"@{REVISION}").cached
    assert len(host.requests) == count


def test_d25_a_limit_at_a_pinned_copy_is_not_met(host, resolve):
    host.serve()
    resolve("new")
    host.gist(answer({}, 429, {"Retry-After": "99"}))
    assert resolve().error is None
    assert "takes no more requests" in (resolve("new").error or "")


def test_d24_d27_a_pinned_copy_needs_nobody(host, resolve):
    """D24, D27: deleted or unreachable, the cached copy runs; the header says (cached)."""
    host.serve()
    resolve("new")
    host.gist(answer({}, 404))
    host.gist(answer({}, 404), revision=REVISION)
    count = len(host.requests)
    for terms in ({}, {"offline": True}):
        assert resolve(**terms).cached
    assert len(host.requests) == count


def test_d28_a_copy_that_was_changed_is_fetched_again(host, resolve, tmp_path):
    """D28."""
    host.serve()
    folder = Path(resolve("new").folder or "")
    folder.chmod(0o700)
    (folder / "model.py").chmod(0o600)
    (folder / "model.py").write_text("import os; os._exit(0)")
    count = len(host.requests)
    again = resolve()
    assert not again.cached
    assert (folder / "model.py").read_text() == MODEL
    assert [request["path"] for request in host.requests[count:]] == [
        f"/gists/{host.gist_id}/{REVISION}"
    ]


def test_d28_offline_a_changed_copy_is_an_error(host, resolve):
    host.serve()
    folder = Path(resolve("new").folder or "")
    folder.chmod(0o700)
    (folder / "torch.py").write_text("")
    count = len(host.requests)
    error = resolve(offline=True).error or ""
    assert "not in the cache" in error
    assert "--tb-offline" in error
    assert len(host.requests) == count


def test_offline_nothing_is_asked(host, resolve):
    host.serve()
    text = refused(resolve, offline=True)
    assert "tb.lock does not know it, and --tb-offline forbids" in text
    assert "not in the cache" in (resolve(SHA, offline=True).error or "")
    assert host.requests == []


def test_to_list_checks_nothing_is_asked_or_written(host, resolve, lock, tmp_path):
    host.serve()
    assert "--tb-trust=new" in refused(resolve, lists=True)
    assert resolve("new", lists=True).pin is None
    assert not lock.exists()
    assert not (tmp_path / "cache/trees").exists() or host.requests == []
    resolve("new")
    count = len(host.requests)
    assert resolve(lists=True).pin.revision == REVISION
    assert len(host.requests) == count


def test_c18_what_the_host_does_not_give_is_an_error_of_the_model(host, resolve, lock):
    """C18: no consent is needed to hear that there is nothing."""
    known = resolve()
    assert known.pin is None
    assert (known.error or "").startswith(f"gist:{host.gist_id}: not found")
    assert not lock.exists()


def test_one_model_without_files_does_not_keep_others(host, tmp_path, lock):
    other = Host(host.url)
    host.serve()
    sources = [
        GistSource.parse(f"gist:{each.gist_id}", Api.of(host.url)) for each in (other, host)
    ]
    store = Store(tmp_path / "cache")
    bad, good = resolve_all(sources, Terms.of(["new"]), lock, store)
    assert bad.resolution is not None
    assert good.resolution is not None
    assert bad.resolution.error is not None
    assert good.resolution.error is None
    assert locked(lock) == {f"gist:{host.gist_id}": REVISION}
    with pytest.raises(SourceError, match="not found"):
        bad.load(LoadOptions())


def test_c31_another_owner_than_accepted_is_a_note(host, resolve, tmp_path):
    """C31: transferred."""
    host.serve()
    resolve("new")
    for folder in (tmp_path / "cache/trees").iterdir():
        folder.chmod(0o700)
        (folder / "model.py").unlink()
    host.serve(owner="hubot")
    known = resolve()
    assert known.error is None
    assert known.remarks == (
        "it belongs to hubot now, and belonged to octocat when it was accepted",
    )


def test_an_excuse_of_its_own_is_a_note(host, resolve):
    config = json.dumps({"expect_fail": {"causality": "because"}})
    host.serve({"model.py": MODEL, "config.json": config})
    (remark,) = resolve("new").remarks
    assert "expect_fail in its config.json is ignored" in remark


def test_the_provenance_is_said(host, tmp_path, lock):
    host.serve()
    source = GistSource.parse(f"gist:{host.gist_id}", Api.of(host.url))
    store = Store(tmp_path / "cache")
    (done,) = resolve_all([source], Terms.of(["new"]), lock, store)
    assert done.id == f"gist:{host.gist_id}@{REVISION[:12]}"
    assert done.provenance() == (
        f"revision {REVISION} by octocat, sha256 {SHA}, accepted by --tb-trust, written to tb.lock"
    )
    (again,) = resolve_all([source], Terms.of([]), lock, store)
    assert again.provenance().endswith("accepted in tb.lock (cached)")
    assert source.provenance() == ""


def test_what_others_accepted_meanwhile_is_kept(host, resolve, lock):
    host.serve()
    resolve("new")
    name = f"gist:{host.gist_id}"
    pin = Lock.read(lock).pins[name]

    class Overtaken(GistSource):
        def fetch(self, revision: str | None, store: Store) -> Fetched:
            Lock.read(lock).add("gist:meanwhile", pin).write()
            return super().fetch(revision, store)

    source = replace(Overtaken.parse(name, Api.of(host.url)), name="gist:other")
    resolve_all([source], Terms.of(["new"]), lock)
    assert set(locked(lock)) == {name, "gist:meanwhile", "gist:other"}


def test_a_broken_lock_stops_before_anything_is_asked(host, resolve, lock):
    lock.write_text("<<<<<<< HEAD")
    assert "not valid JSON" in refused(resolve)
    assert host.requests == []
