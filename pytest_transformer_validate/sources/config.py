"""A model's configuration, whatever it came as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# What keys, and arguments of constructors, are called that bound what a model may be given.
LENGTH = (
    "max_position_embeddings", "n_positions", "max_seq_len", "max_seq_length",
    "max_sequence_length", "seq_length", "sequence_length", "seq_len", "block_size",
    "context_length", "context_size", "ctx_len", "max_len", "max_target_positions",
    "n_ctx",  # the last one: beside another it counts the vectors of a prompt
)  # fmt: skip
CHANNELS = ("num_channels", "in_channels", "in_chans", "channels")


class ModelConfig(Mapping[str, Any]):
    """Read access to a configuration by key and by attribute.

    Wraps a dict, any object with attributes (``SimpleNamespace``, a dataclass) or a Hugging Face
    config; ``raw`` is what was given. Reading a foreign config can raise anything (a property of
    a Hugging Face config may), so a key that cannot be read counts as missing.
    """

    def __init__(self, raw: Any = None) -> None:
        self.raw: Any = {} if raw is None else raw.raw if isinstance(raw, ModelConfig) else raw

    def __getitem__(self, key: str) -> Any:
        if isinstance(self.raw, Mapping):
            return self.raw[key]
        try:
            return getattr(self.raw, key)
        except Exception as error:
            raise KeyError(key) from error

    def __getattr__(self, name: str) -> Any:
        if name == "raw" or name.startswith("__"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f"the config has no {name!r}") from error

    def __iter__(self) -> Iterator[str]:
        if isinstance(self.raw, Mapping):
            return iter(self.raw)
        return iter([name for name in _attributes(self.raw) if not name.startswith("_")])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return f"ModelConfig({dict(self)!r})"

    def first(self, *keys: str) -> Any:
        """The value of the first of ``keys`` that is there and not ``None``, else ``None``."""
        for key in keys:
            value = self.get(key)
            if value is not None:
                return value
        return None


def _attributes(raw: Any) -> list[str]:
    """The names of an object's own attributes, in ``__slots__`` and in fields of a tuple, too."""
    slots = (vars(kind).get("__slots__", ()) for kind in reversed(type(raw).__mro__))
    names = [name for each in slots for name in ([each] if isinstance(each, str) else each)]
    return list(
        dict.fromkeys([*names, *getattr(raw, "_fields", ()), *getattr(raw, "__dict__", ())])
    )


class WholeConfig(dict[str, Any]):
    """A whole configuration as model code gets it: a dict whose keys are attributes, too.

    An attribute that is no key is looked up in ``defaults``, an object of the file's own
    configuration class: code that reads attributes then finds the defaults written there.
    """

    def __init__(self, values: Mapping[str, Any], defaults: Any = None) -> None:
        super().__init__(values)
        if defaults is not None:
            self.__dict__["_defaults"] = defaults

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        defaults = None if name.startswith("__") else self.__dict__.get("_defaults")
        if defaults is None:
            raise AttributeError(f"the config has no {name!r}")
        return getattr(defaults, name)
