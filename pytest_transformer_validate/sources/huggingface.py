"""A Hugging Face directory: config.json, maybe weights, maybe a tokenizer. Nothing is fetched,
and no code that lies in the directory is run."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.optional import require
from pytest_transformer_validate.sources.assemble import locate
from pytest_transformer_validate.sources.base import Loaded, LoadOptions, Source
from pytest_transformer_validate.sources.config import ModelConfig
from pytest_transformer_validate.sources.heads import choose_class, make_config
from pytest_transformer_validate.sources.jsonfile import read_object
from pytest_transformer_validate.sources.seeding import seeded
from pytest_transformer_validate.sources.settings import check_numbers, read_expect_fail
from pytest_transformer_validate.sources.tokenizer import find_tokenizer, load_tokenizer
from pytest_transformer_validate.sources.weights import difference, load_weights, refusal
from pytest_transformer_validate.sources.wording import listed, shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Weights in a form that is not read: a model drawn at random beside them would be a surprise.
_OTHER_WEIGHTS = ("*.safetensors", "*.gguf", "tf_model.h5", "flax_model.msgpack")


@dataclass(frozen=True)
class HuggingFaceSource(Source):
    """``folder/`` with a config.json that has ``architectures`` or ``model_type``."""

    spec: str
    id: str
    path: Path

    def load(self, options: LoadOptions) -> Loaded:
        """Build the class that the config names, with the weights in the folder if any."""
        place = options.config or self.path / "config.json"
        values = read_object(place)
        check_numbers({"vocab_size": values.get("vocab_size")}, place)
        expect_fail = read_expect_fail(values, place)
        _refuse_remote_code(values, place)
        self._refuse_adapter()
        transformers = require("transformers", extra="hf")
        with quiet(transformers.utils.logging):
            head = choose_class(transformers, values, place)
            config = make_config(transformers, head, values, place)
            model, weights = self._build(head, config, options)
            tokenizer = self._tokenizer(options)
        return Loaded(
            model=model,
            config=ModelConfig(model.config),
            tokenizer=tokenizer,
            origin=f"Hugging Face directory {shown(self.path)}, class {head.__name__}",
            weights=weights,
            location=locate(head),
            expect_fail=expect_fail,
        )

    def _build(self, head: Any, config: Any, options: LoadOptions) -> tuple[Any, str]:
        if options.weights is None:
            file = self._weights_file()
            if file is not None:
                with seeded(options.seed):
                    return self._from_weights(head, config, file)
        with seeded(options.seed):
            model = head(config)
        if options.weights is not None:
            return model, load_weights(model, options.weights)
        return model, f"random (seed {options.seed})"

    def _weights_file(self) -> str | None:
        for name in WEIGHTS:
            if (self.path / name).is_file():
                return name
        other = sorted(file.name for form in _OTHER_WEIGHTS for file in self.path.glob(form))
        if other:
            raise SourceError(
                f"{shown(self.path)} holds weights that are not read here: {listed(other)}\n"
                f"  read are {', '.join(WEIGHTS)}, or the file that --tb-weights names"
            )
        return None

    def _from_weights(self, head: Any, config: Any, file: str) -> tuple[Any, str]:
        place = shown(self.path / file)
        try:
            model, report = head.from_pretrained(
                str(self.path),
                config=config,
                local_files_only=True,
                use_safetensors="safetensors" in file,
                weights_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except Exception as error:
            raise SourceError(f"{place} cannot be loaded: {refusal(error)}") from error
        missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
        shapes = [
            f"{key} {_shape(one)} for {_shape(two)}" for key, one, two in _mismatched(report)
        ]
        if missing or shapes or report["error_msgs"]:
            lines = difference(missing, unexpected, shapes)
            lines += [f"  {message}" for message in report["error_msgs"][:2]]
            raise SourceError(
                "\n".join([f"{place} does not fit {head.__name__} as config.json says", *lines])
            )
        unused = f" ({len(unexpected)} of its tensors not used)" if unexpected else ""
        return model, f"{file}{unused}"

    def _tokenizer(self, options: LoadOptions) -> Any:
        if options.tokenizer is not None:
            return load_tokenizer(options.tokenizer)
        return find_tokenizer(self.path)

    def _refuse_adapter(self) -> None:
        if (self.path / "adapter_config.json").is_file():
            raise SourceError(
                f"{shown(self.path)} is an adapter (adapter_config.json) to another model; merge "
                "it into that model and save the result"
            )


def _mismatched(report: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return sorted(report["mismatched_keys"], key=lambda entry: str(entry[0]))


def _shape(sizes: Any) -> str:
    return "x".join(map(str, sizes)) or "scalar"


def _refuse_remote_code(values: dict[str, Any], place: Path) -> None:
    if values.get("auto_map"):
        raise SourceError(
            f"{shown(place)}, key auto_map: the model's code lies with its weights, and such "
            "code is not run by this version\n"
            "  without the key, the class of that name in transformers itself is used, if there "
            "is one; or load the code as a file: --tb-model=modeling.py::Class"
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
