"""Credentials, planted in the forms that they have, do not survive redaction; other words do."""

from __future__ import annotations

import json
import time

import pytest

from pytest_transformer_validate.redaction import REDACTED, redact, remember, secret_variables
from tests.credentials import HEX, MIXED, NAMED, PEM, PEM_END, TOKENS

FORMS = ("{}", "token={}", '"token": "{}"', "({})", "x:{}!", "['{}']", "prefix_{}", "<b>{}</b>")


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
def test_a_token_is_redacted_in_every_form(token):
    for form in FORMS:
        shown = redact(form.format(token))
        assert shown == form.format(REDACTED)


@pytest.mark.parametrize(("text", "value"), NAMED, ids=str)
def test_a_value_without_a_form_of_its_own_is_known_by_its_name(text, value):
    assert redact(text.format(value)) == text.format(REDACTED)


@pytest.mark.parametrize("text", [PEM + PEM_END, repr(PEM + PEM_END)[1:-1], PEM], ids=str)
def test_a_private_key_is_redacted_to_its_end(text):
    assert redact(f"before {text}") == f"before {REDACTED}"


def test_what_stands_before_the_host_of_a_url_is_redacted():
    for userinfo in ("user:pass", "x" * 40, "user:p@ss"):
        assert redact(f"at https://{userinfo}@host/path.") == f"at https://{REDACTED}@host/path."


@pytest.mark.parametrize(
    "text",
    [
        f"gist:{HEX[:32]}@{HEX}",
        "a sk-learn-compatible-estimators-pipeline",
        "hf_hub_download and gh_token, risk-averse-optimizers",
        "https://host/path?x=1 and a@b.c, see git@host:x/y",
        "-----BEGIN CERTIFICATE-----",
        "AKIAlike",
        "wandb is off",
        "max_new_tokens=12345678",
    ],
)
def test_other_words_stay(text):
    assert redact(text) == text


class TestVariables:
    @pytest.mark.parametrize(
        "name",
        [
            "HF_TOKEN",
            "WANDB_API_KEY",
            "AWS_PROFILE",
            "hf_token",
            "TOKEN",
            "DB_PASSWORD",
            "A_SECRET",
        ],
    )
    def test_their_values_are_redacted(self, monkeypatch, name):
        monkeypatch.setenv(name, "swordfish")
        assert redact("the swordfish!") == f"the {REDACTED}!"
        assert name in secret_variables()

    @pytest.mark.parametrize("name", ["KEYBOARD", "TOKENIZERS_PARALLELISM", "MONKEY", "XAWS_A"])
    def test_of_other_variables_they_stay(self, monkeypatch, name):
        monkeypatch.setenv(name, "swordfish")
        assert redact("the swordfish!") == "the swordfish!"
        assert name not in secret_variables()

    def test_short_ones_stay(self, monkeypatch):
        monkeypatch.setenv("A_KEY", "abcdefg")
        monkeypatch.setenv("B_KEY", "")
        remember(["short"])
        assert redact("abcdefg short") == "abcdefg short"

    @pytest.mark.parametrize("write", [repr, json.dumps, str], ids=["repr", "json", "str"])
    def test_they_are_found_as_programs_write_them(self, monkeypatch, write):
        monkeypatch.setenv("A_KEY", 'two words\\and "quotes"\tand é')
        assert REDACTED in redact(write('two words\\and "quotes"\tand é'))

    def test_lines_of_them_are_found_alone(self, monkeypatch):
        monkeypatch.setenv("A_KEY", f"first\n{MIXED}\nlast")
        assert redact(f"> {MIXED}") == f"> {REDACTED}"

    def test_a_longer_one_is_found_before_its_beginning(self, monkeypatch):
        monkeypatch.setenv("A_KEY", "swordfish")
        monkeypatch.setenv("B_KEY", "swordfishes")
        assert redact("swordfishes") == REDACTED

    def test_what_has_left_the_environment_is_remembered(self):
        remember(["swordfish"])
        assert redact("the swordfish!") == f"the {REDACTED}!"


def test_it_takes_no_time_that_grows_with_the_square():
    hostile = ["sk-", "wandb", "wandb_key=", "x://", "a://b:", "hf_", "secret_access_key="]
    hostile += ["-----BEGIN " + "PRIVATE KEY-----"]
    started = time.perf_counter()
    for piece in hostile:
        redact(piece * (2**16 // len(piece)))
    assert time.perf_counter() - started < 4
