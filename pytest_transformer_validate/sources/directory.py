"""A model of transformers from files on this machine: its config, weights, tokenizer and code."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.optional import require
from pytest_transformer_validate.sources.assemble import locate
from pytest_transformer_validate.sources.automap import (
    CONFIG,
    TOKENIZER,
    Reference,
    model_reference,
    references,
)
from pytest_transformer_validate.sources.base import Loaded, LoadOptions, SourceWarning
from pytest_transformer_validate.sources.config import ModelConfig
from pytest_transformer_validate.sources.heads import checked_config, choose_class, make_config
from pytest_transformer_validate.sources.jsonfile import read_object
from pytest_transformer_validate.sources.packaged import Package, Text, read_package
from pytest_transformer_validate.sources.pretrained import find_weights, from_weights
from pytest_transformer_validate.sources.seeding import seeded
from pytest_transformer_validate.sources.settings import check_numbers, read_expect_fail
from pytest_transformer_validate.sources.size import refuse_too_large
from pytest_transformer_validate.sources.tokenizer import find_tokenizer, load_tokenizer
from pytest_transformer_validate.sources.weights import load_weights
from pytest_transformer_validate.sources.wording import clipped, reason, shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

CONFIG_FILE = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "experts_implementation")

# Python files by the repository that they are from; ``None``: beside the config.
Texts = Mapping[str | None, Mapping[str, Text]]


@dataclass(frozen=True, kw_only=True)
class Directory:
    """Where the parts of a model lie: ``folder`` has config and tokenizer, ``weights`` the
    weights. ``words`` name it for people.

    ``texts`` is all code that may run, ``None`` for whatever lies in ``folder``, which is the
    user's own; ``repository`` is what the model is called where it is not a folder.
    """

    folder: Path
    weights: Path
    words: str
    texts: Texts | None = None
    repository: str | None = None

    def load(self, options: LoadOptions) -> Loaded:
        """Build the class that the config names, with its weights if there are any.

        Raises SourceError; what the model's own code raises comes through.
        """
        place = options.config or self.folder / CONFIG_FILE
        values = read_object(place, infinite=True)
        check_numbers({"vocab_size": values.get("vocab_size")}, place)
        expect_fail = read_expect_fail(values, place)
        _refuse_kernels(values, place)
        self._refuse_adapter()
        transformers = require("transformers", extra="hf")
        scope = self._package(values, place)
        with quiet(transformers.utils.logging), scope or contextlib.nullcontext():
            with seeded(options.seed):
                head, config = self._head(transformers, values, place, scope)
            model, weights = self._build(head, config, options, scope)
            tokenizer = self._tokenizer(options, values, scope)
            location = locate(head)
        return Loaded(
            model=model,
            config=ModelConfig(model.config),
            tokenizer=tokenizer,
            origin=f"{self.words}, class {head.__name__}",
            weights=weights,
            location=location,
            expect_fail=expect_fail,
            scope=scope or contextlib.nullcontext(),
        )

    def _package(self, values: Mapping[str, Any], place: Path) -> Package | None:
        """The code that makes the model or its tokenizer, ``None`` without any."""
        if not (references(values, shown(place)) or self._of_tokenizer()):
            return None
        texts = {None: read_package(self.folder)} if self.texts is None else self.texts
        return Package(
            {
                f"{_prefix(repository)}{path}": text
                for repository, files in texts.items()
                for path, text in files.items()
            }
        )

    def _head(
        self,
        transformers: ModuleType,
        values: Mapping[str, Any],
        place: Path,
        package: Package | None,
    ) -> tuple[Any, Any]:
        """The model's class and its configuration."""
        named = references(values, shown(place))
        found = model_reference(values, named)
        if found is None or package is None:
            head = choose_class(transformers, values, place)
            kind = None
        else:
            head = self._class(found, place, package)
            if not (isinstance(head, type) and hasattr(head, "from_pretrained")):
                raise SourceError(
                    f"{shown(place)}, key auto_map: {found.module}.{found.name} is no model class "
                    "of transformers (PreTrainedModel)"
                )
            kind = getattr(head, "config_class", None)
        if package is not None and named.get(CONFIG):
            kind = self._class(named[CONFIG][0], place, package)
        if kind is None:
            return head, make_config(transformers, head, values, place)
        return head, checked_config(kind, values, place)

    def _class(self, reference: Reference, place: Path, package: Package) -> Any:
        repository = None if reference.repository == self.repository else reference.repository
        if repository is not None and repository not in (self.texts or {}):
            raise SourceError(
                f"{shown(place)}, key auto_map: the code is in another repository, {repository}, "
                "and what is in a folder of your own fetches none\n"
                f"  copy its Python files into {shown(self.folder)} and write "
                f"{reference.module}.{reference.name} there"
            )
        module = f"{_prefix(repository)}{reference.module}".replace("/", ".")
        return package.load(module, reference.name)

    def _build(
        self, head: Any, config: Any, options: LoadOptions, package: Package | None
    ) -> tuple[Any, str]:
        if options.weights is None:
            file = find_weights(self.weights)
            if file is not None:
                with seeded(options.seed):
                    return from_weights(head, config, self.weights, file, package)
        place = options.config or self.folder / CONFIG_FILE
        words = f"{self.words}, class {head.__name__}"
        refuse_too_large(lambda: head(config), vars(config), words, shown(place))
        with seeded(options.seed):
            model = head(config)
        if options.weights is not None:
            return model, load_weights(model, options.weights)
        return model, f"random (seed {options.seed})"

    def _tokenizer(
        self, options: LoadOptions, values: Mapping[str, Any], package: Package | None
    ) -> Any:
        """The tokenizer, ``None`` without one: the model does not need it."""
        if options.tokenizer is not None:
            return load_tokenizer(options.tokenizer)
        place = self.folder / TOKENIZER_CONFIG
        found = self._of_tokenizer() or references(values, CONFIG_FILE).get(TOKENIZER)
        if not found or package is None:
            return find_tokenizer(self.folder)
        try:
            kind = self._class(found[-1], place, package)
            return kind.from_pretrained(str(self.folder), local_files_only=True)
        except Exception as error:  # noqa: BLE001 - foreign code; the model is whole without it
            text = str(error) if isinstance(error, SourceError) else reason(error)
            warnings.warn(
                f"the tokenizer {found[-1].name} of {shown(self.folder)} cannot be loaded: {text}"
                "; the model is used without it",
                SourceWarning,
                stacklevel=2,
            )
            return None

    def _of_tokenizer(self) -> list[Reference]:
        """The tokenizer's own code, the faster form last."""
        return tokenizer_references(self.folder)

    def _refuse_adapter(self) -> None:
        if (self.folder / "adapter_config.json").is_file():
            raise SourceError(
                f"{shown(self.folder)} is an adapter (adapter_config.json) to another model; "
                "merge it into that model and save the result"
            )


