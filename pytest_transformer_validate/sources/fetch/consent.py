"""Whether a fetched model may run: decided from what is recorded and typed, without any input."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from pytest_transformer_validate.errors import SpecError
from pytest_transformer_validate.sources.fetch.lock import LOCK_FILE
from pytest_transformer_validate.sources.fetch.tree import is_sha256, listed_files
from pytest_transformer_validate.sources.wording import clipped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_transformer_validate.sources.fetch.tree import Pin

NEW = "new"
_MOST = 6


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the options and the environment say about trust.

    ``trust`` holds ``new`` and hashes of trees; ``typed`` whether it is of this command, so that
    each hash has to be met; ``ci`` whether the lock is read-only; ``offline``
    whether nothing may be fetched; ``lists`` whether nothing will run (``--co``), so that nothing
    is fetched and nothing recorded; ``recorded`` whether consent can be recorded at all
    (``validate()`` records none).
    """

    trust: frozenset[str] = field(default_factory=frozenset)
    typed: bool = True
    ci: bool = False
    offline: bool = False
    lists: bool = False
    recorded: bool = True

    @classmethod
    def of(
        cls,
        trust: Iterable[str],
        *,
        typed: bool = True,
        ci: bool = False,
        offline: bool = False,
        lists: bool = False,
        recorded: bool = True,
    ) -> Self:
        """Terms from what was typed. Raises SpecError for what means nothing or contradicts."""
        values = frozenset(value.strip().lower() for value in trust)
        for value in sorted(values):
            if value != NEW and not is_sha256(value):
                raise SpecError(
                    f"--tb-trust must be new or a sha256 (64 hex digits), given "
                    f"{clipped(repr(value), 80)}\n"
                    "  a run without --tb-trust prints the hash of a model that is not accepted"
                )
        if NEW in values and not typed:
            raise SpecError(
                "tb_trust in the ini file must be hashes: new would accept every change that "
                "anybody makes\n  type --tb-trust=new once, and tb.lock records what was accepted"
            )
        if NEW in values and offline:
            raise SpecError(
                "--tb-offline and --tb-trust=new contradict each other: what is new has to be "
                "fetched\n  leave one of them out"
            )
        if NEW in values and ci:
            raise SpecError(
                "--tb-trust=new accepts whatever is newest, which nobody sees where CI is set: "
                f"{LOCK_FILE} is only read there\n"
                f"  run it once on your machine and commit {LOCK_FILE}, or accept one content "
                "by its hash: --tb-trust=SHA256"
            )
        return cls(
            trust=values, typed=typed, ci=ci, offline=offline, lists=lists, recorded=recorded
        )

    @property
    def new(self) -> bool:
        """Whether the newest revision is to be taken and accepted."""
        return NEW in self.trust

    @property
    def hashes(self) -> frozenset[str]:
        """The hashes of trees that were accepted by typing them."""
        return self.trust - {NEW}

    @property
    def records(self) -> bool:
        """Whether what is accepted is written to the lock."""
        return self.recorded and not self.ci and not self.lists


def decide(spec: str, pin: Pin, entry: Pin | None, terms: Terms, *, page: str = "") -> bool:
    """Whether the lock has to be written for ``pin`` to run; ``False`` where it says so already.

    ``spec`` is what was typed, ``pin`` what it was resolved to, ``entry`` what the lock holds for
    it (for a typed revision that the lock lacks: what it holds for the name), ``page`` where the
    code can be read. Raises SpecError where nobody accepted this content, with the command that
    accepts it.
    """
    if entry is not None and entry.tree == pin.tree:
        return terms.records and terms.new and entry != pin
    if pin.tree.sha256 in terms.hashes or terms.new:
        return terms.records
    if entry is None:
        raise SpecError(_unknown(spec, pin, terms, page))
    raise SpecError(_changed(spec, pin, entry, terms, page))


def require_any(spec: str, entry: Pin | None, terms: Terms) -> None:
    """Raise SpecError where it is certain without the content that nobody accepted it: to be
    asked where the content cannot be had (``lists``, ``offline``)."""
    if entry is None and not terms.trust:
        if terms.offline:
            why = f"{LOCK_FILE} does not know it, and --tb-offline forbids to fetch it"
        else:
            why = f"{LOCK_FILE} does not know it, and nothing is fetched to list checks"
        raise SpecError(
            f"{spec} is code from another machine that nobody has accepted yet: {why}\n"
            "  to see its owner, revision and hash, run without "
            f"{'--tb-offline' if terms.offline else '--collect-only'}\n"
            f"  to accept the newest revision: {_command(spec, NEW)}"
        )


def _unknown(spec: str, pin: Pin, terms: Terms, page: str) -> str:
    lines = [f"{spec} is code from another machine that nobody has accepted yet"]
    lines += _facts(pin, page)
    return "\n".join([*lines, *_accept(spec, pin, terms)])


def _changed(spec: str, pin: Pin, entry: Pin, terms: Terms, page: str) -> str:
    changes = entry.tree.difference(pin.tree)
    rest = len(changes) - _MOST
    lines = [
        f"{spec} is not what was accepted",
        f"  accepted  sha256 {entry.tree.sha256}, revision {entry.revision}",
        f"  now       sha256 {pin.tree.sha256}, revision {pin.revision}",
        f"  files     {', '.join(changes[:_MOST])}{f' and {rest} more' if rest > 0 else ''}",
    ]
    if entry.owner != pin.owner:
        lines.append(f"  owner     {entry.owner or 'nobody'} before, {pin.owner or 'nobody'} now")
    lines += [f"  read it   {page}"] * bool(page)
    return "\n".join([*lines, *_accept(spec, pin, terms)])


def _facts(pin: Pin, page: str) -> list[str]:
    count = len(pin.tree.files)
    files = f"{count} file{'s'[: count != 1]}, {pin.tree.size} bytes"
    lines = [
        f"  owner     {pin.owner or 'nobody is named'}",
        f"  revision  {pin.revision}",
        f"  sha256    {pin.tree.sha256}",
        f"  files     {listed_files(pin.tree.files)} ({files})",
    ]
    return lines + [f"  read it   {page}"] * bool(page)


def _accept(spec: str, pin: Pin, terms: Terms) -> list[str]:
    if not terms.recorded:
        return [f"  accept it with trust={pin.tree.sha256!r}"]
    lines = [f"  accept it: {_command(spec, pin.tree.sha256)}"]
    if terms.ci:
        lines.append(
            f"  CI is set, so that is not recorded; to record it, run the command on your machine "
            f"and commit {LOCK_FILE}"
        )
    return lines


def _command(spec: str, trust: str) -> str:
    return f"pytest {shlex.quote(f'--tb-model={spec}')} --tb-trust={trust}"
