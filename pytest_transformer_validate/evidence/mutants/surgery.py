"""A mutant is a healthy model with one real mistake, made in its source or in the built model."""

from __future__ import annotations

import fnmatch
import linecache
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.evidence.words import Words
from pytest_transformer_validate.evidence.zoo import ZOO, Healthy, construct

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    Operation = Callable[[torch.nn.Module], torch.nn.Module | None]

ROOT = "(model)"


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One mistake in one zoo model.

    ``family`` is the kind of mistake, a key of ``families.FAMILIES``. ``check`` must catch it;
    ``where`` are the modules whose behaviour it changes (more than one where the mistake sits
    between siblings, ``*`` for any layer, empty for a model that cannot be built or called);
    ``why`` says how people come to make it. ``edits`` are (snippet, replacement) pairs, each
    snippet found exactly once in the parent's source; ``operate`` changes the built model;
    ``tokenizer`` is what the mistake is in where it is in neither.
    ``raises`` marks mistakes that consist in raising at something the task allows;
    ``undetectable`` is the reason why no check can tell it from a healthy model; ``blind`` that it
    was written from the name of a kind of mistake alone, by somebody who had not seen the checks.
    """

    name: str
    family: str
    parent: str
    check: str
    where: tuple[str, ...]
    why: str
    edits: tuple[tuple[str, str], ...] = ()
    operate: Operation | None = field(default=None, compare=False)
    tokenizer: Words = field(default_factory=Words)
    raises: bool = False
    undetectable: str = ""
    blind: bool = False

    @property
    def healthy(self) -> Healthy:
        """The model before the mistake."""
        return ZOO[self.parent]

    @property
    def filename(self) -> str:
        """What tracebacks call the changed source."""
        return f"<{self.name}: {self.healthy.path.name}>"

    def source(self) -> str:
        """The parent's source with the mistake in it. Raises ValueError for a lost snippet."""
        text = self.healthy.path.read_text(encoding="utf-8")
        for snippet, replacement in self.edits:
            found = text.count(snippet)
            if found != 1:
                raise ValueError(f"{self.name}: {found} times in {self.parent}: {snippet!r}")
            text = text.replace(snippet, replacement)
        return text

    def load(self) -> ModuleType:
        """A new module run from the changed source; tracebacks show its lines."""
        text = self.source()
        module = ModuleType(f"mutant_{self.name}")
        linecache.cache[self.filename] = (
            len(text),
            None,
            text.splitlines(keepends=True),
            self.filename,
        )
        sys.modules[module.__name__] = module
        exec(compile(text, self.filename, "exec"), module.__dict__)
        return module

    def build(self, seed: int = 0) -> torch.nn.Module:
        """A new instance with the weights that ``seed`` gives."""
        factory: Any = getattr(self.load(), self.healthy.factory)
        model = construct(factory, self.healthy.config, seed)
        if self.operate is None:
            return model
        return self.operate(model) or model

    def localises(self, where: str | None) -> bool:
        """Whether ``where`` names a changed module or its parent (``(model)`` is the root)."""
        if where is None:
            return False
        changed = {*self.where, *(module.rpartition(".")[0] or ROOT for module in self.where)}
        return any(
            fnmatch.fnmatchcase(where, pattern) and where.count(".") == pattern.count(".")
            for pattern in changed
        )
