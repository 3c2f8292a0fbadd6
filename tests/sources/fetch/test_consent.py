"""Who accepted what: a decision without input and output, in exact words."""

from __future__ import annotations

import pytest

from pytest_transformer_validate.errors import SpecError
from pytest_transformer_validate.sources.fetch.consent import Terms, decide, require_any
from pytest_transformer_validate.sources.fetch.tree import Pin, Tree

SPEC = "gist:" + "ab" * 16
OLD = Pin("a" * 40, "octocat", Tree.of({"model.py": b"x", "config.json": b"{}"}))
NEW = Pin("b" * 40, "octocat", Tree.of({"model.py": b"y", "config.json": b"{}"}))
SAME = Pin("c" * 40, "hubot", OLD.tree)


def refusal(pin, entry, terms, **given):
    with pytest.raises(SpecError) as caught:
        decide(SPEC, pin, entry, terms, **given)
    text = str(caught.value)
    assert len(text.splitlines()) <= 12
    return text


def test_c16_without_consent_everything_is_named_and_the_one_command():
    """C16: id, owner, revision, sha256 and the command that accepts it."""
    text = refusal(OLD, None, Terms.of([]), page="https://gist.github.com/ab")
    sha256 = OLD.tree.sha256
    for part in (SPEC, "octocat", OLD.revision, f"sha256    {sha256}", "https://gist"):
        assert part in text
    assert text.endswith(f"accept it: pytest --tb-model={SPEC} --tb-trust={sha256}")


def test_c17_a_changed_content_names_both_hashes_and_the_files():
    """C17: old and new sha256, changed files, the command that accepts it."""
    text = refusal(NEW, OLD, Terms.of([]))
    for part in (OLD.tree.sha256, NEW.tree.sha256, OLD.revision, NEW.revision):
        assert part in text
    assert "model.py (changed)" in text
    assert "config.json" not in text
    assert f"--tb-trust={NEW.tree.sha256}" in text


def test_c17_a_change_of_owner_is_named_too():
    text = refusal(Pin(NEW.revision, "hubot", NEW.tree), OLD, Terms.of([]))
    assert "octocat before, hubot now" in text


@pytest.mark.parametrize(
    ("pin", "entry", "terms", "records"),
    [
        (OLD, OLD, Terms.of([]), False),
        (OLD, OLD, Terms.of(["new"]), False),
        (SAME, OLD, Terms.of([]), False),
        (SAME, OLD, Terms.of(["new"]), True),
        (OLD, None, Terms.of(["new"]), True),
        (NEW, OLD, Terms.of(["new"]), True),
        (OLD, None, Terms.of([OLD.tree.sha256]), True),
        (OLD, None, Terms.of([OLD.tree.sha256.upper()]), True),
        (NEW, OLD, Terms.of([NEW.tree.sha256, "0" * 64]), True),
        (OLD, None, Terms.of([OLD.tree.sha256], ci=True), False),
        (OLD, OLD, Terms.of([], ci=True), False),
        (OLD, None, Terms.of([OLD.tree.sha256], recorded=False), False),
    ],
)
def test_what_may_run_and_what_is_recorded(pin, entry, terms, records):
    assert decide(SPEC, pin, entry, terms) is records


@pytest.mark.parametrize("entry", [None, OLD])
def test_another_hash_accepts_nothing(entry):
    assert "accept it:" in refusal(NEW, entry, Terms.of(["0" * 64]))


def test_in_ci_the_words_say_how_to_record_it():
    text = refusal(OLD, None, Terms.of([], ci=True))
    assert f"--tb-trust={OLD.tree.sha256}" in text
    assert "commit tb.lock" in text


def test_validate_is_told_its_own_way():
    text = refusal(OLD, None, Terms.of([], recorded=False))
    assert text.endswith(f"accept it with trust={OLD.tree.sha256!r}")


def test_a_spec_with_spaces_is_quoted_in_the_command():
    with pytest.raises(SpecError, match=r"pytest '--tb-model=a b; c' --tb-trust"):
        decide("a b; c", OLD, None, Terms.of([]))


@pytest.mark.parametrize(
    ("trust", "given", "words"),
    [
        (["newest"], {}, "must be new or a sha256"),
        (["a" * 63], {}, "must be new or a sha256"),
        ([""], {}, "must be new or a sha256"),
        (["new"], {"offline": True}, "--tb-offline and --tb-trust=new contradict"),
        (["new"], {"ci": True}, "where CI is set"),
        (["new"], {"typed": False}, "tb_trust in the ini file"),
    ],
)
def test_terms_that_mean_nothing_are_refused(trust, given, words):
    """C6 and CI mode."""
    with pytest.raises(SpecError, match=words):
        Terms.of(trust, **given)


@pytest.mark.parametrize("given", [{"offline": True}, {"lists": True}])
def test_without_the_content_missing_consent_is_found_too(given):
    with pytest.raises(SpecError, match=f"pytest --tb-model={SPEC} --tb-trust=new"):
        require_any(SPEC, None, Terms.of([], **given))
    require_any(SPEC, OLD, Terms.of([], **given))
    require_any(SPEC, None, Terms.of([OLD.tree.sha256], **given))
