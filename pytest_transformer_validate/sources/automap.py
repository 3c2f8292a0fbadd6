"""``auto_map`` of a config.json: which code that lies beside the weights makes the model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.hub.name import is_repository
from pytest_transformer_validate.sources.wording import clipped

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG = "AutoConfig"
TOKENIZER = "AutoTokenizer"
# As for a model of transformers itself: what can be judged most, first.
HEADS = (
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModelForImageClassification",
)
_BASE = "AutoModel"
_NAME = r"[^\W\d]\w*"
_REFERENCE = re.compile(
    rf"(?:(?P<repository>[\w.-]+/[\w.-]+)--)?(?P<module>{_NAME}(?:\.{_NAME})*)\.(?P<name>{_NAME})"
)


class Reference(NamedTuple):
    """A class in a module; ``repository`` (``org/name``) where that lies in another one."""

    repository: str | None
    module: str
    name: str


def references(values: Mapping[str, Any], place: str) -> dict[str, list[Reference]]:
    """The classes that ``auto_map`` names, by the automatic class that they stand for.

    Empty without the key. Raises SourceError for one that names no classes; ``place`` is the file
    that ``values`` are from.
    """
    found = values.get("auto_map")
    if not found:
        return {}
    if not isinstance(found, dict):
        raise SourceError(
            f'{place}, key auto_map: must be an object, {{"AutoModel": "modeling.Net"}}, given '
            f"{clipped(repr(found), 60)}"
        )
    return {key: list(_all(value, key, place)) for key, value in found.items()}


def _all(value: Any, key: str, place: str) -> list[Reference]:
    """A tokenizer may name two classes, of which one may be null."""
    texts = value if isinstance(value, list) and key == TOKENIZER else [value]
    return [_one(text, key, place) for text in texts if text is not None]


def _one(text: Any, key: str, place: str) -> Reference:
    match = _REFERENCE.fullmatch(text) if isinstance(text, str) else None
    if match is None or not is_repository(match["repository"] or "org/name"):
        raise SourceError(
            f"{place}, key auto_map.{clipped(key, 60)}: must name a class of a file beside the "
            f'config, "modeling.Net", given {clipped(repr(text), 80)}'
        )
    return Reference(match["repository"], match["module"], match["name"])


def model_reference(
    values: Mapping[str, Any], known: Mapping[str, list[Reference]]
) -> Reference | None:
    """The class of the model: the one that ``architectures`` names, else the first head; ``None``
    where the code has none, and transformers itself does."""
    models = {key: found[0] for key, found in known.items() if key.startswith(_BASE) and found}
    wanted = values.get("architectures")
    first = wanted[0] if isinstance(wanted, list) and wanted else None
    for reference in models.values():
        if reference.name == first:
            return reference
    for key in (*HEADS, *sorted(models.keys() - {_BASE}), _BASE):
        if key in models:
            return models[key]
    return None
