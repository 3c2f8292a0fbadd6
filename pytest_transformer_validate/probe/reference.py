"""The model that another one is compared with: loaded when first asked for, kept with it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.subject.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.sources.base import Loaded, LoadOptions, Source


@dataclass
class Reference:
    """A Source, and what it gives once it is loaded.

    ``dtype`` is the name of the dtype that the run asks for; without it the reference stays as it
    is.
    """

    source: Source
    options: LoadOptions
    dtype: str | None = None
    _loaded: Loaded | None = field(default=None, repr=False)

    @property
    def id(self) -> str:
        """Its short form."""
        return self.source.id

    def loaded(self) -> Loaded:
        """The model. Raises SourceError; what its own code raises comes through unchanged."""
        if self._loaded is None:
            try:
                self._loaded = self.source.load(self.options)
            except SourceError as error:
                raise SourceError(f"the reference {self.id} does not load: {error}") from error
        return self._loaded

    @contextlib.contextmanager
    def subject_like(self, subject: Subject) -> Iterator[Subject]:
        """Its Subject, in its own scope: of the task and on the device of ``subject``."""
        loaded = self.loaded()
        with loaded.scope:
            yield Subject(
                loaded.model,
                loaded.config,
                tokenizer=loaded.tokenizer,
                task=subject.task.task_type,
                device=subject.device,
                dtype=None if self.dtype is None else getattr(torch, self.dtype),
                seed=subject.seed,
            )