def tokenizer_references(folder: Path) -> list[Reference]:
    """What ``auto_map`` of a folder's tokenizer_config.json names; empty where that cannot be
    read, which loading the tokenizer says."""
    place = folder / TOKENIZER_CONFIG
    if not place.is_file():
        return []
    try:
        return references(read_object(place), TOKENIZER_CONFIG).get(TOKENIZER, [])
    except SourceError:
        return []


def _prefix(repository: str | None) -> str:
    """The folder in the package that has the files of a repository."""
    return "" if repository is None else re.sub(r"\W", "_", f"_from_{repository}") + "/"


def _refuse_kernels(values: Mapping[str, Any], place: Path) -> None:
    """Kernels are compiled code that transformers would fetch while it loads a model."""
    for key in _IMPLEMENTATIONS:
        value = values.get(key)
        for name in value.values() if isinstance(value, dict) else [value]:
            if isinstance(name, str) and "/" in name:
                raise SourceError(
                    f"{shown(place)}, key {key}: {clipped(repr(name), 80)} is a kernel of the "
                    "Hugging Face Hub, code that nobody accepted\n"
                    '  take the key out, or name one of "eager" and "sdpa"'
                )


@contextlib.contextmanager
def quiet(logging: ModuleType) -> Iterator[None]:
    """No progress bars and reports by the given ``transformers.utils.logging``: what is wrong is
    raised or compared, and said better."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
