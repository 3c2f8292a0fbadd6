"""``python -m pytest_transformer_validate``: what is no part of a pytest run."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Row = TypeVar("Row")
PARTS = ("mutants", "architectures")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is 1 where the evidence has a miss or a false alarm."""
    parser = argparse.ArgumentParser(prog="python -m pytest_transformer_validate")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "evidence",
        help="run the checks over healthy models, mutants and the architectures of transformers "
        "and print the tables",
    )
    command.add_argument("parts", nargs="*", metavar="|".join(PARTS), help="default: both")
    command.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: processors)"
    )
    given = parser.parse_args(arguments)
    for part in given.parts:
        if part not in PARTS:
            parser.error(f"unknown part {part!r}; known are {', '.join(PARTS)}")
    parts = given.parts or PARTS
    missed = [_mutants() if part == "mutants" else _architectures(given.workers) for part in parts]
    return int(any(missed))


def _mutants() -> bool:
    """Print the zoo table and the mutant table; whether there is a miss or an alarm."""
    from pytest_transformer_validate.evidence import table
    from pytest_transformer_validate.evidence.mutants import MUTANTS
    from pytest_transformer_validate.evidence.zoo import ZOO

    healthy = [table.healthy_row(name) for name in _told(ZOO, len(ZOO))]
    mutants = [table.mutant_row(name) for name in _told(MUTANTS, len(MUTANTS))]
    print("\n".join([*table.zoo_table(healthy), "", *table.mutant_table(mutants)]))
    return any(row.alarms for row in healthy) or any(row.missed for row in mutants)


def _architectures(workers: int) -> bool:
    """Print the table of architectures; whether there is an alarm that is not declared."""
    from pytest_transformer_validate.evidence.architectures import architectures
    from pytest_transformer_validate.evidence.survey import survey, survey_table

    rows = list(_told(survey(workers), len(architectures())))
    rows.sort(key=lambda row: row.architecture)
    print("\n".join(survey_table(rows)))
    return any(row.alarms for row in rows)


def _told(rows: Iterable[Row], total: int) -> Iterator[Row]:
    """The rows, with progress on standard error: a line that moves, or one line in fifty."""
    moves = sys.stderr.isatty()
    for number, row in enumerate(rows, 1):
        yield row
        if moves or number % 50 == 0 or number == total:
            print(f"\r{number}/{total}", end="" if moves else "\n", file=sys.stderr, flush=True)
    if moves:
        print(file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
