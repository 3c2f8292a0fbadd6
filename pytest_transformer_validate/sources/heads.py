"""Which class of transformers a config.json means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.wording import clipped, near, reason, shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import ModuleType

_CAUSAL = "MODEL_FOR_CAUSAL_LM_MAPPING"
_MASKED = "MODEL_FOR_MASKED_LM_MAPPING"
_SEQ2SEQ = "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING"
_REST = (
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "MODEL_MAPPING",
)


def choose_class(transformers: ModuleType, values: Mapping[str, Any], place: Path) -> Any:
    """The model class that ``architectures`` names, else the first head that transformers has
    for the ``model_type``. Raises SourceError."""
    names = values.get("architectures")
    if names:
        return _named_class(transformers, names, place)
    kind = _config_class(transformers, values, place)
    if kind is None:
        raise SourceError(
            f"{shown(place)} has neither architectures nor model_type; one of them names the "
            'model: "architectures": ["GPT2LMHeadModel"]'
        )
    config = checked_config(kind, values, place)
    for order in _mapping_order(transformers, kind, config):
        mapping = getattr(transformers.models.auto.modeling_auto, order)
        found = mapping.get(kind, None)
        if found is not None:
            return found[0] if isinstance(found, tuple) else found
    raise SourceError(
        f"{shown(place)}: transformers {transformers.__version__} has no model for model_type "
        f'{values["model_type"]!r}; name one: "architectures": ["..."]'
    )


def make_config(
    transformers: ModuleType, head: Any, values: Mapping[str, Any], place: Path
) -> Any:
    """The configuration object for a model class. Raises SourceError."""
    kind = _config_class(transformers, values, place)
    wanted = head.config_class
    if wanted is not None and (kind is None or not issubclass(kind, wanted)):
        kind = wanted
    if kind is None:
        raise SourceError(f"{shown(place)} has no model_type, which {head.__name__} needs")
    return checked_config(kind, values, place)


def _named_class(transformers: ModuleType, names: Any, place: Path) -> Any:
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise SourceError(
            f"{shown(place)}, key architectures: must be a list of class names, "
            f"given {clipped(repr(names), 60)}"
        )
    name = names[0]
    try:
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    except (ImportError, RuntimeError) as error:
        raise SourceError(f"{shown(place)}: {name} cannot be imported: {reason(error)}") from error
    known = [known for known in dir(transformers) if known[:1].isupper()]
    raise SourceError(
        f"{shown(place)}, key architectures: transformers {transformers.__version__} has no "
        f"model class {clipped(name, 60)!r}{near(name, known)}"
    )


def _config_class(transformers: ModuleType, values: Mapping[str, Any], place: Path) -> Any:
    model_type = values.get("model_type")
    if model_type is None:
        return None
    mapping = transformers.CONFIG_MAPPING
    if not isinstance(model_type, str) or model_type not in mapping:
        guess = near(model_type, mapping.keys()) if isinstance(model_type, str) else ""
        raise SourceError(
            f"{shown(place)}, key model_type: transformers {transformers.__version__} has no "
            f"{clipped(repr(model_type), 60)}{guess}"
        )
    return mapping[model_type]


def checked_config(kind: Any, values: Mapping[str, Any], place: Path) -> Any:
    """A configuration object of class ``kind``. Raises SourceError."""
    try:
        return kind.from_dict(dict(values))
    except Exception as error:
        raise SourceError(
            f"{shown(place)} is refused by {kind.__name__}: {reason(error)}"
        ) from error


def _mapping_order(transformers: ModuleType, kind: Any, config: Any) -> list[str]:
    """Causal before masked before encoder-decoder, unless the config declares otherwise: an
    encoder-decoder, or a type that has both heads and is no decoder."""
    order = [_CAUSAL, _MASKED, _SEQ2SEQ, *_REST]
    masked = transformers.models.auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING
    if getattr(config, "is_encoder_decoder", False):
        order.insert(0, _SEQ2SEQ)
    elif kind in masked and not getattr(config, "is_decoder", False):
        order.insert(0, _MASKED)
    return order
