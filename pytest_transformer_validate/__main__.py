"""``python -m pytest_transformer_validate``: what is no part of a pytest run."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pytest_transformer_validate.errors import SpecError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Row = TypeVar("Row")
PARTS = ("mutants", "architectures")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is 1 where the evidence has a miss or a false alarm, 2 where
    what was typed is wrong."""
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
    command.add_argument(
        "--tier", type=int, choices=(1, 2), default=1, help="of the checks over healthy models"
    )
    merge = commands.add_parser(
        "merge", help="join files of --tb-json into one page of models and checks"
    )
    merge.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    merge.add_argument(
        "-o", "--output", required=True, type=Path, metavar="PAGE.html|PAGE.md", help="the page"
    )
    given = parser.parse_args(arguments)
    if given.command == "merge":
        try:
            return _merge(given.files, given.output)
        except (SpecError, OSError) as error:
            merge.error(first_line(error))
    for part in given.parts:
        if part not in PARTS:
            parser.error(f"unknown part {part!r}; known are {', '.join(PARTS)}")
    parts = given.parts or PARTS
    runs = {
        "mutants": lambda: _mutants(given.tier),
        "architectures": lambda: _architectures(given.workers, given.tier),
    }
    missed = [runs[part]() for part in parts]
    return int(any(missed))


def _merge(files: list[Path], output: Path) -> int:
    """Write the page, whatever the verdicts. Raises SpecError for a file that is none, and
    OSError."""
    from pytest_transformer_validate.report import matrix
    from pytest_transformer_validate.report.json import read

    makers = {".html": matrix.html_page, ".md": matrix.markdown_page}
    make = makers.get(output.suffix.lower())
    if make is None:
        raise SpecError(f"-o must end in {' or '.join(makers)}, given {output}")
    page = make([(name, read(file)) for name, file in zip(_names(files), files, strict=True)])
    output.write_text(page, encoding="utf-8")
    return 0


def _names(files: list[Path]) -> list[str]:
    """What tells the files apart: their names, or their paths where two have one name."""
    names = [file.name for file in files]
    return names if len(set(names)) == len(names) else [file.as_posix() for file in files]


def _mutants(tier: int) -> bool:
    """Print the zoo table and the mutant table; whether there is a miss or an alarm."""
    from pytest_transformer_validate.evidence import table
    from pytest_transformer_validate.evidence.mutants import MUTANTS
    from pytest_transformer_validate.evidence.zoo import ZOO

    checks = {check.name for check in table.of_tier(tier)}
    names = [name for name, mutant in MUTANTS.items() if mutant.check in checks]
    healthy = [table.healthy_row(name, tier=tier) for name in _told(ZOO, len(ZOO))]
    mutants = [table.mutant_row(name) for name in _told(names, len(names))]
    print("\n".join([*table.zoo_table(healthy), "", *table.mutant_table(mutants)]))
    return any(row.alarms for row in healthy) or any(row.missed for row in mutants)


def _architectures(workers: int, tier: int) -> bool:
    """Print the table of architectures; whether there is an alarm that is not declared."""
    from pytest_transformer_validate.evidence.architectures import architectures
    from pytest_transformer_validate.evidence.survey import survey, survey_table

    rows = list(_told(survey(workers, tier=tier), len(architectures())))
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
